"""Facts about this machine, as the operating system tells them."""

from __future__ import annotations

import contextlib
import getpass
import os
import platform
import subprocess
from pathlib import Path

import psutil


def usable_cores() -> int:
    """Physical cores that this process may use; on a mixed design only the big ones."""
    allowed = allowed_cores()
    return max(1, min(allowed, big_cores() or psutil.cpu_count(logical=False) or allowed))


def allowed_cores() -> int:
    """Logical cores that this process may use."""
    return len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1


def big_cores() -> int:
    """Cores of the fast kind on a mixed design; 0 where the system does not tell kinds apart."""
    if platform.system() == "Darwin":
        return int(_sysctl("hw.perflevel0.physicalcpu") or 0)
    paths = Path("/sys/devices/system/cpu").glob("cpu[0-9]*/cpu_capacity")
    capacities = [int(path.read_text()) for path in paths]
    return sum(1 for capacity in capacities if 2 * capacity > max(capacities))


def ram_bytes() -> int:
    """Memory that this process may use: the machine's, or the control group's limit if that is smaller."""
    total = int(psutil.virtual_memory().total)
    with contextlib.suppress(OSError, ValueError):
        total = min(total, int(Path("/sys/fs/cgroup/memory.max").read_text()))
    return total


def clock_ghz() -> float:
    """The clock that the system reports: its maximum if known, else the present one, else 2."""
    frequency = psutil.cpu_freq() if hasattr(psutil, "cpu_freq") else None
    if frequency is None:
        return 2.0
    return float(frequency.max or frequency.current or 2000.0) / 1000


def cpu_name() -> str:
    """The processor's marketing name; on ARM boards the board's, whose kernel names no processor."""
    return next((name for name in names() if name), platform.machine())


def names() -> tuple[str, ...]:
    """What this machine calls its board and its processor, best first; empty strings where it has no name."""
    if platform.system() == "Darwin":
        return (_sysctl("machdep.cpu.brand_string"), platform.processor())
    board = ""
    with contextlib.suppress(OSError):
        board = Path("/proc/device-tree/model").read_text().strip("\0\n ")
    return (board, _cpuinfo("model name"), platform.processor())


def cpu_flags() -> frozenset[str]:
    """Instruction-set flags as Linux names them; on Apple's processors the ones that matter here."""
    if platform.system() == "Darwin":
        names = {
            "asimddp": "hw.optional.arm.FEAT_DotProd",
            "i8mm": "hw.optional.arm.FEAT_I8MM",
            "avx2": "hw.optional.avx2_0",
        }
        return frozenset(flag for flag, key in names.items() if _sysctl(key) == "1")
    return frozenset((_cpuinfo("flags") or _cpuinfo("Features")).split())


def isa_key(arch: str, flags: frozenset[str]) -> str:
    """The key into a target's kernel costs.

    Linux has no flag for in-order cores, so those come out as `neon`; their kernels are timed anyway.
    """
    if arch == "x86_64":
        return "avx512-vnni" if {"avx512vl", "avx512_vnni"} <= flags else "avx2"
    if "i8mm" in flags:
        return "neon-i8mm"
    return "neon-dotprod" if "asimddp" in flags else "neon"


def _cpuinfo(key: str) -> str:
    """The first value of a key in /proc/cpuinfo, empty if there is none."""
    with contextlib.suppress(OSError):
        for line in Path("/proc/cpuinfo").read_text().splitlines():
            left, _, right = line.partition(":")
            if left.strip() == key:
                return right.strip()
    return ""


def _sysctl(key: str) -> str:
    """A value of macOS's sysctl, empty if it has none."""
    try:
        return subprocess.run(["sysctl", "-n", key], capture_output=True, text=True, check=False).stdout.strip()
    except OSError:
        return ""


def user_name() -> str:
    """Who runs this, as the system knows; a container's user without a name is a number."""
    try:
        return getpass.getuser()
    except (KeyError, OSError):
        return str(os.getuid()) if hasattr(os, "getuid") else "unknown"


def board_model() -> str:
    """What the board calls itself, such as `Raspberry Pi 5 Model B Rev 1.0`; empty where the system does not say."""
    for path in ("/proc/device-tree/model", "/sys/class/dmi/id/product_name"):
        with contextlib.suppress(OSError):
            said = Path(path).read_bytes().rstrip(b"\0").decode(errors="replace").strip()
            if said and said.isprintable():
                return said[:80]
    return ""
