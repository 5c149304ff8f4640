"""Measure artifacts side by side, here or on another machine; writes bench.json and a drawing. Needs no torch."""

from __future__ import annotations

import os
from collections.abc import Sequence
from pathlib import Path

from edgegen.common.codec import save_json
from edgegen.errors import ConfigError, UnsupportedError
from edgegen.receipt import plots
from edgegen.receipt.bench import write_drawing
from edgegen.records.bench import Bench
from edgegen.runtime.registry import RUNTIMES
from edgegen.sdk.artifacts import artifact_folders, is_encoder
from edgegen.sdk.output import Notify, typed_command
from edgegen.sdk.remote import bench_there, parse_host
from edgegen.verify.bench import BenchRequest, Case, run_bench

PROMPT_TOKENS, DECODE_TOKENS, REPEATS = (64, 512), 128, 5


def bench(
    builds: Sequence[str | Path],
    *,
    targets: Sequence[str] = (),
    runtimes: Sequence[str] = (),
    threads: Sequence[int] = (),
    prompt_tokens: Sequence[int] = PROMPT_TOKENS,
    decode_tokens: int = DECODE_TOKENS,
    repeats: int = REPEATS,
    on: str = "",
    python: str = "python3",
    ssh: str = "ssh",
    out: str | Path | None = None,
    notify: Notify | None = None,
) -> Bench:
    """Measure load, time to first token, prefill, decoding and memory.

    Args:
        builds: finished outputs, bake-offs or artifact folders.
        targets: only these of a bake-off; empty: all.
        runtimes: names; each artifact is measured on those that run it. Empty: on the first that is installed.
        threads: empty: each artifact's own number and 1.
        on: `ssh://user@host:port/folder` to measure there, with the interpreter `python` and started by `ssh`.
        out: the record's file; None: bench.json in the first build, bench-HOST.json if measured elsewhere. The drawing
            lies beside it.

    Returns:
        The record; a row that could not be measured says why.

    Raises:
        ConfigError: no artifact, or arguments that are none.
        NetworkError, UnsupportedError, DeviceError: the other machine cannot be used.
    """
    if not builds:
        raise ConfigError("nothing to measure", hint="Name an output of edgegen compress.")
    host = parse_host(on) if on else None
    name = f"bench-{host.name.rpartition('@')[2].replace(':', '-')}.json" if host else "bench.json"
    place = Path(out) if out is not None else Path(builds[0]) / name
    request = BenchRequest(
        cases=_cases([Path(build) for build in builds], targets, runtimes),
        threads=tuple(dict.fromkeys(threads)),
        prompt_tokens=tuple(sorted(set(prompt_tokens))),
        decode_tokens=decode_tokens,
        repeats=repeats,
        command=typed_command(),
    )
    if place.is_dir() or not os.access(place.resolve().parent, os.W_OK):
        raise ConfigError(f"{place}: cannot be written", hint="Choose another file with --out.")
    tell = notify or (lambda *event: None)
    tell("bench", "started", 0, 1)

    def progress(done: int, total: int) -> None:
        tell("bench", "running", done, total)

    if host:
        found = bench_there(request, host, python=python, ssh=ssh, progress=progress)
    else:
        found = run_bench(request, progress)
    save_json(place, found)
    if plots.available():
        write_drawing(place.with_suffix(".svg"), found)
    tell("bench", "finished", 1, 1)
    return found


def _cases(builds: Sequence[Path], targets: Sequence[str], runtimes: Sequence[str]) -> tuple[Case, ...]:
    """Every artifact on every runtime that is asked for.

    Raises:
        ConfigError: no such target or runtime for any of them.
        UnsupportedError: an encoder.
    """
    found: list[Case] = []
    seen: set[str] = set()
    for build in builds:
        for target, folder in artifact_folders(build).items():
            seen.add(target)
            if targets and target not in targets:
                continue
            if is_encoder(folder):
                raise UnsupportedError(
                    f"{build}: an encoder, which decodes nothing", hint="Its speed stands in its receipt."
                )
            name = target if len(builds) == 1 else f"{build.resolve().name}/{target}"
            chosen = [runtime for runtime in runtimes if runtime in RUNTIMES.get(target, {})]
            for runtime in chosen if runtimes else [""]:
                found.append(
                    Case(name=f"{name} {runtime}" if len(chosen) > 1 else name, artifact=str(folder), runtime=runtime)
                )
    lacking = [target for target in targets if target not in seen]
    if lacking:
        raise ConfigError(f"no artifact for target {lacking[0]!r}", hint="There are: " + ", ".join(sorted(seen)) + ".")
    if not found:
        known = sorted({name for target in seen for name in RUNTIMES.get(target, {})})
        raise ConfigError(
            f"{', '.join(runtimes)}: runs none of these artifacts", hint="These do: " + ", ".join(known) + "."
        )
    names = [case.name for case in found]
    if len(set(names)) < len(names):  # two builds of one name
        found = [
            Case(name=f"{number}:{case.name}", artifact=case.artifact, runtime=case.runtime)
            for number, case in enumerate(found, 1)
        ]
    return tuple(found)
