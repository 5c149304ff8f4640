"""One model for several runtimes of one device: make each, compare them, recommend one.

`OUT/TARGET/` is an ordinary output of `compress`, with its receipt; `OUT/bakeoff.json` and `OUT/bakeoff.html` compare
them. Model and data are opened and measured once. A target that cannot be made is a line in the comparison, not the
end of the others.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Unpack

import msgspec

from edgegen.catalog import load_target
from edgegen.errors import ConfigError, EdgegenError
from edgegen.records.bakeoff import BakeOff, Contender
from edgegen.records.profile import Profile
from edgegen.sdk.comparison import compare
from edgegen.sdk.output import BAKEOFF_FILE, Notify
from edgegen.sdk.pipeline import opened_workspace, run_chain
from edgegen.sdk.subject import Subject
from edgegen.sdk.wishes import Wanted, Wishes, resolve

_BESIDE = (".partial", ".old")


def bake_off(
    model: str,
    *,
    profile: str | Profile,
    targets: Sequence[str],
    data: str | None = None,
    out: str | Path = "build",
    notify: Notify | None = None,
    **wishes: Unpack[Wishes],
) -> BakeOff:
    """Compress a model for several runtimes and say which to ship.

    Args:
        targets: runtimes that the profile's device runs, in the order in which they are shown.
        out: folder for all results; arguments otherwise as `compress`. Allowed grids are each target's own among them.

    Returns:
        The comparison; none of its contenders need have passed.

    Raises:
        ConfigError, UnsupportedError, NetworkError: what is wrong with the request itself. What is wrong with one
            target alone is its contender's `failure`.
        InfeasibleError: with `common_grid`, no choice keeps every target's budgets.
    """
    targets = tuple(dict.fromkeys(targets))
    if not targets:
        raise ConfigError("no target was named", hint="Name some, like gguf,onnx.")
    wanted = resolve(profile, targets, wishes)
    place = Path(out).expanduser().resolve()
    _require_own(place)
    tell = notify or (lambda *event: None)
    known = {target: load_target(target) for target in targets}
    subject = Subject(model, data, list(known.values()), memory_bytes=wishes.get("memory_bytes"))
    if wanted.common_grid:
        return _agreed(subject, wanted, targets, place, tell)
    failures: dict[str, EdgegenError] = {}
    for target in targets:
        try:
            with opened_workspace(place / target) as workspace:
                wish = _for_target(wanted, known[target].grid_names)
                run_chain(
                    subject,
                    wish,
                    target,
                    workspace,
                    lambda stage, *event, target=target: tell(f"{target}/{stage}", *event),
                )
        except EdgegenError as error:
            failures[target] = error
    tell("compare", "started", 0, 1)
    found = compare(place, subject.ref.source, wanted.profile, targets, _lost(failures))
    tell("compare", "finished", 1, 1)
    return found


def _agreed(subject: Subject, wanted: Wanted, targets: tuple[str, ...], place: Path, tell: Notify) -> BakeOff:
    """With one plan and one rounding for all; where that plan cannot be made there is nothing to compare."""
    from edgegen.sdk.agreeing import run_agreed

    made = run_agreed(subject, wanted, targets, place, tell)
    tell("compare", "started", 0, 1)
    found = compare(
        place, subject.ref.source, wanted.profile, targets, _lost(made.failures), same_weights=made.same_weights
    )
    tell("compare", "finished", 1, 1)
    return found


def _lost(failures: Mapping[str, EdgegenError]) -> dict[str, Contender]:
    return {
        target: Contender(target=target, passed=False, failure=_sentence(error), exit_code=error.exit_code)
        for target, error in failures.items()
    }


def _require_own(place: Path) -> None:
    """Refuse a folder that holds anything but an earlier bake-off.

    Raises:
        ConfigError: it does, or it is a file.
    """
    if not place.exists():
        return
    if not place.is_dir():
        raise ConfigError(f"{place}: is a file, not a folder", hint="Choose another folder with --out.")
    from edgegen.export.registry import TARGETS

    ours = {BAKEOFF_FILE, "bakeoff.html"}
    ours |= {target + end for target in TARGETS for end in ("", *_BESIDE)}
    strange = sorted(path.name for path in place.iterdir() if path.name not in ours and not path.match("bench*.*"))
    if strange:
        raise ConfigError(
            f"{place}: holds {strange[0]!r}, which is not of a comparison of targets",
            hint="Choose another folder with --out.",
        )


def _for_target(wanted: Wanted, known: tuple[str, ...]) -> Wanted:
    """The same wishes with only the grids that a target has.

    Raises:
        ConfigError: grids were named and the target has none of them.
    """
    if wanted.grids is None:
        return wanted
    own = tuple(grid for grid in wanted.grids if grid in known)
    if not own:
        raise ConfigError("--grids names none of this target's grids", hint="Known: " + ", ".join(known) + ".")
    return msgspec.structs.replace(wanted, grids=own)


def _sentence(error: EdgegenError) -> str:
    return f"{error} {error.hint}".strip()
