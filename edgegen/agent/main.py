"""`edgegen-agent --config agent.toml`: the program on the device. stdout is results, stderr is the log."""

from __future__ import annotations

import argparse
import signal
import sys
import time
from pathlib import Path

import msgspec

import edgegen
from edgegen.agent.config import AgentConfig, load_config
from edgegen.agent.disk import Disk
from edgegen.agent.home import Home, read_manifest
from edgegen.agent.journal import Journal
from edgegen.agent.orders import LocalOrder, LocalOutcome, drop_order, is_known, place_order, take_outcome
from edgegen.errors import ConfigError, DeviceError, EdgegenError

_LOOK_S = 0.2


def main(arguments: list[str] | None = None) -> int:
    """Run a command; errors are one line and their exit code."""
    options = _parser().parse_args(arguments)
    try:
        config = load_config(Path(options.config))
        return int(_COMMANDS[options.command or "run"](config, options))
    except EdgegenError as error:
        print(f"edgegen-agent: {error}" + (f". {error.hint}" if error.hint else ""), file=sys.stderr)
        return error.exit_code
    except KeyboardInterrupt:
        return 130


def _run(config: AgentConfig, _: argparse.Namespace) -> int:
    from edgegen.agent.agent import Agent, locked, tell

    with locked(Path(config.home)) as alone:
        if not alone:
            raise DeviceError(f"{config.home}: another agent uses this folder", hint="Stop it first.")
        agent = Agent(config)

        def stop(_: int, __: object) -> None:
            agent.stop()

        signal.signal(signal.SIGTERM, stop)
        signal.signal(signal.SIGINT, stop)
        try:
            tell(f"http://{config.serve.host}:{agent.serving.port}/v1 serves {agent.home.current() or 'nothing yet'}")
            agent.run()
        finally:
            agent.close()
    return 0


def _install(config: AgentConfig, options: argparse.Namespace) -> int:
    if not options.target:
        raise ConfigError("--target is empty", hint="Name the release's manifest, as `edgegen repo list` shows it.")
    repository = options.repository or ""
    if repository and not repository.startswith(("http://", "https://")):
        repository = str(Path(repository).resolve())
    return _order(config, LocalOrder(repository=repository, target=options.target), options.json)


def _roll_back(config: AgentConfig, options: argparse.Namespace) -> int:
    return _order(config, LocalOrder(roll_back=True), options.json)


def _order(config: AgentConfig, order: LocalOrder, as_json: bool) -> int:
    """Have the agent that runs carry out an order; do so here if none runs, or if it stops before the order's end."""
    from edgegen.agent.agent import Agent, locked, tell

    def stop(_: int, __: object) -> None:
        raise KeyboardInterrupt  # so that a stop is a stop, and not the release's fault

    signal.signal(signal.SIGTERM, stop)
    home, name = Path(config.home), ""
    outcome: LocalOutcome | None = None
    while outcome is None:
        if name and not is_known(home, name):
            raise DeviceError(
                f"{home}: the order is gone, and no agent has answered it",
                hint="Somebody removed the folder or what was in it; start the agent anew and order again.",
            )
        with locked(home) as alone:
            if alone:
                if name and not is_known(home, name):
                    continue  # it went with its folder since it was last seen
                if name:
                    tell("the agent that ran has stopped; its work goes on here")
                try:
                    agent = Agent(config)
                except EdgegenError:
                    drop_order(home, name)
                    raise
                try:
                    name = name or place_order(home, order)
                    agent.work()
                finally:
                    agent.close()
            elif not name:
                name = place_order(home, order)
        outcome = take_outcome(home, name)
        if outcome is None:
            time.sleep(_LOOK_S)
    return _show(outcome, as_json)


def _show(outcome: LocalOutcome, as_json: bool) -> int:
    found = outcome.installed
    if found is None:
        print(f"edgegen-agent: {outcome.message}" + (f". {outcome.hint}" if outcome.hint else ""), file=sys.stderr)
        return outcome.exit_code
    if as_json:
        print(msgspec.json.encode(found).decode())
    else:
        print(f"{found.phase}: {found.digest}" + (f" ({found.reason}: {found.detail})" if found.detail else ""))
        print(f"{found.bytes_fetched:,} bytes fetched, {found.bytes_reused:,} reused, {found.seconds:.1f} s")
    return outcome.exit_code


