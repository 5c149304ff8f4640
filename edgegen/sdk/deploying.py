"""A bundle on its way to devices: to one over ssh, or to a group of a fleet in waves."""

from __future__ import annotations

import urllib.error
import urllib.request
from pathlib import Path

from edgegen.bundle.layout import blob_file, target_file
from edgegen.bundle.light import read_manifest
from edgegen.bundle.repository import publish, read_bundle
from edgegen.common.codec import decode_json, read_bytes
from edgegen.common.files import digest_bytes
from edgegen.errors import ConfigError, NetworkError, VerificationError
from edgegen.evaluate.gates import load_gates, require_gates
from edgegen.fleet.operate import open_fleet
from edgegen.fleet.operations import Begin, Publish
from edgegen.fleet.site import open_site
from edgegen.push.deploy import push_bundle
from edgegen.records.bundle import Manifest
from edgegen.records.deployment import Installed, Rollout, Thresholds
from edgegen.records.evaluation import EVALUATION_FILE, Evaluation, Gates

__all__ = ["deploy_bundle", "push_bundle", "require_bundle_gates"]


def deploy_bundle(
    bundle: str,
    fleet: str,
    *,
    group: str,
    waves: tuple[float, ...] = (0.05, 0.25, 1.0),
    thresholds: Thresholds = Thresholds(),
    store: str | None = None,
) -> Rollout:
    """Begin to bring a bundle to a group.

    Args:
        bundle: the folder of a signed bundle, which is published first where the site is a folder; or the
            `name@version` of a release that the fleet had before.
        fleet: a site's folder, or a server's URL.
        waves: cumulative fractions of the group, the last 1.
        store: another database than the site's own file.

    Raises:
        ConfigError: no such bundle, group or site; or the server's repository does not hold the bundle.
        TrustError: the repository's keys do not vouch for the bundle.
        NetworkError: the server does not answer.
    """
    opened = open_fleet(fleet, store)
    release = bundle
    folder = Path(bundle)
    if folder.is_dir():
        about = read_bundle(folder)
        data = read_bytes(folder / target_file(about.target, about.digest))
        if "://" in fleet:
            _require_published(fleet, target_file(about.target, about.digest))
        else:
            site = open_site(Path(fleet), store)
            publish(site.repository, folder, keys=site.keys)
        release = str(opened.do("publish", Publish(data.decode(), about.target)))
    begun: Rollout = opened.do("begin", Begin(release, group, waves, thresholds))
    return begun


def require_bundle_gates(bundle: str | Path, gates: Gates | str) -> Evaluation:
    """Hold the evaluation that a bundle carries against limits; nothing is run.

    Args:
        bundle: a folder.
        gates: limits, or a TOML file of them.

    Returns:
        The evaluation.

    Raises:
        VerificationError: a limit is missed, or the release was never evaluated.
        ConfigError: no bundle, no such file, or a broken one.
    """
    limits = load_gates(gates) if isinstance(gates, str) else gates
    folder = Path(bundle)
    if not folder.is_dir():
        raise ConfigError(
            f"{bundle}: gates are held against a bundle's folder", hint="Name the folder, or leave --gates out."
        )
    evaluation = _carried(folder, read_manifest(folder)[0])
    require_gates(evaluation, limits)
    return evaluation


def _carried(folder: Path, manifest: Manifest) -> Evaluation:
    file = next((file for file in manifest.files if file.path == EVALUATION_FILE), None)
    if file is None:
        kind = "a change that was" if manifest.base else "was"
        raise VerificationError(
            f"{folder}: {manifest.name} {manifest.version} {kind} never evaluated, so no gate is kept",
            hint="Compress with --gates, and pack that.",
        )
    data = read_bytes(folder / blob_file(file.digest))
    if digest_bytes(data) != file.digest:
        raise ConfigError(f"{folder}: its {EVALUATION_FILE} was altered", hint="Pack it again.")
    return decode_json(data, Evaluation, where=f"{folder}: {EVALUATION_FILE}")


def push(bundle: str, address: str, *, folder: str | None = None) -> Installed:
    """Install a bundle on one device over ssh (see `edgegen.push.deploy`)."""
    return push_bundle(Path(bundle), address, folder=folder)


def _require_published(fleet: str, place: str) -> None:
    """Whether a server's repository holds a manifest: devices would ask for it in vain."""
    url = f"{fleet.rstrip('/')}/repository/{place}"
    try:
        with urllib.request.urlopen(urllib.request.Request(url, method="HEAD"), timeout=30):
            return
    except urllib.error.HTTPError as error:
        error.close()
        if error.code == 404:
            raise ConfigError(
                f"{fleet}: its repository does not hold this bundle",
                hint="Publish it on the server: `edgegen repo add SITE/repository BUNDLE --keys SITE/keys`.",
            ) from error
        raise NetworkError(f"{url}: HTTP {error.code}") from error
    except OSError as error:
        raise NetworkError(f"{url}: {getattr(error, 'reason', error)}") from error
