"""Where a profile or target is found: a path, the user's folder, the installed data, the source checkout.

The first that has the file wins. Wheels carry the files as `edgegen/_data/{profiles,targets}`; an editable
install has none there and falls back to the folders beside the package.
"""

from __future__ import annotations

import importlib.resources
import os
from pathlib import Path
from typing import Literal

Kind = Literal["profiles", "targets"]


def user_folder() -> Path:
    """`$EDGEGEN_HOME`, else `edgegen` in the platform's folder for configuration. It need not exist."""
    home = os.environ.get("EDGEGEN_HOME")
    if home:
        return Path(home).expanduser()
    if os.name == "nt":
        return Path(os.environ.get("APPDATA") or Path.home() / "AppData" / "Roaming") / "edgegen"
    return Path(os.environ.get("XDG_CONFIG_HOME") or Path.home() / ".config") / "edgegen"


def shipped_folder(kind: Kind) -> Path:
    """The folder of the files that come with edgegen."""
    package = Path(str(importlib.resources.files("edgegen")))
    installed = package / "_data" / kind
    return installed if installed.is_dir() else package.parent / kind


def is_path(name_or_path: str | Path) -> bool:
    """Whether the user means a file and not a name: it ends in .toml or has a separator."""
    text = str(name_or_path)
    separators = {"/", os.sep, os.altsep or os.sep}
    return text.endswith(".toml") or any(separator in text for separator in separators)


def files_of(kind: Kind) -> dict[str, Path]:
    """Name → file, sorted by name; the user's own files override shipped ones of the same name."""
    found: dict[str, Path] = {}
    for folder in (shipped_folder(kind), user_folder() / kind):
        if folder.is_dir():
            found.update({path.stem: path for path in folder.glob("*.toml")})
    return dict(sorted(found.items()))