def _status(config: AgentConfig, options: argparse.Namespace) -> int:
    """What serves, what runs; read from the folder, whether or not an agent runs."""
    home = Path(config.home)
    found: dict[str, object] = {"current": "", "previous": "", "state": None}
    if (home / "releases").is_dir():
        opened = Home(home, Disk())
        for name in ("current", "previous"):
            digest = opened.current() if name == "current" else opened.previous()
            manifest = read_manifest(opened.release(digest)) if digest else None
            found[name] = f"{manifest.name}-{manifest.version} {digest}" if manifest else ""
        found["state"] = Journal(opened.state, Disk()).state
    if options.json:
        print(msgspec.json.encode(found).decode())
        return 0
    print(f"current   {found['current'] or 'none'}\nprevious  {found['previous'] or 'none'}")
    state = found["state"]
    action = getattr(state, "action", None)
    if action is not None:
        print(f"action    {action.id} {action.phase}" + (f": {action.detail}" if action.detail else ""))
    for digest in getattr(state, "banned", ()):
        print(f"banned    {digest}")
    for note in getattr(state, "notes", ()):
        print(f"note      {note}")
    return 0


def _allow(config: AgentConfig, options: argparse.Namespace) -> int:
    """Forget that a release was worse here."""
    from edgegen.agent.agent import locked

    with locked(Path(config.home)) as alone:
        if not alone:
            raise DeviceError("the agent runs", hint="Stop it, then allow the release, then start it.")
        home = Home(Path(config.home), Disk())
        journal = Journal(home.state, Disk())
        if options.digest not in journal.state.banned:
            raise ConfigError(
                f"no release {options.digest[:80]!r} is banned here",
                hint="`edgegen-agent … status` lists those.",
            )
        left = tuple(digest for digest in journal.state.banned if digest != options.digest)
        journal.save(msgspec.structs.replace(journal.state, banned=left))
    return 0


def _spool(config: AgentConfig, options: argparse.Namespace) -> int:
    """What waits to be sent; read from the file, whether or not an agent runs."""
    from edgegen.agent.telemetry.desk import spool_of
    from edgegen.agent.telemetry.show import spool_view, view_lines
    from edgegen.agent.telemetry.spool import SPOOL

    if options.lines < 1:
        raise ConfigError(f"--lines must be at least 1, not {options.lines}")
    there = (Path(config.home) / SPOOL).is_file()
    if options.tail:
        if there:
            with spool_of(config) as spool:
                for line in spool.waiting(options.lines):
                    print(line.decode())
        return 0
    depth = None
    if there:
        with spool_of(config) as spool:
            depth = spool.depth()
    view = spool_view(config, depth)
    print(msgspec.json.encode(view).decode() if options.json else "\n".join(view_lines(view)))
    return 0


def _forget(config: AgentConfig, options: argparse.Namespace) -> int:
    """Delete the texts that wait."""
    from edgegen.agent.telemetry.desk import spool_of
    from edgegen.agent.telemetry.spool import SPOOL
    from edgegen.records.telemetry import Lane

    count = 0
    if (Path(config.home) / SPOOL).is_file():
        with spool_of(config) as spool:
            count = spool.forget([Lane.TEXT, Lane.DEBUG])
    print(f'{{"forgotten":{count}}}' if options.json else f"{count} reports with text are deleted")
    return 0


_COMMANDS = {
    "run": _run,
    "install": _install,
    "rollback": _roll_back,
    "status": _status,
    "allow": _allow,
    "spool": _spool,
    "forget": _forget,
}


def _parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(
        prog="edgegen-agent", description="Takes signed releases, proves them, serves them, and goes back by itself."
    )
    parser.add_argument("--version", action="version", version=edgegen.__version__)
    parser.add_argument("--config", required=True, help="agent.toml")
    commands = parser.add_subparsers(dest="command", metavar="COMMAND")
    commands.add_parser("run", help="serve and obey (the default)")
    install = commands.add_parser("install", help="take a release, from its fetch to the end of its probation")
    install.add_argument("--repository", help="URL or folder; left out: the configured one")
    install.add_argument("--target", required=True, help="name of its manifest in the repository")
    back = commands.add_parser("rollback", help="serve the release before the current one")
    status = commands.add_parser("status", help="what serves and what is under way")
    spool = commands.add_parser("spool", help="what waits to be reported, and what had to be given up")
    spool.add_argument("--tail", action="store_true", help="print the waiting reports, as they would be sent")
    spool.add_argument("--lines", type=int, default=20, help="how many of them (default: 20)")
    forget = commands.add_parser("forget", help="delete all waiting reports with text")
    for command in (install, back, status, spool, forget):
        command.add_argument("--json", action="store_true", help="one line of JSON")
    allow = commands.add_parser("allow", help="forget that a release was worse here")
    allow.add_argument("digest", help="of its manifest, sha256:...")
    return parser


if __name__ == "__main__":
    sys.exit(main())
