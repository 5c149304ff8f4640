"""From keys and a bundle to a rollout that a device takes, with the real repository."""

from __future__ import annotations

import json
import subprocess
import sys
import time
import urllib.request
from pathlib import Path

import msgspec
import pytest

from edgegen.bundle.ledger import create_keys
from edgegen.bundle.pack import Packed, write_bundle
from edgegen.bundle.segments import describe_folder
from edgegen.bundle.sign import sign_bundle
from edgegen.bundle.sources import HttpSource
from edgegen.bundle.trust import Trust
from edgegen.errors import ConfigError, TrustError
from edgegen.fleet.site import make_site, open_site
from edgegen.records.bundle import Manifest
from edgegen.sdk.deploying import deploy_bundle
from tests.fleet.site import ROOT, Desk, manifest_bytes, serving
from tests.flows.command import run_cli
from tests.simulators.ddi_device import DdiDevice


def make_bundle(folder: Path, version: str) -> Packed:
    source = folder / "source"
    source.mkdir(exist_ok=True)
    (source / "model.gguf").write_bytes(version.encode() * 1000)
    files, _ = describe_folder(source, ["model.gguf"])
    manifest = msgspec.json.decode(manifest_bytes(version, files=files, install_bytes=10_000), type=Manifest)
    return write_bundle(folder / f"bundle-{version}", manifest, {"model.gguf": source / "model.gguf"})


@pytest.fixture(scope="module")
def keys(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("signing") / "keys"
    create_keys(folder)
    return folder


@pytest.fixture
def site(tmp_path: Path, keys: Path) -> Path:
    return make_site(tmp_path / "site", keys).folder


def test_a_site_holds_no_key_that_vouches_for_a_release(site: Path, keys: Path) -> None:
    names = {path.name for path in (site / "keys").rglob("*.pem")}
    assert names and all(name.startswith(("snapshot", "timestamp")) for name in names)
    make_site(site, keys)  # again
    create_keys(keys.parent / f"other-{time.monotonic_ns()}")
    other = next(keys.parent.glob("other-*"))
    with pytest.raises(ConfigError, match="other keys"):
        make_site(site, other)


def test_a_site_is_made_again_where_it_was_cut_off_and_not_where_it_is_damaged(
    site: Path, keys: Path, tmp_path: Path
) -> None:
    metadata, copied = site / "repository" / "metadata", tmp_path / "cut" / "repository" / "metadata"
    copied.mkdir(parents=True)
    (copied / "1.root.json").write_bytes((metadata / "1.root.json").read_bytes())
    made = make_site(tmp_path / "cut", keys)
    assert (copied / "timestamp.json").read_bytes() == (metadata / "timestamp.json").read_bytes()
    assert open_site(made.folder) == made
    for name in ("timestamp.json", next(path.name for path in metadata.glob("*.targets.json"))):
        whole = (metadata / name).read_bytes()
        for broken in (b"", b"{}", whole[:-20]):
            (metadata / name).write_bytes(broken)
            done = run_cli("fleet", "init", site, "--keys", keys)
            assert done.code == 6 and f"{name}: not metadata" in done.err and not done.out, done
        (metadata / name).write_bytes(whole)
    assert run_cli("fleet", "init", site, "--keys", keys).code == 0


def test_a_site_without_its_database_is_not_taken_for_a_new_one(site: Path, keys: Path) -> None:
    (site / "fleet.db").write_bytes(b"")
    with pytest.raises(ConfigError, match="is empty"):
        open_site(site)
    (site / "fleet.db").unlink()
    with pytest.raises(ConfigError, match="no such file"):
        open_site(site)
    make_site(site, keys)
    open_site(site)


def test_a_store_must_be_one(site: Path, keys: Path, tmp_path: Path) -> None:
    empty, foreign, new = tmp_path / "empty.db", tmp_path / "text", tmp_path / "new.db"
    empty.touch()
    foreign.write_text("a letter, long enough to be looked at" * 100)
    for store in (empty, foreign, f"sqlite:///{empty}", "", "mysql://host/name", new, keys):
        done = run_cli("fleet", "devices", site, "--store", store)
        assert done.code == 2 and done.err.startswith("edgegen: "), (store, done)
    for store in (empty, foreign, "", keys):
        assert run_cli("fleet", "init", tmp_path / "other", "--keys", keys, "--store", store).code == 2
    assert not empty.stat().st_size and not new.exists()
    assert run_cli("fleet", "init", tmp_path / "third", "--keys", keys, "--store", new).code == 0
    assert run_cli("fleet", "devices", tmp_path / "third", "--store", new).code == 0
    assert not (tmp_path / "third" / "fleet.db").exists()


@pytest.mark.slow
def test_a_bundle_reaches_a_device_through_the_command_line(site: Path, keys: Path, tmp_path: Path) -> None:
    def edgegen(*words: str) -> str:
        done = subprocess.run(
            [sys.executable, "-m", "edgegen", *words], capture_output=True, text=True, cwd=ROOT, check=False
        )
        assert done.returncode == 0, done.stderr
        return done.stdout

    ticket = edgegen("fleet", "token", str(site), "--group", "kitchens").strip()
    with serving(site, "--poll", "1") as (url, _):
        device = DdiDevice("pi-1", url)
        device.enrol(ticket)
        packed = make_bundle(tmp_path, "1.0.0")
        sign_bundle(packed.folder, keys)
        said = edgegen("deploy", str(packed.folder), "--fleet", str(site), "--group", "kitchens", "--waves", "100%")
        assert "rollout 1: kitchen 1.0.0 to 1 devices of kitchens" in said
        href = device.poll()["deploymentBase"]["href"]
        _, told = device.call("GET", href.removeprefix(url))
        (chunk,) = told["deployment"]["chunks"]
        words = {entry["key"]: entry["value"] for entry in chunk["metadata"]}
        root = (keys / "root.json").read_bytes()
        trust = Trust(tmp_path / "trust", root, HttpSource(words["edgegen.repository"]), now=time.time)
        trust.refresh()
        proven = trust.manifest(words["edgegen.target"])
        assert proven.digest == packed.about.digest == "sha256:" + chunk["artifacts"][0]["hashes"]["sha256"]
        for artifact in chunk["artifacts"]:
            link = artifact["_links"]["download-http"]["href"].removeprefix(url)
            with urllib.request.urlopen(url + link, timeout=20) as answer:
                assert len(answer.read()) == artifact["size"]
        for _ in range(5):
            device.step()
        assert device.installed == [packed.about.digest]
        shown = json.loads(edgegen("fleet", "rollout", str(site), "1", "--json"))
        assert shown["state"] == "finished"


def test_what_the_repositorys_keys_do_not_vouch_for_is_not_deployed(site: Path, keys: Path, tmp_path: Path) -> None:
    desk = Desk(str(site / "fleet.db"))
    unsigned = make_bundle(tmp_path, "1.0.0")
    with pytest.raises(ConfigError, match="not signed"):
        deploy_bundle(str(unsigned.folder), str(site), group="kitchens")
    strange = tmp_path / "strange"
    create_keys(strange)
    sign_bundle(unsigned.folder, strange)
    with pytest.raises(TrustError):
        deploy_bundle(str(unsigned.folder), str(site), group="kitchens")
    assert not desk.do("rollouts")
    desk.database.close()
