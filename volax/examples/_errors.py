"""The one exception of the example that is shown without a traceback."""


class UserError(Exception):
    """A mistake in the data, the config or the workdir, told in one sentence."""
