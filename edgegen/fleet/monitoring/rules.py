"""`alerts.toml` in a site's folder, and the rules where there is none.

    [[rule]]
    name = "slow"                  # unique; it is what the alert is called
    metric = "ttft_p95_s"          # one of `METRICS`
    group = "*"                    # each group by itself; "kitchen": that one; "" (the default): the whole fleet
    op = ">"                       # > >= < <=
    threshold = 4.0
    for_s = 300                    # broken for so long before it fires
    window_s = 600                 # of which the metric is taken
    min_n = 50                     # with fewer there is no data, and nothing fires

    [webhook]                      # optional: each alert that fires or ends is sent there as JSON
    url = "https://example.org/hook"
    url_env = "HOOK_URL"           # or: the name of the environment variable that holds it
    secret_env = "HOOK_SECRET"     # signs the body: X-Edgegen-Signature: sha256=<HMAC>

A file replaces the shipped rules; one without rules switches alerts off.
"""

from __future__ import annotations

import math
import os
from pathlib import Path
from urllib.parse import urlsplit

from edgegen.common.codec import did_you_mean, load_toml
from edgegen.errors import ConfigError
from edgegen.records.base import Record

FILE = "alerts.toml"
EVERY_GROUP = "*"
OPERATORS = (">", ">=", "<", "<=")
_WINDOW_S = (60.0, 7 * 86400.0)

METRICS: dict[str, str] = {
    "offline_fraction": "devices that are not heard, of those that ever were",
    "error_fraction": "answers that failed",
    "refusal_fraction": "answers that begin as refusals do",
    "repetition_fraction": "answers that repeat themselves",
    "leak_fraction": "answers that hold markers of the chat template",
    "empty_fraction": "answers of nothing but white space",
    "low_confidence_fraction": "answers less likely than nearly all when the release was packed",
    "bad_json_fraction": "answers that are no JSON where it was asked for",
    "throttled_fraction": "answers made while the device was throttled",
    "ttft_p95_s": "95th percentile of the time to the first token, seconds",
    "tokens_per_s": "median of decoding, tokens a second",
    "tokens_per_s_drop": "how much slower decoding is than in the 24 hours before the window, a fraction",
    "thumbs_down_fraction": "rated answers that were rated bad",
    "drifted_metrics": "metrics that drifted, in the last hour and the one before, whatever the window",
    "device_faults": "devices whose golden answers changed",
    "dropped_reports": "reports that devices had to give up",
}
"""Metric → what it is."""


class Rule(Record, frozen=True):
    """When somebody is to be called."""

    name: str
    metric: str
    threshold: float
    op: str = ">"
    group: str = ""
    for_s: float = 0.0
    window_s: float = 600.0
    min_n: int = 1


class Webhook(Record, frozen=True):
    """Where alerts are sent."""

    url: str = ""
    url_env: str = ""
    secret_env: str = ""
    timeout_s: float = 5.0


class AlertRules(Record, frozen=True):
    """All of the file."""

    schema: int = 1
    rule: tuple[Rule, ...] = ()
    webhook: Webhook | None = None


DEFAULTS = AlertRules(
    rule=(
        Rule("offline", "offline_fraction", 0.2, group="*", for_s=300.0, min_n=5),
        Rule("errors", "error_fraction", 0.05, group="*", for_s=120.0, min_n=50),
        Rule("slow-first-token", "ttft_p95_s", 10.0, group="*", for_s=300.0, min_n=50),
        Rule("slower-than-yesterday", "tokens_per_s_drop", 0.3, group="*", for_s=300.0, min_n=100),
        Rule("thumbs-down", "thumbs_down_fraction", 0.3, group="*", for_s=0.0, window_s=86400.0, min_n=20),
        Rule("template-leaks", "leak_fraction", 0.01, group="*", for_s=120.0, min_n=50),
        Rule("drift", "drifted_metrics", 0.0, group="*"),
        Rule("device-faults", "device_faults", 0.0, group="*"),
        Rule("dropped-reports", "dropped_reports", 0.0, group="*", window_s=3600.0),
    )
)


