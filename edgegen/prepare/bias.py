"""Who and what a data set speaks of, how kindly, and what would even it out.

Representation: how many rows name each group of people, against the largest of its category. Sentiment: the mean of
VADER's compound score (Hutto and Gilbert 2014; English) of those rows, with a bootstrap interval of its difference from
the category's other rows. Topics: labels where there are some, else k-means on TF-IDF. Counting words finds neither
irony nor who is meant: it shows where to look.
"""

from __future__ import annotations

import re
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import msgspec
import numpy as np

from edgegen.common.codec import load_toml
from edgegen.prepare.stage import text_of
from edgegen.records.base import Record
from edgegen.records.dataset import Row
from edgegen.records.recipe import Balance, Bias

GROUPS: dict[str, dict[str, tuple[str, ...]]] = {
    "gender": {
        "women": (
            "she",
            "her",
            "hers",
            "woman",
            "women",
            "girl",
            "girls",
            "mother",
            "mom",
            "sister",
            "daughter",
            "wife",
        ),
        "men": ("he", "him", "his", "man", "men", "boy", "boys", "father", "dad", "brother", "son", "husband"),
    },
    "age": {
        "young": ("child", "children", "kid", "kids", "teenager", "young", "baby", "student"),
        "old": (
            "elderly",
            "old man",
            "old woman",
            "grandmother",
            "grandfather",
            "grandma",
            "grandpa",
            "senior",
            "retired",
        ),
    },
    "religion": {
        "christian": ("christian", "christians", "church", "bible"),
        "muslim": ("muslim", "muslims", "mosque", "quran", "islam"),
        "jewish": ("jewish", "jew", "jews", "synagogue", "torah"),
        "hindu": ("hindu", "hindus", "temple", "hinduism"),
        "buddhist": ("buddhist", "buddhists", "buddhism"),
    },
    "origin": {
        "african": ("african", "africans", "africa"),
        "asian": ("asian", "asians", "asia", "chinese", "indian", "japanese"),
        "european": ("european", "europeans", "europe", "german", "french", "british"),
        "american": ("american", "americans", "america"),
        "latin american": ("latino", "latina", "mexican", "brazilian", "latin american"),
    },
    "disability": {"disabled": ("disabled", "wheelchair", "blind", "deaf", "autistic", "disability")},
}
"""Category → group → terms. English, short on purpose, and no more than a start."""

_FEW = 0.5
"""Of the category's largest group: below it a group is under-represented."""
_SHIFT = 0.1
"""Difference of mean sentiment that is worth a look, where its interval excludes 0."""
_LEAST_ROWS = 20
_DRAWS = 500


class GroupReport(Record, frozen=True):
    """One group of people."""

    category: str
    group: str
    rows: int
    share: float
    """Of the category's rows."""
    sentiment: float | None
    """-1 … 1; None below 20 rows."""
    difference: float | None = None
    """To the category's other rows."""
    interval: tuple[float, float] | None = None
    """95 %, of the difference."""
    flags: tuple[str, ...] = ()


class TopicReport(Record, frozen=True):
    """One topic."""

    name: str
    rows: int
    share: float
    flag: str = ""
    """`over-represented`: more than twice its even share; `under-represented`: less than half."""


class BiasReport(Record, frozen=True):
    """Everything that was found."""

    groups: tuple[GroupReport, ...]
    topics: tuple[TopicReport, ...]
    topics_by: str
    """`label` or `words`."""
    suggestion: str = ""


class Membership(msgspec.Struct, frozen=True):
    """Which rows belong where: for balancing."""

    groups: list[tuple[str, ...]]
    """Of each row: `category/group`."""
    topics: list[str]


def load_groups(path: str) -> dict[str, dict[str, tuple[str, ...]]]:
    """Category → group → terms, from a file or edgegen's own.

    Raises:
        ConfigError: the file says something else.
    """
    if not path:
        return GROUPS
    return load_toml(Path(path), dict[str, dict[str, tuple[str, ...]]])


def check_bias(rows: Sequence[Row], wanted: Bias, key: str) -> tuple[BiasReport, Membership]:
    """Count and compare.

    Args:
        key: of the label that is a topic.
    """
    from vaderSentiment.vaderSentiment import SentimentIntensityAnalyzer

    texts = [text_of(row) for row in rows]
    score = SentimentIntensityAnalyzer().polarity_scores
    feelings = np.array([score(text[:5000])["compound"] for text in texts])
    groups, belongs = _groups(texts, feelings, load_groups(wanted.groups))
    topics, by = topics_of(rows, texts, wanted.topics, key)
    names = sorted(set(topics))
    even = len(rows) / max(1, len(names))
    found = []
    for name in names:
        count = topics.count(name)
        flag = "over-represented" if count > 2 * even else "under-represented" if count < even / 2 else ""
        found.append(TopicReport(name=name, rows=count, share=count / len(rows), flag=flag))
    found.sort(key=lambda topic: -topic.rows)
    flagged = any(group.flags for group in groups)
    uneven = any(topic.flag for topic in found)
    advice = []
    if flagged:
        advice.append("--balance group weighs rows of under-represented groups up")
    if uneven:
        advice.append(f"--balance {'label' if by == 'label' else 'topic'} evens topics out")
    return BiasReport(tuple(groups), tuple(found), by, "; ".join(advice)), Membership(belongs, topics)


