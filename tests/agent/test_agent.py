"""The whole agent with real models: signed bundles in, answers out, and back when a release is worse."""

import contextlib
import json
import signal
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import msgspec
import openai
import psutil
import pytest

from edgegen.bundle.pack import write_bundle
from edgegen.bundle.segments import describe_folder
from edgegen.bundle.sign import sign_bundle
from edgegen.records.bundle import Health, Manifest
from tests.agent.releases import agent, configure, install, make_keys, pack, running
from tests.agent.serving import make_artifact, wait_until_healthy
from tests.simulators.device import whole

pytestmark = pytest.mark.slow


@pytest.fixture(scope="module")
def keys(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return make_keys(tmp_path_factory.mktemp("ledger") / "keys")


@pytest.fixture(scope="module")
def artifact(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return make_artifact(tmp_path_factory.mktemp("first"))


@pytest.fixture(scope="module")
def first(artifact: Path, keys: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    out = tmp_path_factory.mktemp("bundles") / "first"
    pack(artifact, out, keys, "1.0.0")
    return out


@pytest.fixture(scope="module")
def second(keys: Path, first: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The same model with other weights."""
    other = make_artifact(tmp_path_factory.mktemp("second"), seed=1)
    out = tmp_path_factory.mktemp("bundles") / "second"
    pack(other, out, keys, "2.0.0", epoch=2)
    return out


@pytest.fixture
def config(keys: Path, tmp_path: Path) -> Path:
    return configure(tmp_path / "device", keys)


def _digest(bundle: Path) -> str:
    return str(json.loads((bundle / "bundle.json").read_bytes())["digest"])


def _url(config: Path) -> str:
    """Root of the API of an agent that runs."""
    return f"http://127.0.0.1:{(config.parent / 'home' / 'port').read_text().strip()}"


def _health(config: Path, digest: str, timeout_s: float = 60) -> dict[str, Any]:
    """Health of the agent as soon as it serves a release."""
    until = time.monotonic() + timeout_s
    while True:
        with contextlib.suppress(OSError):
            found = wait_until_healthy(_url(config), 1)
            if found.get("release") == digest:
                return found
        assert time.monotonic() < until, "it does not serve"
        time.sleep(0.2)


def test_install_serve_update_roll_back(config: Path, first: Path, second: Path) -> None:
    home = config.parent / "home"
    said = install(config, first)
    assert (said["phase"], said["digest"]) == ("confirmed", _digest(first))
    assert said["bytesFetched"] > 0
    with running(config):
        assert _health(config, _digest(first))["status"] == "ok"
        client = openai.OpenAI(base_url=_url(config) + "/v1", api_key="none")
        assert client.models.list().data[0].id == "toy-1.0.0"
        # The agent that runs takes the order of another process.
        assert install(config, second)["phase"] == "confirmed"
        answer = client.chat.completions.create(
            model="toy-2.0.0", messages=[{"role": "user", "content": "hello"}], max_tokens=4
        )
        assert answer.model == "toy-2.0.0"
        assert whole(home) == _digest(second)
        assert whole(home, "previous") == _digest(first)
        # A lower epoch is refused, and the same release again is nothing to do.
        refused = install(config, first, code=6)
        assert refused["reason"] == "downgrade"
        assert install(config, second)["bytesFetched"] == 0
        agent(config, "rollback")
        assert _health(config, _digest(first))["model"] == "toy-1.0.0"
    status = json.loads(agent(config, "status", "--json").stdout)
    assert status["current"].startswith("toy-1.0.0 ")


def test_a_release_that_answers_wrongly_is_banned(
    config: Path, first: Path, artifact: Path, keys: Path, tmp_path: Path
) -> None:
    install(config, first)
    target = json.loads((first / "bundle.json").read_bytes())["target"]
    path = next((first / "targets").glob(f"{Path(target).parent}/*.manifest.json"))
    manifest = msgspec.json.decode(path.read_bytes(), type=Manifest)
    wrong = [msgspec.structs.replace(golden, tokens=golden.tokens[::-1]) for golden in manifest.golden]
    pack(artifact, tmp_path / "wrong", keys, "1.0.1", golden=tuple(wrong))
    said = install(config, tmp_path / "wrong", code=7)
    assert (said["phase"], said["reason"]) == ("failed", "golden")
    assert said["bytesReused"] > 0 and said["bytesFetched"] == 0
    assert install(config, tmp_path / "wrong", code=7)["reason"] == "banned"
    assert whole(config.parent / "home") == _digest(first)


def test_a_release_that_does_not_load_slow_or_large_is_refused(
    config: Path, first: Path, artifact: Path, keys: Path, tmp_path: Path
) -> None:
    install(config, first)
    broken = tmp_path / "broken-artifact"
    broken.mkdir()
    for path in artifact.iterdir():
        (broken / path.name).write_bytes(path.read_bytes())
    model = next(broken.glob("*.gguf"))
    for number, (health, reason) in enumerate(
        [
            (Health(probation_s=0.5, min_tokens_per_s=1e9), "too-slow"),
            (Health(probation_s=0.5, max_rss_bytes=1 << 20), "too-much-memory"),
        ]
    ):
        pack(artifact, tmp_path / reason, keys, f"1.1.{number}", health=health)
        assert install(config, tmp_path / reason, code=7)["reason"] == reason
    model.write_bytes(b"GGUF" + model.read_bytes()[4:2000])
    files, _ = describe_folder(broken, sorted(path.name for path in broken.iterdir()))
    path = next((first / "targets").rglob("*.manifest.json"))
    manifest = msgspec.json.decode(path.read_bytes(), type=Manifest)
    manifest = msgspec.structs.replace(manifest, version="1.2.0", files=files)
    write_bundle(tmp_path / "torn", manifest, {file.path: broken / file.path for file in files})
    sign_bundle(tmp_path / "torn", keys)
    said = install(config, tmp_path / "torn", code=7)
    assert said["reason"] == "load-failed", said
    assert whole(config.parent / "home") == _digest(first)
    assert len(json.loads(agent(config, "status", "--json").stdout)["state"]["banned"]) == 3


def test_a_killed_agent_goes_on(config: Path, first: Path, second: Path) -> None:
    """`kill -9` in the phases that run the model, with the real processes; its children go with it."""
    install(config, first)
    home = config.parent / "home"
    order = {"repository": str(second), "target": json.loads((second / "bundle.json").read_bytes())["target"]}
    (home / "orders" / "local-1-a.json").write_text(json.dumps(order))
    for phase in ("self-test", "probation"):
        with running(config) as process:
            _await(lambda wanted=phase: f'"phase": "{wanted}"' in (home / "state.json").read_text())  # type: ignore[misc]
            children = psutil.Process(process.pid).children()
            process.send_signal(signal.SIGKILL)
        assert whole(home) == (_digest(first) if phase == "self-test" else _digest(second))
        _await(lambda: not any(child.is_running() for child in children))  # noqa: B023
    with running(config):
        assert _health(config, _digest(second))["model"] == "toy-2.0.0"
        _await(lambda: (home / "outcomes" / "local-1-a.json").exists())
    outcome = json.loads((home / "outcomes" / "local-1-a.json").read_bytes())
    assert outcome["installed"]["phase"] == "confirmed"


def test_stops_of_the_service_do_not_ban_a_release(config: Path, artifact: Path, keys: Path, tmp_path: Path) -> None:
    """SIGTERM to the agent and its processes at once, as a service manager sends it, four times in each phase."""
    pack(artifact, tmp_path / "slow", keys, "1.3.0", health=Health(probation_s=4, load_timeout_s=30))
    home = config.parent / "home"
    (home / "orders").mkdir(parents=True)
    target = json.loads((tmp_path / "slow" / "bundle.json").read_bytes())["target"]
    order = {"repository": str(tmp_path / "slow"), "target": target}
    (home / "orders" / "local-1-a.json").write_text(json.dumps(order))
    for phase in ("self-test", "probation"):
        for _ in range(4):
            with running(config) as process:
                _await(
                    lambda wanted=phase: (  # type: ignore[misc]
                        (home / "state.json").is_file()
                        and f'"phase": "{wanted}"' in (home / "state.json").read_text()
                        and '"attempt": 1' in (home / "state.json").read_text()
                    )
                )
                for child in psutil.Process(process.pid).children():
                    child.terminate()
                process.terminate()
                process.wait(30)
            state = json.loads((home / "state.json").read_bytes())
            assert state["action"]["reason"] == "none" and state["banned"] == []
            if state["action"]["phase"] != phase:
                break  # it was faster than the stop
    with running(config):
        _await(lambda: (home / "outcomes" / "local-1-a.json").exists())
    outcome = json.loads((home / "outcomes" / "local-1-a.json").read_bytes())
    assert outcome["installed"]["phase"] == "confirmed"


def _await(holds: Callable[[], bool], timeout_s: float = 60) -> None:
    until = time.monotonic() + timeout_s
    while not holds():
        assert time.monotonic() < until
        time.sleep(0.02)


def test_only_one_agent(config: Path, first: Path) -> None:
    install(config, first)
    with running(config):
        _health(config, _digest(first))
        assert "another agent" in agent(config, "run", code=7).stderr


def test_an_untrusted_bundle_is_refused(config: Path, artifact: Path, tmp_path: Path) -> None:
    others = make_keys(tmp_path / "others")
    pack(artifact, tmp_path / "forged", others, "3.0.0")
    said = install(config, tmp_path / "forged", code=6)
    assert "edgegen-agent: " in said["error"]
    assert not (config.parent / "home" / "current").exists()


def test_a_wrong_configuration_is_one_line(tmp_path: Path, keys: Path) -> None:
    for lines, said in [
        ('[serve]\nhost = "0.0.0.0"', "token_file"),
        ("[serve]\nhots = 1", "Did you mean 'host'?"),
        ("[limits.deadlines_s]\nfech = 1", "unknown phases"),
    ]:
        path = tmp_path / "agent.toml"
        path.write_text(lines + "\n")
        done = agent(path, "status", code=2)
        assert said in done.stderr and len(done.stderr.strip().splitlines()) == 1


def test_the_agent_itself_is_small(config: Path, first: Path) -> None:
    """Without the model's process."""
    install(config, first)
    with running(config) as process:
        _health(config, _digest(first))
        used = psutil.Process(process.pid).memory_info().rss
        assert used < 60e6, used
        children = psutil.Process(process.pid).children()
        assert len(children) == 1
    assert not psutil.pid_exists(children[0].pid)
