"""Where the agent is on a device that `edgegen device setup` has set up.

    FOLDER/venv          the environment that the agent runs in
    FOLDER/agent.toml    its configuration
    FOLDER/trust/        what it trusts: root.json, and the enrolment token if there is one
    FOLDER/home          releases, journal (root: /var/lib/edgegen)

FOLDER is /opt/edgegen for root and ~/.local/share/edgegen for others, unless another is named.
"""

from __future__ import annotations

import re
from dataclasses import dataclass

from edgegen.errors import ConfigError, DeviceError
from edgegen.push.ssh import Remote


@dataclass(frozen=True, slots=True)
class Places:
    """Absolute paths on the device."""

    root: bool
    """Whether the user that ssh connects as is root."""
    folder: str
    home: str

    @property
    def venv(self) -> str:
        return f"{self.folder}/venv"

    @property
    def config(self) -> str:
        return f"{self.folder}/agent.toml"

    @property
    def agent(self) -> str:
        return f"{self.venv}/bin/edgegen-agent"


def find_places(remote: Remote, folder: str | None = None) -> Places:
    """Ask the device who we are there and where its things go.

    Args:
        folder: another FOLDER, an absolute path.

    Raises:
        ConfigError: `folder` is not a plain absolute path.
        DeviceError: the device's shell does not answer as a POSIX shell.
    """
    if folder is not None and not re.fullmatch(r"(/[A-Za-z0-9._+-]+)+", folder):
        raise ConfigError(f"--folder {folder!r} is no plain absolute path")
    told = remote.run('id -u && printf "%s\\n" "$HOME"').split("\n")
    if len(told) < 2 or not told[0].isdigit() or not told[1].startswith("/"):
        raise DeviceError(f"{remote.address}: its shell did not answer as one", hint="A POSIX shell is needed.")
    root = told[0] == "0"
    place = folder or ("/opt/edgegen" if root else f"{told[1]}/.local/share/edgegen")
    return Places(root, place, "/var/lib/edgegen" if root and folder is None else f"{place}/home")
