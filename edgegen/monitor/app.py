"""The way in: `run` shows a fleet until the user leaves.

Textual is imported only then, because it reads at its import what `prepare_terminal` sets.
"""

from __future__ import annotations

import os

from edgegen.errors import DeviceError
from edgegen.monitor.source import Source
from edgegen.monitor.terminal import is_terminal, prepare_terminal


def run(source: Source, *, write: bool = False) -> int:
    """Show a fleet until the user leaves.

    Args:
        write: whether acting keys act.

    Returns:
        The exit code.

    Raises:
        ConfigError: the user's file of keys is wrong.
        UnsupportedError: Textual is not installed.
        DeviceError: there is no terminal.
    """
    if not is_terminal():
        raise DeviceError(
            "the monitor needs a terminal", hint="For scripts there is `edgegen monitor … --once --json`."
        )
    prepare_terminal()
    from edgegen.monitor.monitor_app import MonitorApp

    code = MonitorApp(source, write=write, no_color="NO_COLOR" in os.environ).run()
    return code or 0
