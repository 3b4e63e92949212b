"""The README of a distribution, whose links lead somewhere without the checkout.

They are made absolute from ``Repository`` in ``[project.urls]`` while the package is
built. Without such an address what they say stays, and the links go.
"""

import re
from pathlib import Path
from typing import Any

from hatchling.metadata.plugin.interface import MetadataHookInterface

_RELATIVE = re.compile(r"\[([^\]]*)\]\((?!https?://|#)([^)]*)\)")


def with_links(text: str, url: str | None) -> str:
    """Markdown with absolute links in place of relative ones, or with none."""
    if url is None:
        return _RELATIVE.sub(r"\1", text)
    return _RELATIVE.sub(rf"[\1]({url.rstrip('/')}/blob/main/\2)", text)


class Readme(MetadataHookInterface):
    """Fills in the project's ``readme``."""

    def update(self, metadata: dict[str, Any]) -> None:
        """Add the README to the table ``[project]``."""
        text = Path(self.root, "README.md").read_text(encoding="utf-8")
        url = metadata.get("urls", {}).get("Repository")
        readme = {"content-type": "text/markdown", "text": with_links(text, url)}
        metadata["readme"] = readme
