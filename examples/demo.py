"""The main job, end to end, with what comes with the code: a teacher, its data, a device, a receipt, three questions.

python examples/demo.py

It takes the smart-home teacher (7.3 MB at 16 bits) and the example's own requests, asks for at most 1.4 MB on a home
gateway, verifies the file on llama.cpp, and talks to it through the runtime as a device would: no torch, only the
artifact's folder. Then the artifact becomes a signed release; a fleet's server on this machine offers it to an agent,
which proves, tries and serves it, and reports how its answers went. Nothing is downloaded. Run it again and the
finished stages are skipped.
"""

from __future__ import annotations

import json
import sys
import time
from pathlib import Path

from local_agent import ask as ask_api
from local_agent import enrolled, rolled_out, running, serving

import edgegen
from edgegen.bundle.ledger import create_keys
from edgegen.fleet.operate import open_fleet
from edgegen.fleet.operations import WhichDevices
from edgegen.fleet.site import make_site
from edgegen.receipt import summary_lines
from edgegen.records.bundle import Health
from edgegen.records.deployment import RolloutState
from edgegen.runtime.registry import runtime_for
from edgegen.runtime.text import Text

ROOT = Path(__file__).resolve().parent.parent
SMART_HOME = ROOT / "examples" / "smart_home"
PROFILE = "home-gateway-512mb"
MAX_BYTES = 1_400_000
# Six of the target's grids: each one more is measured too, and a demonstration should not take long.
GRIDS = ("q2_k", "q3_k", "q4_k", "q5_k", "q6_k", "q8_0")
QUESTIONS = (
    "dim the kitchen light to 30 percent please",
    "is it warm in the office?",
    "could you play some slow reggae in the garage",
)


def main(out: str = "build-demo") -> int:
    """Compress, show the receipt, ask; exit code 0 only if the artifact keeps every limit."""
    started = time.monotonic()
    result = edgegen.compress(
        str(SMART_HOME / "teacher"),
        profile=PROFILE,
        data=str(SMART_HOME / "requests.jsonl"),
        max_bytes=MAX_BYTES,
        grids=GRIDS,
        vocab="keep",
        out=out,
        notify=tell,
    )
    print("\n".join(summary_lines(result.report, result.plan)))
    print()
    answered = ask(Path(out) / "artifact", QUESTIONS)
    delivered = result.passed and deliver(Path(out), QUESTIONS)
    print(f"receipt   {out}/report.html    (numbers: {out}/report.json)")
    print(f"artifact  {out}/artifact/")
    print(f"took      {time.monotonic() - started:.0f} s")
    print(f"next      edgegen run {out}    (ask it yourself)")
    print(f"          edgegen verify {out}    (on the device, to measure its speed)")
    print("          edgegen profiles    (other devices)")
    print("          edgegen compress MODEL --profile NAME --data YOUR.jsonl")
    print(f"          edgegen monitor {out}/site    (what the device answered, how fast; q leaves)")
    print(f"          edgegen fleet serve {out}/site    and    edgegen-agent --config {out}/device/agent.toml")
    return 0 if answered and delivered else 1


def tell(stage: str, state: str, done: int, total: int) -> None:
    """One line a stage on stderr."""
    if state in ("started", "skipped"):
        print(f"{stage}{' (done before)' if state == 'skipped' else ' …'}", file=sys.stderr, flush=True)


def ask(folder: Path, questions: tuple[str, ...]) -> bool:
    """Print each question with the artifact's reply and function call; True if every call can be read."""
    text = Text(folder)
    artifact = text.artifact
    session = runtime_for(artifact.target).open(folder / artifact.model, artifact.settings)
    readable = True
    try:
        for question in questions:
            ids = text.conversation([{"role": "user", "content": question}])
            answer = text.decode(list(session.generate(ids, max_tokens=96, stop_ids=artifact.eos_ids)))
            reply, _, call = answer.partition("\n")
            readable = show(question, reply, call) and readable
    finally:
        session.close()
    return readable


def deliver(out: Path, questions: tuple[str, ...]) -> bool:
    """Pack and sign the artifact, bring it to a device through a fleet's server, ask the device, and look at what it
    reports; True if it serves the release and its reports arrive."""
    keys, site = out / "keys", out / "site"
    if not (keys / "root.json").is_file():
        create_keys(keys, root_keys=1, root_threshold=1)
    make_site(site, keys)
    health = Health(probation_s=1.0)
    release = edgegen.pack_bundle(out, keys=keys, out=out / "bundle", name="smart-home", version="1.0.0", health=health)
    passed = True
    with (
        serving(site) as server,
        running(enrolled(out / "device", site, server, keys / "root.json", device="demo", group="home")) as url,
    ):
        if not any(row.running == release.bundle.digest for row in open_fleet(str(site)).do("devices", WhichDevices())):
            passed = rolled_out(site, release.folder, "home").state == RolloutState.FINISHED
        print(f"release   smart-home 1.0.0: {len(release.manifest.files)} files, signed, rolled out to group home")
        began_s = time.time()
        for question in questions:
            body = {"messages": [{"role": "user", "content": question}], "max_tokens": 96, "temperature": 0}
            said = ask_api(url, "/v1/chat/completions", model="smart-home-1.0.0", **body)
            answer = said["choices"][0]["message"]["content"]
            ask_api(url, "/v1/feedback", id=said["id"], rating="up" if '"name"' in answer else "down")
        return reported(site, len(questions), began_s) and passed


def reported(site: Path, answers: int, since_s: float) -> bool:
    """Wait until the device's reports are there, and say what they say."""
    until = time.monotonic() + 60
    while time.monotonic() < until:
        (device,) = edgegen.monitor_fleet(str(site), window_s=time.time() - since_s + 5).devices
        if device.generations >= answers and device.thumbs_up + device.thumbs_down >= answers:
            speed = f"{device.tokens_per_s:,.0f} tokens/s" if device.tokens_per_s else "speed unknown"
            print(f"reported  {device.device}: {device.generations} answers, {speed}, {device.thumbs_up} liked\n")
            return True
        time.sleep(0.5)
    print("reported  nothing within a minute\n")
    return False


def show(question: str, reply: str, call: str) -> bool:
    """Print one exchange; True if the call is JSON with a function's name."""
    try:
        found = json.loads(call)
        text = f"{found['name']}({', '.join(f'{key}={value!r}' for key, value in found['arguments'].items())})"
    except (ValueError, KeyError, TypeError, AttributeError):
        text = ""
    print(f"question  {question}\nreply     {reply}\ncall      {text or f'unreadable: {call!r}'}\n")
    return bool(text)


if __name__ == "__main__":
    try:
        sys.exit(main(*sys.argv[1:]))
    except edgegen.EdgegenError as error:
        sys.stderr.write(f"demo: {error}\n  {error.hint}\n")
        sys.exit(error.exit_code)
