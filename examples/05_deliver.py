"""Deliver: a fleet server and an agent on each runtime that is here; an update; a release that goes back by itself.

python examples/05_deliver.py [FOLDER]

All of it on this machine: a server as `edgegen fleet serve` runs it, and one `edgegen-agent` process a runtime, each in
a group of its own. The second release of the first group asks for a speed that no device has: its self-test says so,
the device goes on serving the first one, and the rollout stops.
"""

from __future__ import annotations

import contextlib
import shutil
import sys
from pathlib import Path

from local_agent import ask, enrolled, rolled_out, running, serving
from tiny_checkpoint import make_checkpoint, make_data

import edgegen
from edgegen.agent.runtimes import installed_runtimes
from edgegen.bundle.ledger import create_keys
from edgegen.common.units import format_bytes
from edgegen.fleet.site import make_site
from edgegen.records.bundle import Health
from edgegen.records.deployment import RolloutState

RUNTIMES = {"gguf": "llama.cpp", "onnx": "onnxruntime-genai", "litert": "litert"}


def main(folder: str = "build-examples/deliver") -> int:
    """Compress, pack, serve, roll out, ask, fail, look; exit code 0 if all of it went as it should."""
    place = Path(folder)
    shutil.rmtree(place, ignore_errors=True)
    place.mkdir(parents=True)
    targets = [target for target, runtime in RUNTIMES.items() if runtime in installed_runtimes()]
    print(f"compressing for {', '.join(targets)} …", flush=True)
    edgegen.bake_off(
        str(make_checkpoint(place / "model", hidden=128, vocab=400)),
        profile="laptop-x86-16gb",
        targets=targets,
        data=str(make_data(place / "data.jsonl")),
        grids=("q8_0", "s8_32", "i8_row"),
        vocab="keep",
        out=place / "build",
    )
    create_keys(place / "keys", root_keys=1, root_threshold=1)
    site = make_site(place / "site", place / "keys").folder
    with contextlib.ExitStack() as stack:
        url = stack.enter_context(serving(site))
        print(f"server    {url}")
        root = place / "keys" / "root.json"
        urls = {
            target: stack.enter_context(
                running(enrolled(place / f"device-{target}", site, url, root, device=f"device-{target}", group=target))
            )
            for target in targets
        }
        good = [release(place, target, "1.0.0") for target in targets]
        passed = True
        for bundle, target in zip(good, targets, strict=True):
            passed &= rolled_out(site, bundle, target).state == RolloutState.FINISHED
            passed &= answers(urls[target], target, "1.0.0")
        bad = release(place, targets[0], "1.1.0", Health(min_tokens_per_s=1e9, probation_s=1.0))
        ended = rolled_out(site, bad, targets[0])
        print(f"stopped   rollout {ended.id} of 1.1.0: {ended.reason}")
        passed &= ended.state == RolloutState.ABORTED and answers(urls[targets[0]], targets[0], "1.0.0")
    print(f"next      edgegen fleet devices {site}    (what each device runs, and how its last update ended)")
    print(f"          edgegen fleet audit {site}    (who did what)")
    return 0 if passed else 1


def release(place: Path, target: str, version: str, health: Health | None = None) -> Path:
    """A signed bundle of one runtime's artifact."""
    made = edgegen.pack_bundle(
        place / "build",
        target=target if (place / "build" / target).is_dir() else "",
        keys=place / "keys",
        out=place / "bundles" / f"{target}-{version}",
        name=f"stories-{target}",
        version=version,
        health=health or Health(probation_s=1.0),
    )
    what = format_bytes(made.manifest.install_bytes)
    if made.transfer is not None:
        what += f", {format_bytes(made.transfer.fetched)} of it new"
    print(f"packed    {made.manifest.name} {version}: {what}")
    return made.folder


def answers(url: str, target: str, version: str) -> bool:
    """Whether a device serves a version; prints what it says."""
    health = ask(url, "/healthz")
    said = ask(url, "/v1/completions", model=health["model"], prompt="The old clock", max_tokens=12, temperature=0)
    print(f"{target:<9} {health['model']} on {health['runtime']}: {said['choices'][0]['text']!r}")
    return bool(health["model"].endswith(version) and said["choices"][0]["text"])


if __name__ == "__main__":
    try:
        sys.exit(main(*sys.argv[1:]))
    except edgegen.EdgegenError as error:
        sys.stderr.write(f"deliver: {error}\n  {error.hint}\n")
        sys.exit(error.exit_code)
