"""The loop closes: what a fleet's devices measured corrects the profile that the next plan is made for."""

from __future__ import annotations

import math
from collections.abc import Iterable
from pathlib import Path

from edgegen.catalog import load_profile, load_target, save_user_profile
from edgegen.errors import ConfigError
from edgegen.fleet.operate import open_fleet
from edgegen.planner.learning import learn as learn_profile
from edgegen.records.learning import AskMissing, AskObservations, Learning, Missing, Observations, Restore

_DAY_S = 86400.0


def learn(
    where: str,
    *,
    profile: str,
    group: str = "",
    days: float = 90.0,
    min_reports: int = 20,
    store: str | None = None,
    save: bool = True,
) -> Learning:
    """Correct a profile by what a fleet's devices measured, and write it to the user's folder.

    Devices count that say this profile in their configuration, and those that say none if their release was planned
    for it.

    Args:
        where: a site's folder, or a server's URL (with an operator's token in `EDGEGEN_FLEET_TOKEN`).
        profile: its name.
        group: only of this group's devices.
        days: how far back.
        min_reports: fewest usable answers.
        store: another database than the site's own file.
        save: whether the profile is written; only then later plans use it.

    Raises:
        ConfigError: no such profile or site, or too few usable answers.
        UnsupportedError: scipy is missing, or a target that the profile's processor has no kernel costs for.
        NetworkError: the server does not answer.
    """
    if not 0 < days < math.inf:
        raise ConfigError(f"--days must be a number above 0, not {days:g}")
    if min_reports < 1:
        raise ConfigError(f"--min-reports must be at least 1, not {min_reports}")
    known = load_profile(profile)
    targets = {name: load_target(name) for name in known.targets}
    found: Observations = open_fleet(where, store).do(
        "observations", AskObservations(window_s=days * _DAY_S, group=group)
    )
    result = learn_profile(known, targets, found, min_reports=min_reports)
    if save and result.profile.learned is not None:
        save_user_profile(result.profile)
    return result


def restore_vocabulary(
    where: str,
    *,
    release: str = "",
    group: str = "",
    days: float = 90.0,
    model: str = "",
    least: int = 2,
    store: str | None = None,
) -> Restore:
    """Tokens of the original's that a release's trimmed vocabulary lacks and devices met.

    Args:
        where: as `learn`.
        release: `name@version` or the beginning of a digest; empty: the one that most answers are of.
        model: the original's folder or hub id; empty: where it was found when it was compressed.
        least: a character met less often is left out.

    Raises:
        ConfigError: no such release, no answers that tell, or another model than the release's.
        UnsupportedError: its vocabulary cannot be trimmed.
        NetworkError: the server does not answer.
    """
    missing: Missing = open_fleet(where, store).do(
        "missing", AskMissing(window_s=days * _DAY_S, group=group, release=release)
    )
    if not missing.release:
        raise ConfigError("no answers of a known release were reported", hint="Look at a longer time with --days.")
    if not missing.characters:
        share = "none told it" if missing.byte_fraction is None else f"{missing.byte_fraction:.2%} of prompts' tokens"
        raise ConfigError(
            f"{missing.label}: no device tells which characters took byte tokens ({share})",
            hint="Devices tell them at privacy level p2 and above.",
        )
    source = model or missing.model
    if not source:
        raise ConfigError(f"{missing.label}: does not say its model", hint="Name it with --model.")
    wanted = {c: n for c, n in missing.characters.items() if n >= max(1, least)}
    return Restore(
        schema=1,
        model=source,
        model_digest=missing.model_digest,
        release=missing.label,
        byte_fraction=missing.byte_fraction,
        tokens=_tokens_for(source, missing, wanted),
        characters=wanted,
    )


def _tokens_for(source: str, missing: Missing, characters: Iterable[str]) -> tuple[str, ...]:
    """The original's tokens for some characters, alone and after a space; those that are never dropped left out."""
    from edgegen.modeling.load import find_model, open_tokenizer
    from edgegen.modeling.vocabulary import Vocabulary

    ref = find_model(source)
    if missing.model_digest and ref.digest != missing.model_digest:
        raise ConfigError(f"{source}: is another model than {missing.label} was made of", hint="Name it with --model.")
    folder = Path(ref.path)
    always, tokenizer = Vocabulary(folder / "tokenizer.json").always, open_tokenizer(folder)
    ids = {
        int(token)
        for character in characters
        for text in (character, f" {character}")
        for token in tokenizer.encode(text, add_special_tokens=False)
    }
    return tuple(tokenizer.convert_ids_to_tokens(sorted(ids - always)))
