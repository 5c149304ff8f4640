"""This machine and this process, as the operating system tells."""

from __future__ import annotations

import platform
import re
from pathlib import Path

import psutil


def peak_rss_bytes() -> int:
    """Largest resident memory this process has had.

    Linux keeps it per address space (VmHWM); `ru_maxrss` would carry the parent's peak over a fork.
    """
    status = Path("/proc/self/status")
    if status.exists():
        found = re.search(r"^VmHWM:\s+(\d+) kB", status.read_text(), re.MULTILINE)
        if found:
            return int(found[1]) * 1024
    import resource

    peak = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    return peak if platform.system() == "Darwin" else peak * 1024


def rss_bytes() -> int:
    """Resident memory now."""
    return int(psutil.Process().memory_info().rss)
