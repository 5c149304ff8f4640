"""What the agent's child processes do alike."""

from __future__ import annotations

import os
import sys
import threading


def end_with_parent() -> None:
    """End this process when the one that started it does, however that ends: its end of our stdin closes then."""

    def watch() -> None:
        while sys.stdin.buffer.read(4096):
            pass
        os._exit(0)

    threading.Thread(target=watch, name="parent", daemon=True).start()
