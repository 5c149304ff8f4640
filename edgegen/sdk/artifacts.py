"""Find artifacts in what a user names: an artifact's own folder, a finished output, a bake-off. Needs no torch."""

from __future__ import annotations

from pathlib import Path

from edgegen.common.codec import load_json
from edgegen.errors import ConfigError
from edgegen.records.artifact import Artifact
from edgegen.records.bakeoff import BakeOff
from edgegen.sdk.output import BAKEOFF_FILE, require_output

RECORD = "artifact.json"


def artifact_folders(build: Path) -> dict[str, Path]:
    """Target → artifact folder, in a bake-off's own order.

    Raises:
        ConfigError: no artifact there.
    """
    if (build / BAKEOFF_FILE).is_file():
        targets = [contender.target for contender in load_json(build / BAKEOFF_FILE, BakeOff).contenders]
        found = {target: build / target / "artifact" for target in targets}
        found = {target: folder for target, folder in found.items() if (folder / RECORD).is_file()}
        if not found:
            raise ConfigError(f"{build}: none of its targets has an artifact", hint=f"{build}/bakeoff.html says why.")
        return found
    if not (build / RECORD).is_file():
        require_output(build)
    folder = build if (build / RECORD).is_file() else build / "artifact"
    return {load_json(folder / RECORD, Artifact).target: folder}


def is_encoder(folder: Path) -> bool:
    """Whether an artifact turns text into vectors.

    Raises:
        ConfigError: no artifact there.
    """
    return load_json(folder / RECORD, Artifact).task == "encoder"


def find_artifact(build: Path, target: str = "") -> Path:
    """The artifact folder to use.

    Args:
        target: which one of a bake-off; empty: the recommended one.

    Raises:
        ConfigError: none there, none for this target, or several with none recommended.
    """
    found = artifact_folders(build)
    known = "It has: " + ", ".join(found) + "."
    if target:
        if target not in found:
            raise ConfigError(f"{build}: has no artifact for target {target!r}", hint=known)
        return found[target]
    if len(found) == 1:
        return next(iter(found.values()))
    recommended = load_json(build / BAKEOFF_FILE, BakeOff).recommended
    if recommended not in found:
        raise ConfigError(f"{build}: none of its targets is recommended", hint=f"{known} Choose one with --target.")
    return found[recommended]
