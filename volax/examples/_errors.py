"""The one exception that is shown without a traceback, and how errors are told."""


class UserError(Exception):
    """A mistake in the data, the config or the workdir, told in one sentence."""


def told(error: UserError | OSError | ModuleNotFoundError) -> str:
    """The sentence that a command ends with; of a module of ours it is raised again."""
    if isinstance(error, ModuleNotFoundError):
        if str(error.name).startswith("volax"):
            raise error
        return (
            f"{error.name} is not installed; pip install 'volax-optax[examples]' "
            "brings what the examples need"
        )
    if isinstance(error, OSError):
        where = f"{error.filename}: " if error.filename else ""
        return f"{where}{error.strerror or error}"
    return str(error)
