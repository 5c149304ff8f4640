"""Where things may be kept between runs that can be made again."""

from __future__ import annotations

import os
import platform
from pathlib import Path


def cache_folder() -> Path:
    """`$EDGEGEN_CACHE`, else `cache` in `$EDGEGEN_HOME`, else the platform's folder for caches. It need not exist."""
    for variable, child in (("EDGEGEN_CACHE", ""), ("EDGEGEN_HOME", "cache")):
        if os.environ.get(variable):
            return Path(os.environ[variable]) / child
    if platform.system() == "Darwin":
        return Path.home() / "Library" / "Caches" / "edgegen"
    if os.name == "nt":
        return Path(os.environ.get("LOCALAPPDATA") or Path.home() / "AppData" / "Local") / "edgegen" / "cache"
    return Path(os.environ.get("XDG_CACHE_HOME") or Path.home() / ".cache") / "edgegen"
