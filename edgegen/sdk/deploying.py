"""A bundle on its way to devices: to one over ssh, or to a group of a fleet in waves."""

from __future__ import annotations

import urllib.error
import urllib.request
from pathlib import Path

from edgegen.bundle.layout import target_file
from edgegen.bundle.repository import publish, read_bundle
from edgegen.common.codec import read_bytes
from edgegen.errors import ConfigError, NetworkError
from edgegen.fleet.operate import open_fleet
from edgegen.fleet.operations import Begin, Publish
from edgegen.fleet.site import open_site
from edgegen.push.deploy import push_bundle
from edgegen.records.deployment import Installed, Rollout, Thresholds

__all__ = ["deploy_bundle", "push_bundle"]


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
