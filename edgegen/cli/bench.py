"""`edgegen bench BUILD...`: how fast artifacts run, side by side, here or on another machine."""

from __future__ import annotations

import sys
from typing import Annotated

import typer

from edgegen.cli import options
from edgegen.cli.render import progress, write_json
from edgegen.errors import ConfigError


def bench(
    builds: Annotated[
        list[str],
        typer.Argument(help="What `edgegen compress` wrote, or artifact folders.", show_default=False, metavar="BUILD"),
    ],
    target: Annotated[str, typer.Option("--target", "-t", help="Only these of compared targets, like gguf,onnx.")] = "",
    runtime: Annotated[
        str,
        typer.Option("--runtime", help="Runtimes, like onnxruntime,llama.cpp; else the first installed."),
    ] = "",
    threads: Annotated[
        str | None, typer.Option("--threads", help="Like 1,2,4; else the artifact's own number and 1.")
    ] = None,
    prompt: Annotated[str, typer.Option("--prompt", help="Prompt lengths in tokens.")] = "64,512",
    decode: Annotated[int, typer.Option("--decode", help="Tokens decoded after the shortest prompt.")] = 128,
    repeats: Annotated[int, typer.Option("--repeats", help="Fresh processes for each number.")] = 5,
    on: Annotated[str, typer.Option("--on", help="Measure on another machine: ssh://user@host:22/folder.")] = "",
    python: Annotated[str, typer.Option("--python", help="The interpreter there that has edgegen.")] = "python3",
    ssh: Annotated[str, typer.Option("--ssh", help="How to start SSH, like 'ssh -i key'.")] = "ssh",
    out: Annotated[
        str | None, typer.Option("--out", "-o", help="The record's file; else bench.json in BUILD.", show_default=False)
    ] = None,
    json: options.Json = False,
    quiet: options.Quiet = False,
) -> None:
    """Measure load, time to first token, prefill, decoding and memory, each several times in fresh processes.

    Exit codes: 0 all were measured, 7 one could not be (the others are kept).
    """
    numbers = {"threads": _numbers("--threads", threads or ""), "prompt_tokens": _numbers("--prompt", prompt)}
    with progress(quiet) as notify:
        from edgegen.sdk.bench import bench as measure

        found = measure(
            builds,
            targets=_names(target),
            runtimes=_names(runtime),
            **numbers,
            decode_tokens=decode,
            repeats=repeats,
            on=on,
            python=python,
            ssh=ssh,
            out=out,
            notify=notify,
        )
    from edgegen.receipt import plots
    from edgegen.receipt.bench import bench_lines

    if json:
        write_json(found)
    else:
        sys.stdout.write("\n".join(bench_lines(found)) + "\n")
    if not quiet and not plots.available():
        sys.stderr.write("no drawing: matplotlib is not installed (pip install 'edgegen[compress]')\n")
    if any(row.error for row in found.rows):
        raise typer.Exit(7)


def _names(text: str) -> tuple[str, ...]:
    return tuple(dict.fromkeys(name.strip().lower() for name in text.split(",") if name.strip()))


def _numbers(option: str, text: str) -> tuple[int, ...]:
    words = [word.strip() for word in text.split(",") if word.strip()]
    if not all(word.isascii() and word.isdigit() and int(word) > 0 for word in words):
        raise ConfigError(f"{option}: {text!r} is not a list of numbers above 0", hint="Write it like 1,2.")
    return tuple(int(word) for word in words)