def load_rules(site: Path | None, *, sends: bool = True) -> AlertRules:
    """A site's rules.

    Args:
        site: its folder; None: the shipped rules.
        sends: whether this process will call the webhook, so that its environment must hold what that needs.

    Raises:
        ConfigError: the file is wrong, or an environment variable that it names is not set.
    """
    path = site / FILE if site else None
    if path is None or not path.exists():
        return DEFAULTS
    found = load_toml(path, AlertRules, may_be_empty=True)
    if found.schema != 1:
        raise ConfigError(f"{path}: schema {found.schema} is not known", hint="This edgegen knows schema 1.")
    seen: set[str] = set()
    for rule in found.rule:
        _check(rule, f"{path}: rule {rule.name!r}")
        if rule.name in seen:
            raise ConfigError(f"{path}: two rules are called {rule.name!r}", hint="Give each its own name.")
        seen.add(rule.name)
    if found.webhook is not None and sends:
        webhook_address(found.webhook, where=str(path))
        webhook_secret(found.webhook, where=str(path))
    return found


def webhook_address(webhook: Webhook, *, where: str = FILE) -> str:
    """The URL that alerts are sent to.

    Raises:
        ConfigError: none, two, or one that is none.
    """
    if bool(webhook.url) == bool(webhook.url_env):
        raise ConfigError(f"{where}: webhook: give either url or url_env")
    url = webhook.url or _variable(webhook.url_env, where)
    try:
        parts = urlsplit(url)
        fits = parts.scheme in ("http", "https") and bool(parts.hostname) and parts.port != 0 and url.isprintable()
    except ValueError:
        fits = False
    if not fits or " " in url:
        # A URL from a variable may be a secret: it is not shown.
        shown = repr(webhook.url) if webhook.url else f"the content of {webhook.url_env}"
        raise ConfigError(f"{where}: webhook: {shown} is no URL", hint="Like https://example.org/hook.")
    if not (math.isfinite(webhook.timeout_s) and 0 < webhook.timeout_s <= 60):
        raise ConfigError(f"{where}: webhook: timeout_s: {webhook.timeout_s:g} is not above 0 and at most 60")
    return url


def webhook_secret(webhook: Webhook, *, where: str = FILE) -> bytes | None:
    """What signs the bodies; None: nothing does.

    Raises:
        ConfigError: the variable is not set.
    """
    return _variable(webhook.secret_env, where).encode() if webhook.secret_env else None


def _variable(name: str, where: str) -> str:
    value = os.environ.get(name, "")
    if not value:
        raise ConfigError(
            f"{where}: webhook: the environment variable {name} is not set",
            hint="Set it for the process that runs `edgegen fleet serve`.",
        )
    return value


def _check(rule: Rule, where: str) -> None:
    if not rule.name.strip() or len(rule.name) > 64 or not rule.name.isprintable():
        raise ConfigError(f"{where}: name: 1 to 64 printable characters are needed")
    if rule.metric not in METRICS:
        raise ConfigError(f"{where}: unknown metric {rule.metric!r}", hint=did_you_mean(rule.metric, list(METRICS)))
    if rule.op not in OPERATORS:
        raise ConfigError(f"{where}: op: {rule.op!r} is not one of {' '.join(OPERATORS)}")
    for key in ("threshold", "for_s", "window_s"):
        if not math.isfinite(getattr(rule, key)):
            raise ConfigError(f"{where}: {key}: must be a finite number")
    if rule.for_s < 0:
        raise ConfigError(f"{where}: for_s: must not be negative")
    if not _WINDOW_S[0] <= rule.window_s <= _WINDOW_S[1]:
        raise ConfigError(f"{where}: window_s: {rule.window_s:g} is not between 60 s and 7 days (604800)")
    if rule.min_n < 1:
        raise ConfigError(f"{where}: min_n: must be at least 1")
