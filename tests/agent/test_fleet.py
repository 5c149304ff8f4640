"""A real agent and a real fleet server with its signed repository."""

from __future__ import annotations

import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import msgspec
import pytest

from edgegen.bundle.ledger import create_keys
from edgegen.fleet.site import make_site
from edgegen.records.bundle import Manifest
from edgegen.sdk.deploying import deploy_bundle
from tests.agent.releases import configure, pack, running
from tests.agent.serving import make_artifact
from tests.fleet.site import Desk, serving
from tests.simulators.device import whole

pytestmark = pytest.mark.slow


def _await(found: Callable[[], Any], timeout_s: float = 90) -> Any:
    until = time.monotonic() + timeout_s
    while not (value := found()):
        assert time.monotonic() < until
        time.sleep(0.2)
    return value


def test_a_rollout_reaches_the_agent_and_a_bad_one_comes_back(tmp_path: Path) -> None:
    keys = tmp_path / "keys"
    create_keys(keys, root_keys=1, root_threshold=1)
    site = make_site(tmp_path / "site", keys).folder
    artifact = make_artifact(tmp_path / "model")
    good = pack(artifact, tmp_path / "good", keys, "1.0.0")
    wrong = [msgspec.structs.replace(one, tokens=one.tokens[::-1]) for one in _manifest(tmp_path / "good").golden]
    bad = pack(artifact, tmp_path / "bad", keys, "1.1.0", golden=tuple(wrong))
    desk = Desk(str(site / "fleet.db"), time.time())
    try:
        ticket = desk.do("enrolment-token", group="kitchens")
        with serving(site, "--poll", "1") as (url, _):
            (tmp_path / "ticket").write_text(ticket)
            fleet = ["[fleet]", f'url = "{url}"', f'enrol_token_file = "{tmp_path / "ticket"}"', "poll_s = 0.5"]
            config = configure(tmp_path / "device", keys, *fleet)
            config.write_text(f'profile = "raspberry-pi-4-4gb"\n{config.read_text()}')
            home = config.parent / "home"
            with running(config):
                _await(lambda: desk.do("devices"))
                for bundle, state in ((good, "confirmed"), (bad, "failed")):
                    folder = tmp_path / ("good" if bundle is good else "bad")
                    deploy_bundle(str(folder), str(site), group="kitchens", waves=(1.0,))
                    (device,) = _await(
                        lambda wanted=bundle.digest, end=state: [
                            one
                            for one in desk.do("devices")
                            if one.action and (one.action.digest, str(one.action.state)) == (wanted, end)
                        ]
                    )
                    assert whole(home) == good.digest
                assert device.action.reason == "golden"
                assert device.running == good.digest
                assert device.attributes["model"] == "toy-1.0.0"
                assert device.attributes["profile"] == "raspberry-pi-4-4gb"
    finally:
        desk.database.close()


def _manifest(bundle: Path) -> Manifest:
    return msgspec.json.decode(next((bundle / "targets").rglob("*.manifest.json")).read_bytes(), type=Manifest)
