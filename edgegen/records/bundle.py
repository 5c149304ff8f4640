"""A release as a device receives it: one small signed manifest that names content-addressed files.

The manifest is the TUF target. It is verified over its exact bytes and keeps keys that this version does not know
(`forbid_unknown_fields` is off here, unlike in configuration), so that an older device can read a newer manifest.
"""

from __future__ import annotations

import msgspec

from edgegen.records.plan import Settings, Terms

MANIFEST_SCHEMA = 1


class Signed(msgspec.Struct, frozen=True):
    """Base of everything that is signed: unknown keys are kept out of the way, not refused."""


class Segment(Signed, frozen=True):
    """A stretch of a file, cut at tensor boundaries: the unit of resuming and of delta updates."""

    bytes: int
    digest: str
    """`sha256:<hex>`."""
    name: str = ""
    """The tensor that it holds, empty for headers and padding."""


class BundleFile(Signed, frozen=True):
    """One file of the release."""

    path: str
    """Relative, POSIX, no `..`."""
    bytes: int
    digest: str
    segments: tuple[Segment, ...] = ()
    """In order, adding up to `bytes`; empty: the file is one segment."""


class Compat(Signed, frozen=True):
    """What a device must be to take the release."""

    arch: tuple[str, ...]
    """`aarch64`, `x86_64`; empty: any."""
    runtimes: tuple[str, ...]
    """Names of runtimes that open the artifact, preferred first."""
    runtime_versions: str = ""
    """PEP 440 specifier of the preferred runtime, such as `>=0.3.30`."""
    min_ram_bytes: int = 0
    min_agent: str = ""
    """Least edgegen version of the agent."""


class Golden(Signed, frozen=True):
    """A prompt whose answer is known: the self-test before and after the switch."""

    ids: tuple[int, ...]
    tokens: tuple[int, ...]
    """Greedy continuation of the artifact on the machine that packed it."""
    log_prob: float
    """Mean log-probability of those tokens, nats."""


class Health(Signed, frozen=True):
    """When a release counts as worse than what it replaces."""

    load_timeout_s: float = 60.0
    max_rss_bytes: int | None = None
    min_tokens_per_s: float | None = None
    min_golden_prefix: int = 8
    """Tokens of each golden answer that must agree from the start; processors differ in int8 kernels."""
    max_log_prob_drop: float = 0.25
    """Nats per token that the golden answers may be less likely than when packed."""
    probation_s: float = 60.0
    max_restarts: int = 2
    max_error_fraction: float = 0.05


class ReferenceProfile(Signed, frozen=True):
    """How the artifact's outputs looked when it was packed: what drift is measured against."""

    edges: dict[str, tuple[float, ...]] = {}
    """Metric → ascending edges of its histogram."""
    counts: dict[str, tuple[int, ...]] = {}
    """Metric → one count more than edges: below the first … above the last."""


class Provenance(Signed, frozen=True):
    """Where the release comes from."""

    model: str
    model_digest: str
    data_digest: str
    plan_digest: str
    parent: str = ""
    """Digest of the manifest that this release follows, empty for the first."""
    lineage: str = ""
    """One id from model to report: the plan's."""
    profile: str = ""
    """Name of the profile that it was planned for."""
    prompt: str = ""
    """Name and version of the prompt in its chat template (`edgegen prompt use`); empty: the model's own template."""
    terms: Terms | None = None
    """What the plan's prediction is made of: reports of speed and memory are held against it. None where it does not
    hold, as with an adapter."""


class Manifest(Signed, frozen=True):
    """Everything about a release. `manifest.json`."""

    schema: int
    name: str
    """Of the product, `[a-z0-9][a-z0-9-]*`."""
    version: str
    """Semantic version."""
    created: str
    """UTC, ISO 8601."""
    epoch: int
    """Anti-downgrade: a device refuses a release with a lower epoch than the highest it has confirmed."""
    kind: str
    """`full`; `light` (prompts, template, settings) or `adapter` (LoRA), which refer to an installed `base`."""
    target: str
    """gguf, onnx or litert."""
    entry: str
    """Path of the file that the runtime opens; the base's for light releases."""
    settings: Settings
    files: tuple[BundleFile, ...]
    compat: Compat
    install_bytes: int
    health: Health = Health()
    golden: tuple[Golden, ...] = ()
    reference: ReferenceProfile = ReferenceProfile()
    provenance: Provenance | None = None
    base: str = ""
    """Digest of the base release's manifest, for light and adapter releases."""
    adapter: str = ""
    """Path of the LoRA file that is applied to the base's weights, for adapter releases."""
    license: str = ""


class Bundle(Signed, frozen=True):
    """What a bundle's folder is about. `bundle.json`."""

    schema: int
    target: str
    """The manifest's name among the repository's targets."""
    digest: str
    """Of the manifest's bytes."""
    name: str
    version: str
    role: str
    """`release` or `dev`: which keys vouch for it."""
    signed: bool
    """Whether `metadata/` is there."""
