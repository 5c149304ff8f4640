"""What the simulated fleet answers: ordinary sentences, bad answers, and texts made to break a terminal."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from math import gcd

from edgegen.monitor.simulated import GROUPS, LABELS, RELEASES, Simulated, chance, pick
from edgegen.records.monitor import AskOutputs, CanaryRow, DriftCell, OutputRow, Verdict

_STEP = 7919
_KEPT_S = 7 * 86400.0
_MOST_LOOKED_AT = 40_000

_PROMPTS = (
    "Turn on the lights in the kitchen.",
    "Set the living room to 21 degrees at seven.",
    "What is the humidity in the bathroom?",
    "Close all blinds except the study's.",
    "Remind me to water the plants tomorrow.",
    "Play something calm and dim the lights to 30 %.",
)
_ANSWERS = (
    '{"intent": "light_on", "room": "kitchen"}',
    '{"intent": "set_temperature", "room": "living room", "degrees": 21, "at": "07:00"}',
    "The bathroom's humidity is 61 %. It has been falling since this morning, when it was 74 %.",
    '{"intent": "blinds_close", "except": ["study"]}',
    "I will remind you tomorrow at nine to water the plants.",
    '{"intent": "scene", "music": "calm", "brightness": 0.3}',
)
_NEWER = (
    '{"intent": "light_on", "room": "kitchen"}',
    '{"intent": "set_temperature", "room": "living room", "degrees": 21, "at": "07:00", "repeat": false}',
    "The bathroom's humidity is 61 % and falling; this morning it was 74 %.",
    '{"intent": "blinds_close", "rooms": ["kitchen", "living room"], "except": ["study"]}',
    "I will remind you tomorrow at 9:00 to water all the plants.",
    '{"intent": "scene", "music": "calm", "brightness": 0.3}',
)
HOSTILE = (
    "\x1b[2J\x1b[31mred\x1b[0m and \x1b]0;title\x07 and \x1b]52;c;aGk=\x07",
    "[bold red]not markup[/bold red] [link=file:///etc/passwd]click[/link] [@click=app.quit]quit[/]",
    "left \u202eright to left\u202c and \u2066isolated\u2069 and zero\u200bwidth",
    "Z\u0351\u036b\u0343a\u0328\u0321\u035a\u0306l\u0322\u0355g\u0320\u0348o\u0321" * 6,
    "表示 全角文字と絵文字 👩‍👩‍👧‍👦 🏳️‍🌈 and \x9b31m C1, NUL \x00, tab\there",
    "word " * 9000,
    "x" * 30_000,
)
_BAD: tuple[tuple[str, str], ...] = (
    ("REFUSE", "I'm sorry, but I can't help with that."),
    ("REPEAT", "the lights the lights the lights the lights the lights the lights the lights the lights"),
    ("LEAK", "<|im_start|>assistant\nSure.<|im_end|>"),
    ("EMPTY", ""),
    ("LENGTH", "Well, let me think about this step by step, and then about each of the steps again, and then"),
    ("BADJSON", '{"intent": "light_on", "room": '),
)


class MockOutputs:
    """Answers one after another, each a function of its number."""

    def __init__(self, devices: Sequence[Simulated], seed: int, release_of: Callable[[Simulated, float], int]) -> None:
        self._devices, self._seed, self._release_of = devices, seed, release_of
        self._every_s = max(0.05, 30.0 / len(devices))
        self._step = next(step for step in range(_STEP, _STEP + 100_000) if gcd(step, len(devices)) == 1)

    def rows(self, ask: AskOutputs, at_s: float) -> tuple[OutputRow, ...]:
        """The oldest ones after a cursor, or without one the latest; in order."""
        last = int(at_s // self._every_s)
        first = int((at_s - _KEPT_S) // self._every_s)
        numbers = range(max(ask.after, first) + 1, last + 1)
        if ask.device:
            numbers = numbers[self._offset(ask.device, numbers.start) :: len(self._devices)]
        if ask.after == 0:
            numbers = numbers[::-1]
        found: list[OutputRow] = []
        for number in numbers[:_MOST_LOOKED_AT]:
            row = self._row(number)
            if ask.group and GROUPS[self._device(number).group] != ask.group:
                continue
            if ask.flag and ask.flag not in row.flags:
                continue
            if ask.release and ask.release not in (row.label, RELEASES[LABELS.index(row.label)]):
                continue
            found.append(row)
            if len(found) >= ask.limit:
                break
        return tuple(found[::-1] if ask.after == 0 else found)

    def _device(self, number: int) -> Simulated:
        return self._devices[number * self._step % len(self._devices)]

    def _offset(self, name: str, start: int) -> int:
        """How far from `start` the first answer of a device is; beyond all where there is no such device."""
        for offset in range(len(self._devices)):
            if self._device(start + offset).name == name:
                return offset
        return 1 << 40

    def _row(self, number: int) -> OutputRow:
        device = self._device(number)
        at_s = number * self._every_s
        release = self._release_of(device, at_s)
        which = pick(len(_PROMPTS), self._seed, number, 41)
        prompt, answer = _PROMPTS[which], (_NEWER if release == 2 else _ANSWERS)[which]
        flags: tuple[str, ...] = ()
        luck = chance(self._seed, number, 42)
        stop, error = "stop", ""
        if luck < (0.25 if device.is_bad else 0.04):
            flag, answer = _BAD[pick(len(_BAD), self._seed, number, 43)]
            flags = (flag,)
            stop = "length" if flag in ("LENGTH", "REPEAT") else "stop"
        elif luck < 0.3 and device.is_bad:
            flags, stop, error, answer = ("ERROR",), "error", "llama_decode returned \x1b[7m1\x1b[0m", ""
        elif luck > 0.96:
            answer = HOSTILE[pick(len(HOSTILE), self._seed, number, 44)]
        level = ("p2", "p0", "p2", "p1")[device.group]
        rated = chance(self._seed, number, 45)
        speed = device.tokens_per_s(at_s, release)
        return OutputRow(
            cursor=number,
            at_s=at_s,
            device=device.name,
            label=LABELS[release],
            generation=f"chatcmpl-{number:x}",
            prompt_tokens=8 + len(prompt) // 4,
            answer_tokens=len(answer) // 4,
            stop=stop,
            ttft_s=None if error else 6 / speed,
            tokens_per_s=None if error or not answer else speed,
            flags=flags,
            rating=1 if rated > 0.97 else -1 if rated < 0.01 or (flags and rated < 0.2) else 0,
            comment="not what I asked" if flags and rated < 0.2 else "",
            error=error,
            prompt=prompt if level >= "p2" else "",
            answer=answer if level >= "p2" else "",
            level=level,
            late=chance(self._seed, number, 46) < 0.01,
        )


def canaries(device: Simulated, seed: int, at_s: float, release: int) -> tuple[CanaryRow, ...]:
    """The golden prompts' last run on a device."""
    rows = []
    for number in range(len(_PROMPTS)):
        text = (_NEWER if release == 2 else _ANSWERS)[number]
        bad = device.is_bad and number % 2 == 0
        rows.append(
            CanaryRow(
                at_s=at_s - 300 - number,
                release=RELEASES[release],
                prompt=number,
                agreed=7 if bad else 24,
                expected=24,
                log_prob_drop=0.41 if bad else 0.01 * chance(seed, device.number, number, 51),
                intact=True,
                text=text[: len(text) // 2] + " the the the" if bad else text,
            )
        )
    return tuple(rows)


_METRICS: tuple[tuple[str, tuple[float, ...], tuple[int, ...]], ...] = (
    ("answer_tokens", (0, 8, 16, 32, 64, 128, 256), (40, 120, 380, 300, 120, 40)),
    ("mean_log_prob", (-4, -2, -1, -0.5, -0.25, -0.1, 0), (20, 60, 180, 320, 280, 140)),
    ("mean_entropy", (0, 0.1, 0.25, 0.5, 1, 2, 4), (150, 290, 310, 170, 60, 20)),
    ("repetition", (0, 0.05, 0.1, 0.2, 0.4, 0.8, 1), (640, 210, 90, 40, 15, 5)),
    ("ttft_s", (0, 0.2, 0.4, 0.8, 1.6, 3.2, 6.4), (90, 300, 380, 160, 60, 10)),
    ("prompt_tokens", (0, 8, 16, 32, 64, 128, 256), (10, 310, 420, 200, 50, 10)),
)


def drift(seed: int, at_s: float, window_s: float, devices: int) -> tuple[DriftCell, ...]:
    """Metrics by group: the tablets' answers became longer, the gateways say too little to judge."""
    cells = []
    for group, name in enumerate(GROUPS):
        n = int(devices / len(GROUPS) * window_s / 90) // (40 if group == 3 else 1)
        release = 2 if group == 0 else 1 if group == 1 else 0
        for metric, (label, edges, reference) in enumerate(_METRICS):
            shift = 0.9 if group == 2 and label in ("answer_tokens", "ttft_s") else 0.25 if group == 2 else 0.04
            current = _shifted(reference, shift, n, seed, group, metric)
            threshold = 0.05 + 20 / max(n, 1)
            psi = (
                None
                if n < 200
                else round(shift * shift * 0.7 + 0.01 * chance(seed, group, metric, int(at_s // 600)), 3)
            )
            verdict = Verdict.TOO_FEW
            if psi is not None:
                verdict = (
                    Verdict.DRIFT if psi > threshold * 3 else Verdict.WATCH if psi > threshold * 0.8 else Verdict.OK
                )
            cells.append(
                DriftCell(
                    metric=label,
                    group=name,
                    release=RELEASES[release],
                    label=LABELS[release],
                    n=n,
                    psi=psi,
                    js=None if psi is None else psi / 6,
                    wasserstein=None if psi is None else shift * 0.4,
                    threshold=threshold,
                    verdict=verdict,
                    edges=tuple(map(float, edges)),
                    reference=reference,
                    current=current,
                    against="control" if group == 0 and metric >= 4 else "reference",
                    p=None if psi is None else max(0.0001, 0.4 - shift / 2),
                )
            )
    return tuple(cells)


def _shifted(reference: tuple[int, ...], shift: float, n: int, seed: int, group: int, metric: int) -> tuple[int, ...]:
    """The reference with a share of each bin moved to the next one."""
    whole = sum(reference)
    moved = [0.0] * len(reference)
    for place, count in enumerate(reference):
        share = count / whole
        step = min(place + 1, len(reference) - 1)
        moved[place] += share * (1 - shift / 2)
        moved[step] += share * shift / 2
    return tuple(
        round(n * share * (0.97 + 0.06 * chance(seed, group, metric, place))) for place, share in enumerate(moved)
    )
