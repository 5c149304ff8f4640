"""What the planner learns from, out of the store: medians of a device's answers with a release.

Only the latest answers of each device and release are read, so that one that talks much costs no more than the others.
Answers that failed are left out, those made while the processor was held back are counted and left out, and revoked
devices are not believed.
"""

from __future__ import annotations

import statistics
from collections import Counter, defaultdict
from collections.abc import Iterable

import msgspec

from edgegen.fleet.members import require_group
from edgegen.fleet.release import find_release
from edgegen.fleet.transaction import Row, Transaction, Value
from edgegen.records.bundle import Manifest
from edgegen.records.learning import (
    MIN_ANSWER_TOKENS,
    MIN_PROMPT_TOKENS,
    AskMissing,
    AskObservations,
    AskTrace,
    KnownRelease,
    Missing,
    Observation,
    Observations,
    Trace,
)

_MOST_EACH = 10_000
_MOST_CHARACTERS = 4096
_MOST_DEVICES = 100


def read_observations(tx: Transaction, now_s: float, asked: AskObservations) -> Observations:
    """Medians of each device with each release that it answered with."""
    until_s = now_s if asked.until_s is None else asked.until_s
    since_s = until_s - max(0.0, asked.window_s)
    group, arguments = _of_group(tx, asked.group)
    rows = tx.rows(
        "SELECT * FROM (SELECT generations.device, served.release, served.runtime, devices.attributes, at_s, threads, "
        "answer_tokens, prompt_tokens, tokens_per_s, ttft_s, peak_rss_bytes, throttled, ROW_NUMBER() OVER "
        "(PARTITION BY generations.device, generations.served, threads ORDER BY generations.cursor DESC) AS latest "
        "FROM generations JOIN served ON served.id = generations.served "
        "JOIN devices ON devices.device = generations.device "
        f"WHERE at_s >= ? AND at_s <= ? AND error = '' AND stop <> 'error' AND revoked = 0{group}) AS ranked "
        "WHERE latest <= ?",
        *(since_s, until_s, *arguments, max(1, min(asked.each, _MOST_EACH))),
    )
    loads: dict[tuple[str, str], set[float]] = defaultdict(set)
    for row in tx.rows(
        "SELECT DISTINCT health.device, health.release, load_s FROM health "
        "JOIN devices ON devices.device = health.device "
        f"WHERE at_s >= ? AND at_s <= ? AND load_s IS NOT NULL AND revoked = 0{group}",
        *(since_s, until_s, *arguments),
    ):
        loads[row["device"], row["release"]].add(row["load_s"])
    together: dict[tuple[str, str, str, int | None], list[Row]] = defaultdict(list)
    for row in rows:
        together[row["device"], row["release"], row["runtime"], row["threads"]].append(row)
    found = tuple(
        _observation(device, release, runtime, threads, own, loads.get((device, release), set()))
        for (device, release, runtime, threads), own in sorted(together.items(), key=lambda item: str(item[0]))
    )
    met = {seen.release for seen in found}
    return Observations(at_s=until_s, rows=found, releases=tuple(_releases(tx, met)))


def read_missing(tx: Transaction, now_s: float, asked: AskMissing) -> Missing:
    """Characters that a release's vocabulary writes byte by byte.

    Raises:
        ConfigError: no such release.
    """
    until_s = now_s if asked.until_s is None else asked.until_s
    group, arguments = _of_group(tx, asked.group)
    window = (until_s - max(0.0, asked.window_s), until_s)
    if asked.release:
        digest = find_release(tx, asked.release)
    else:
        most = tx.rows(
            "SELECT served.release, COUNT(*) AS answers FROM generations JOIN served ON served.id = generations.served "
            "JOIN releases ON releases.digest = served.release JOIN devices ON devices.device = generations.device "
            f"WHERE at_s >= ? AND at_s <= ? AND revoked = 0{group} GROUP BY served.release "
            "ORDER BY answers DESC, served.release LIMIT 1",
            *(*window, *arguments),
        )
        digest = most[0]["release"] if most else ""
    rows = tx.rows(
        "SELECT byte_fraction, missing FROM generations JOIN served ON served.id = generations.served "
        "JOIN devices ON devices.device = generations.device "
        f"WHERE at_s >= ? AND at_s <= ? AND revoked = 0 AND served.release = ?{group}",
        *(*window, digest, *arguments),
    )
    fractions = [row["byte_fraction"] for row in rows if row["byte_fraction"] is not None]
    characters: Counter[str] = Counter()
    for row in rows:
        if row["missing"]:
            characters.update(_counts(row["missing"]))
    manifest = _manifests(tx, {digest}).get(digest)
    provenance = manifest.provenance if manifest else None
    return Missing(
        release=digest,
        label=f"{manifest.name}@{manifest.version}" if manifest else "",
        model=provenance.model if provenance else "",
        model_digest=provenance.model_digest if provenance else "",
        answers=len(fractions),
        byte_fraction=statistics.fmean(fractions) if fractions else None,
        characters=dict(characters.most_common(_MOST_CHARACTERS)),
    )


