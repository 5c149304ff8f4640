"""`edgegen`: the command and its error handling.

Every command raises `EdgegenError`; here, and only here, an error becomes one line on stderr and an exit code.
"""

from __future__ import annotations

import logging
import os
import sys
from typing import Annotated

import typer

from edgegen import __version__
from edgegen.cli import (
    bench,
    compress,
    data,
    deploy,
    device,
    distill,
    doctor,
    emulate,
    evaluate,
    explain,
    finetune,
    fleet,
    keys,
    learn,
    models,
    monitor,
    pack,
    plan,
    profiles,
    prompt,
    repo,
    run,
    telemetry,
    verify,
)
from edgegen.cli.render import fail
from edgegen.errors import DeviceError, EdgegenError, UnsupportedError

app = typer.Typer(
    name="edgegen",
    help="Pick a device, give a model and your data, get artifacts that fit the device, proven on its own runtime.",
    no_args_is_help=True,
    add_completion=False,
    pretty_exceptions_enable=False,
    rich_markup_mode=None,
)
app.add_typer(profiles.app, name="profiles", help="List devices, show one, or measure this machine.")
app.add_typer(data.app, name="data")
app.add_typer(models.app, name="models")
app.command("finetune")(finetune.finetune)
app.command("distill")(distill.distill)
app.command("evaluate")(evaluate.evaluate)
app.command("explain")(explain.explain)
app.add_typer(prompt.app, name="prompt")
app.command("plan")(plan.plan)
app.command("compress")(compress.compress)
app.command("verify")(verify.verify)
app.command("run")(run.run)
app.command("pack")(pack.pack)
app.add_typer(keys.app, name="keys")
app.add_typer(repo.app, name="repo")
app.command("bench")(bench.bench)
app.command("deploy")(deploy.deploy)
app.add_typer(device.app, name="device", help="Set devices up over ssh.")
fleet.app.add_typer(telemetry.app)
app.add_typer(fleet.app, name="fleet", help="Bring releases to many devices: serve, let devices in, steer rollouts.")
app.command("learn")(learn.learn)
app.command("monitor")(monitor.monitor)
app.add_typer(
    emulate.app, name="emulate", help="Run artifacts on a device's own processor core: set it up, say what is."
)
app.command("doctor")(doctor.doctor)


_RESUMED = (["compress"], ["plan"], ["finetune"], ["distill"])
"""Commands that keep their finished stages."""


def _show_version(value: bool) -> None:
    if value:
        typer.echo(f"edgegen {__version__}")
        raise typer.Exit


@app.callback()
def _options(
    version: Annotated[
        bool, typer.Option("--version", callback=_show_version, is_eager=True, help="Show the version.")
    ] = False,
) -> None:
    """Pick a device, give a model and your data, get artifacts that fit the device, proven on its own runtime."""


def main() -> None:
    """Entry point: run a command, turn errors into exit codes (see `edgegen.errors`)."""
    # Nothing is sent or looked up unasked: third parties' telemetry and advice are off.
    os.environ.setdefault("ORT_DISABLE_TELEMETRY", "1")
    os.environ.setdefault("HF_HUB_DISABLE_TELEMETRY", "1")
    os.environ.setdefault("TOKENIZERS_PARALLELISM", "false")
    for name in ("torchao", "torch.utils._pytree"):  # what a library says on import, of processors that are not here
        logging.getLogger(name).setLevel(logging.ERROR)
    try:
        app(prog_name="edgegen")
    except EdgegenError as error:
        fail(error)
    except (KeyboardInterrupt, SystemExit) as stop:  # typer turns the first into the second
        if isinstance(stop, SystemExit) and stop.code != 130:
            raise
        resumed = sys.argv[1:2] in _RESUMED or (sys.argv[1:2] == ["run"] and sys.argv[2].endswith(".toml"))
        goes_on = "; the same command goes on where this one was" if resumed else ""
        sys.stderr.write(f"\nstopped{goes_on}\n")
        sys.exit(130)
    except BrokenPipeError:
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
        sys.exit(1)
    except MemoryError:
        fail(DeviceError("out of memory", hint="Close other programs or use a machine with more memory."))
    except ModuleNotFoundError as error:
        from edgegen.cli.doctor import missing_extras

        name = (error.name or "").partition(".")[0]
        extras = missing_extras(name)
        if not extras:
            raise
        install = f"pip install 'edgegen[{','.join(extras)}]'"
        fail(UnsupportedError(f"this command needs {name}, which is not installed: {install}"))


if __name__ == "__main__":
    main()
