"""Run `edgegen` as a user does: in this process (quick) or in one of its own (honest)."""

import contextlib
import io
import os
import signal
import subprocess
import sys
from pathlib import Path
from typing import Any, NamedTuple
from unittest import mock

from safetensors.torch import load_file, save_file

from tests.tiny_models import make_tiny

LOOSE = ("--profile", "laptop-x86-16gb", "--max-kl", "0.5", "--vocab", "keep")
"""A device that takes anything, and a limit on KL that random weights can keep."""


class Done(NamedTuple):
    code: int
    out: str
    err: str


def run_cli(*arguments: object) -> Done:
    """The command's own entry point, here: the same exit codes and streams, without starting Python again."""
    from edgegen.cli.app import main

    out, err, code = io.StringIO(), io.StringIO(), 0
    with (
        mock.patch.object(sys, "argv", ["edgegen", *map(str, arguments)]),
        contextlib.redirect_stdout(out),
        contextlib.redirect_stderr(err),
    ):
        try:
            main()
        except SystemExit as stop:
            code = stop.code if isinstance(stop.code, int) else int(stop.code is not None)
    return Done(code, out.getvalue(), err.getvalue())


def start(*arguments: object, **more: Any) -> subprocess.Popen[str]:
    """`python -m edgegen` in a process group of its own.

    A program that was itself started in the background hands down an ignored SIGINT; a person's shell does not.
    """
    root = str(Path(__file__).resolve().parents[2])
    return subprocess.Popen(
        [sys.executable, "-m", "edgegen", *map(str, arguments)],
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
        start_new_session=True,
        preexec_fn=lambda: signal.signal(signal.SIGINT, signal.SIG_DFL),
        env={**os.environ, "PYTHONPATH": root},
        **more,
    )


def run(*arguments: object) -> Done:
    """`python -m edgegen` to its end."""
    process = start(*arguments)
    out, err = process.communicate()
    return Done(process.returncode, out, err)


def make_calm(family: str, folder: Path, *, share: float = 0.1, **more: Any) -> Path:
    """A tiny checkpoint whose blocks add little to what the embedding says: `share` of what they did.

    In a random model that adds much, the runtime's own rounding flips the most likely token of every twentieth
    prediction, and no receipt passes for a reason that has nothing to do with the program.
    """
    make_tiny(family, folder, **more)
    path = folder / "model.safetensors"
    state = load_file(path)
    for name, tensor in state.items():
        if tensor.ndim == 2 and name.split(".")[-2] in ("o_proj", "down_proj", "c_proj", "dense", "fc2"):
            tensor *= share
    save_file(state, path, metadata={"format": "pt"})
    return folder