def read_trace(tx: Transaction, now_s: float, asked: AskTrace) -> tuple[Trace, ...]:
    """Releases that something comes from, newest first.

    Raises:
        ConfigError: there is no such lineage, release, device or answer.
    """
    what = asked.what.strip()
    all_releases = tx.rows("SELECT digest, manifest FROM releases ORDER BY published_s DESC")
    manifests = {row["digest"]: msgspec.json.decode(row["manifest"], type=Manifest) for row in all_releases}
    digests = _named_by_report(tx, what)
    if not digests:
        hexes = what.removeprefix("sha256:")
        digests = [
            digest
            for digest, manifest in manifests.items()
            if len(hexes) >= 8 and _lineage(manifest).removeprefix("sha256:").startswith(hexes)
        ]
    if not digests:
        digests = [find_release(tx, what)]
    return tuple(_trace(tx, digest, manifests[digest]) for digest in dict.fromkeys(digests) if digest in manifests)


def _named_by_report(tx: Transaction, what: str) -> list[str]:
    """Digests of what a device runs, or of what gave an answer."""
    running = [row["running"] for row in tx.rows("SELECT running FROM devices WHERE device = ?", what)]
    answered = tx.rows(
        "SELECT DISTINCT served.release FROM generations JOIN served ON served.id = generations.served "
        "WHERE generation = ?",
        what,
    )
    return [digest for digest in (*running, *(row["release"] for row in answered)) if digest]


def _trace(tx: Transaction, digest: str, manifest: Manifest) -> Trace:
    from_ = manifest.provenance
    devices = tx.rows("SELECT device FROM devices WHERE running = ? ORDER BY device LIMIT ?", digest, _MOST_DEVICES)
    (counted,) = tx.rows(
        "SELECT COUNT(*) AS answers FROM generations JOIN served ON served.id = generations.served "
        "WHERE served.release = ?",
        digest,
    )
    return Trace(
        lineage=_lineage(manifest),
        model=from_.model if from_ else "",
        model_digest=from_.model_digest if from_ else "",
        data_digest=from_.data_digest if from_ else "",
        plan_digest=from_.plan_digest if from_ else "",
        profile=from_.profile if from_ else "",
        release=digest,
        label=f"{manifest.name}@{manifest.version}",
        parent=from_.parent if from_ else "",
        devices=tuple(row["device"] for row in devices),
        answers=int(counted["answers"]),
    )


def _lineage(manifest: Manifest) -> str:
    return manifest.provenance.lineage if manifest.provenance else ""


def _of_group(tx: Transaction, group: str) -> tuple[str, tuple[Value, ...]]:
    if group:
        require_group(tx, group)
    return (" AND devices.grp = ?", (group,)) if group else ("", ())


def _observation(
    device: str, release: str, runtime: str, threads: int | None, rows: list[Row], loads: set[float]
) -> Observation:
    free = [row for row in rows if not row["throttled"]]
    speeds = [r["tokens_per_s"] for r in free if r["tokens_per_s"] and r["answer_tokens"] >= MIN_ANSWER_TOKENS]
    firsts = [r for r in free if r["ttft_s"] and r["prompt_tokens"] >= MIN_PROMPT_TOKENS]
    attributes = msgspec.json.decode(rows[0]["attributes"], type=dict[str, str])
    return Observation(
        device=device,
        release=release,
        runtime=runtime,
        profile=attributes.get("profile", ""),
        threads=threads,
        answers=len(free),
        throttled=len(rows) - len(free),
        since_s=min(row["at_s"] for row in rows),
        until_s=max(row["at_s"] for row in rows),
        speed_answers=len(speeds),
        tokens_per_s=_median(speeds),
        first_answers=len(firsts),
        ttft_s=_median(row["ttft_s"] for row in firsts),
        prompt_tokens=_median(row["prompt_tokens"] for row in firsts),
        peak_rss_bytes=_median(row["peak_rss_bytes"] for row in free if row["peak_rss_bytes"]),
        loads=len(loads),
        load_s=_median(loads),
    )


def _median(values: Iterable[float]) -> float | None:
    found = list(values)
    return float(statistics.median(found)) if found else None


def _releases(tx: Transaction, digests: set[str]) -> Iterable[KnownRelease]:
    for digest, manifest in _manifests(tx, digests).items():
        from_ = manifest.provenance
        yield KnownRelease(
            digest=digest,
            label=f"{manifest.name}@{manifest.version}",
            target=manifest.target,
            kind=manifest.kind,
            settings=manifest.settings,
            profile=from_.profile if from_ else "",
            lineage=from_.lineage if from_ else "",
            terms=from_.terms if from_ else None,
        )


def _manifests(tx: Transaction, digests: set[str]) -> dict[str, Manifest]:
    """Of those that the fleet knows."""
    return {
        row["digest"]: msgspec.json.decode(row["manifest"], type=Manifest)
        for row in tx.rows("SELECT digest, manifest FROM releases ORDER BY published_s DESC")
        if row["digest"] in digests
    }


def _counts(missing: str) -> dict[str, int]:
    """Characters and how often, of what a device says; nothing of what cannot be."""
    try:
        found = msgspec.json.decode(missing, type=dict[str, int])
    except msgspec.DecodeError:
        return {}
    return {c: n for c, n in found.items() if len(c) == 1 and c.isprintable() and 0 < n < 1 << 31}
