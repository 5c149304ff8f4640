"""What devices with known true coefficients would report: times by the cost model itself, with noise.

So a test that finds the truth again shows that the estimation is right, not that the cost model is.
"""

from __future__ import annotations

import random

import msgspec

from edgegen.catalog import load_profile, load_target
from edgegen.catalog.learned import with_numbers
from edgegen.planner.cost import device_of, prefill_s, token_parts, token_s_of
from edgegen.records.learning import KnownRelease, Observation, Observations
from edgegen.records.plan import Settings, Terms
from edgegen.records.profile import Number, Profile

TARGETS = {name: load_target(name) for name in ("gguf", "onnx", "litert")}
PROFILE = load_profile("raspberry-pi-4-4gb")
SETTINGS = Settings(context_tokens=512, ubatch_tokens=64, threads=4, kv_type="f16")
EXTRA_RSS = 30_000_000
LOAD_BYTES_PER_S = 5e7


def terms_of(weights: int, mix: dict[str, float], *, layers: int = 24, target: str = "gguf") -> Terms:
    """A model of so many weights, of which each grid has its share."""
    counts = {grid: int(weights * share) for grid, share in mix.items()}
    size = sum(count * TARGETS[target].grid(grid).bits_per_weight / 8 for grid, count in counts.items())
    return Terms(
        layers=layers,
        read_bytes=size,
        weights=counts,
        prompt_weights=counts,
        cached_numbers=0.0,
        model_bytes=int(1.1 * size),
        rss_bytes=1.1 * size + 6e7,
    )


def release(number: int, terms: Terms | None, *, target: str = "gguf", kind: str = "full") -> KnownRelease:
    return KnownRelease(
        digest=f"sha256:{number:064x}",
        label=f"kitchen@1.{number}.0",
        target=target,
        kind=kind,
        settings=msgspec.structs.replace(SETTINGS, kv_type=next(iter(TARGETS[target].kv_bits))),
        profile=PROFILE.name,
        terms=terms,
    )


ONE = (release(0, terms_of(130_000_000, {"q8_0": 0.3, "q4_k": 0.7})),)
SEVERAL = (
    release(0, terms_of(130_000_000, {"q8_0": 0.2, "q4_k": 0.8})),
    release(1, terms_of(400_000_000, {"q8_0": 1.0}, layers=16)),
    release(2, terms_of(20_000_000, {"q4_k": 0.5, "q6_k": 0.5}, layers=6)),
)
"""Bound by reading and by computing: together they tell the two apart."""


def scaled(profile: Profile, *, bandwidth: float = 1.0, kernels: float = 1.0, dispatch: float = 1.0) -> Profile:
    """The profile with gguf's coefficients multiplied."""
    device = device_of(profile, TARGETS["gguf"], SETTINGS)
    own = profile.device.bandwidth_bytes_per_s
    numbers: dict[str, Number | None] = {
        "device.bandwidth_bytes_per_s": Number(own.value * bandwidth, own.source),
        "overhead_s_per_layer_token.gguf": Number(device.dispatch_s * dispatch, "assumed"),
    }
    for table, costs in (
        ("kernel_ns_per_weight", device.seconds_per_weight),
        ("prefill_ns_per_weight", device.prefill_seconds_per_weight),
    ):
        numbers |= {f"{table}.{grid}": Number(1e9 * kernels * cost, "assumed") for grid, cost in costs.items()}
    return with_numbers(profile, numbers)


def speed(profile: Profile, of: KnownRelease) -> float:
    """Tokens a second as the profile predicts them."""
    assert of.terms is not None
    device = device_of(profile, TARGETS[of.target], of.settings)
    return 1 / token_s_of(token_parts(of.terms, device, prompt_tokens=1))


def observed(
    true: Profile, of: KnownRelease, *, device: str = "pi-0", answers: int = 50, noise: float = 0.03, seed: int = 0
) -> Observation:
    """What one device of the true coefficients measures with one release."""
    assert of.terms is not None
    dice = random.Random(f"{seed} {device} {of.digest}")
    made = device_of(true, TARGETS[of.target], of.settings)
    token = speed(true, of)
    first_s = 64 * prefill_s(of.terms, made, together=64) + 1 / token
    return Observation(
        device=device,
        release=of.digest,
        runtime="llamacpp 0.3",
        profile="",
        threads=4,
        answers=answers,
        throttled=0,
        since_s=1.7e9,
        until_s=1.7e9 + 86400,
        speed_answers=answers,
        tokens_per_s=token * dice.lognormvariate(0, noise),
        first_answers=answers,
        ttft_s=first_s * dice.lognormvariate(0, noise),
        prompt_tokens=64.0,
        peak_rss_bytes=of.terms.rss_bytes + EXTRA_RSS,
        loads=1,
        load_s=of.terms.model_bytes / LOAD_BYTES_PER_S,
    )


def fleet(
    true: Profile, releases: tuple[KnownRelease, ...], *, devices: int = 1, answers: int = 50, noise: float = 0.03
) -> Observations:
    """Every device with every release."""
    rows = [
        observed(true, of, device=f"pi-{number}", answers=answers, noise=noise)
        for number in range(devices)
        for of in releases
    ]
    return Observations(at_s=1.8e9, rows=tuple(rows), releases=releases)