def _groups(
    texts: Sequence[str], feelings: Any, known: dict[str, dict[str, tuple[str, ...]]]
) -> tuple[list[GroupReport], list[tuple[str, ...]]]:
    lowered = [text.lower() for text in texts]
    named: dict[tuple[str, str], Any] = {}
    for category, groups in known.items():
        for group, terms in groups.items():
            pattern = re.compile(r"\b(" + "|".join(re.escape(term.lower()) for term in terms) + r")\b")
            named[category, group] = np.array([bool(pattern.search(text)) for text in lowered], dtype=bool)
    reports = []
    dice = np.random.default_rng(0)
    for (category, group), mask in named.items():
        peers = [other for (cat, _), other in named.items() if cat == category]
        largest = max(int(other.sum()) for other in peers)
        total = int(np.any(peers, axis=0).sum())
        count, flags = int(mask.sum()), []
        difference = interval = None
        others = np.any(peers, axis=0) & ~mask
        if len(peers) > 1 and largest >= _LEAST_ROWS and count < _FEW * largest:
            flags.append("under-represented")
        if count >= _LEAST_ROWS and others.sum() >= _LEAST_ROWS:
            mine, theirs = feelings[mask], feelings[others]
            difference = float(mine.mean() - theirs.mean())
            draws = [
                dice.choice(mine, len(mine)).mean() - dice.choice(theirs, len(theirs)).mean() for _ in range(_DRAWS)
            ]
            low, high = (float(v) for v in np.percentile(draws, [2.5, 97.5]))
            interval = (low, high)
            if abs(difference) >= _SHIFT and (low > 0 or high < 0):
                flags.append("spoken of more kindly" if difference > 0 else "spoken of less kindly")
        reports.append(
            GroupReport(
                category=category,
                group=group,
                rows=count,
                share=count / total if total else 0.0,
                sentiment=float(feelings[mask].mean()) if count >= _LEAST_ROWS else None,
                difference=difference,
                interval=interval,
                flags=tuple(flags),
            )
        )
    belongs = [
        tuple(f"{category}/{group}" for (category, group), mask in named.items() if mask[row])
        for row in range(len(texts))
    ]
    return reports, belongs


def topics_of(rows: Sequence[Row], texts: Sequence[str], count: int, key: str) -> tuple[list[str], str]:
    """Each row's topic, and whether labels or words made them."""
    if rows and sum(key in row.labels for row in rows) >= 0.5 * len(rows):
        return [row.labels[key].value if key in row.labels else "(none)" for row in rows], "label"
    if len(rows) < 4 * count:
        return ["(all)"] * len(rows), "words"
    from sklearn.cluster import MiniBatchKMeans
    from sklearn.feature_extraction.text import TfidfVectorizer

    vectorizer = TfidfVectorizer(stop_words="english", max_features=4000, min_df=2)
    try:
        matrix = vectorizer.fit_transform(texts)
    except ValueError:  # nothing but stop words
        return ["(all)"] * len(rows), "words"
    model = MiniBatchKMeans(n_clusters=count, random_state=0, n_init=3, batch_size=1024).fit(matrix)
    words = vectorizer.get_feature_names_out()
    names = [" ".join(words[i] for i in np.argsort(-center)[:3]) for center in model.cluster_centers_]
    return [names[label] for label in model.labels_], "words"


def balance_weights(belongs: Membership, how: Balance) -> list[float]:
    """What each row weighs, so that classes count alike: N / (classes · rows of the class), at most `limit`; mean 1.

    A row of several groups takes the largest of theirs; of none, 1.
    """
    classes: list[tuple[str, ...]]
    classes = belongs.groups if how.by == "group" else [(topic,) for topic in belongs.topics]
    counts: dict[str, int] = {}
    for names in classes:
        for name in names:
            counts[name] = counts.get(name, 0) + 1
    peers: dict[str, list[int]] = {}
    for name, count in counts.items():
        peers.setdefault(name.partition("/")[0] if how.by == "group" else "", []).append(count)

    def weight(name: str) -> float:
        mine = peers[name.partition("/")[0] if how.by == "group" else ""]
        return min(how.limit, max(1 / how.limit, float(np.mean(mine)) / counts[name]))

    weights = np.array([max((weight(name) for name in names), default=1.0) for names in classes])
    return [float(value) for value in weights / weights.mean()]
