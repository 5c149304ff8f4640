"""Load shared libraries of installed packages: `python -m edgegen.emulate.load PACKAGE/FILE…`.

A library that was compiled for instructions that a core has not ends the process, with its own last words. A runtime
that knows of that and refuses beforehand is believed only after this has shown it.
"""

from __future__ import annotations

import ctypes
import sys
from pathlib import Path


def main(files: list[str]) -> int:
    """Exit code 0 if all could be loaded, 1 if one was not found."""
    for file in files:
        found = [path for path in (Path(place) / file for place in sys.path) if path.exists()]
        if not found:
            sys.stderr.write(f"{file}: in no package\n")
            return 1
        ctypes.CDLL(str(found[0]))
    return 0


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
