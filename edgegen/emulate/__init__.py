"""Run a runtime on the device's own processor core, emulated: its kernels and its crashes, not its speed.

User-mode emulation (QEMU) runs the device's own Python and the aarch64 packages of the runtimes under a chosen core,
such as `cortex-a72`: the runtime sees that core's features and picks the kernels that it would pick on the board, and
an instruction that the core has not ends the program as it would there. No virtual machine, no administrator. What is
needed is fetched by `setup`, an explicit command; running fetches nothing.
"""

from __future__ import annotations

from edgegen.emulate.place import RUNTIME_PACKAGES, emulation_folder, read_setup
from edgegen.emulate.run import Finished, emulated_core, run_module

__all__ = ["RUNTIME_PACKAGES", "Finished", "emulated_core", "emulation_folder", "read_setup", "run_module"]
