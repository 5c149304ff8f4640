"""Whether edgegen runs on a profile's own device: then speed and memory can be measured right here."""

from __future__ import annotations

import platform
import re

import psutil

from edgegen.common.host import allowed_cores, big_cores, names
from edgegen.records.profile import Profile

THIS_MACHINE = "this-machine"
"""Name of the profile that the probe writes to the user's folder."""

_RAM_TOLERANCE = 0.25
"""Systems report less memory than is built in (firmware and graphics keep some); variants differ twofold."""


def is_this_machine(profile: Profile) -> bool:
    """Whether architecture, processor (or board), cores and memory are this machine's.

    The processor is recognised by its own name or, on ARM boards, by the board's name at the start of the
    profile's title: `Raspberry Pi 5 (8 GB)` and `Raspberry Pi 5 Model B Rev 1.0`.
    """
    device = profile.device
    arch = platform.machine().lower().replace("arm64", "aarch64").replace("amd64", "x86_64")
    ram = psutil.virtual_memory().total
    board = re.split(r" \(|,|:", profile.title)[0]
    own = {_plain(device.cpu), _plain(board)} - {""}
    return (
        device.arch == arch
        and device.cores in _core_counts()
        and abs(ram / device.ram_bytes.value - 1) <= _RAM_TOLERANCE
        and any(host == name or host.startswith(name + " ") for host in _host_names() for name in own)
    )


def _core_counts() -> set[int]:
    """Every count that a profile may fairly give: physical, logical, usable here, or only the big cores."""
    counts = {psutil.cpu_count(logical=False), psutil.cpu_count(), allowed_cores(), big_cores()}
    return {count for count in counts if count}


def _host_names() -> set[str]:
    """What this machine calls its processor and its board, normalised."""
    return {_plain(name) for name in names()} - {""}


def _plain(name: str) -> str:
    """Lower case, single spaces, no trademark signs."""
    return " ".join(re.sub(r"\((r|tm)\)", "", name.lower()).split())
