"""What every adapter refuses before it opens a model, in the same words."""

from __future__ import annotations

from collections.abc import Collection
from pathlib import Path

import msgspec

from edgegen.common.files import disk_errors
from edgegen.common.host import allowed_cores
from edgegen.errors import ConfigError
from edgegen.records.plan import Settings


def require_file(model: Path) -> None:
    """Refuse a file that is not there or cannot be read.

    Raises:
        ConfigError: either.
    """
    if not model.is_file():
        raise ConfigError(f"{model}: no such file")
    with disk_errors(model), model.open("rb"):
        pass


def check_settings(settings: Settings, kv_types: Collection[str]) -> None:
    """Refuse settings that no model can be run with.

    Args:
        kv_types: the runtime's cache types.

    Raises:
        ConfigError: a count below 1, or another cache type.
    """
    for name in ("context_tokens", "ubatch_tokens", "threads"):
        if getattr(settings, name) < 1:
            raise ConfigError(f"{name} must be 1 or more, not {getattr(settings, name)}")
    if settings.kv_type not in kv_types:
        raise ConfigError(f"kv_type {settings.kv_type!r} is unknown", hint="Known: " + ", ".join(kv_types) + ".")


def check_context(model: Path, wanted: int, longest: int) -> None:
    """Refuse a context that the model was not made for.

    Raises:
        ConfigError: it is too long.
    """
    if wanted > longest:
        raise ConfigError(
            f"{model}: made for {longest} tokens, not for a context of {wanted}",
            hint="Use a smaller context, or export the model again with a larger one.",
        )


def settings_here(settings: Settings, threads: int | None = None) -> Settings:
    """An artifact's settings for this machine: more threads than it has cores would only wait for each other.

    Args:
        threads: the user's own number; None: the artifact's, as far as there are cores.

    Raises:
        ConfigError: a number below 1.
    """
    if threads is not None and threads < 1:
        raise ConfigError(f"threads must be 1 or more, not {threads}")
    return msgspec.structs.replace(settings, threads=threads or max(1, min(settings.threads, allowed_cores())))
