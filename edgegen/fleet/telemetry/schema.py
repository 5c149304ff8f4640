"""The tables of telemetry: schema 2 of a fleet's database.

What every table of reports begins with (`_HEAD`):

    cursor      grows with each row of its table, in the order in which rows are committed: `WHERE cursor > ?` is a tail
                that misses nothing. Numbers are left out, and the oldest rows go first.
    stream, seq name the report for ever (unique): `streams.id`, which stands for (device, its stream), and its number.
                Rows that the server itself adds (`events`) have neither.
    at_s        when it happened, by the server's clock as far as that can be told (see `clocks`)
    received_s  when it was taken in
    late        1 if it happened long before it was received, or nobody knows when

Booleans are 0 and 1. NULL is unknown, never 0. A device's group is that of `devices.grp` now: a device that moves takes
its history along. Queries that the indexes are for: a device's window (`device, at_s`), everybody's (`at_s`), a
release's (`served, at_s`, through the few rows of `served`), a tail (`cursor`), an answer's sample and feedback
(`device, generation`). The latest of each device is kept apart in `device_state`, so that the fleet of 10,000 is one
scan of a small table.

**Strings are as devices sent them**: hostile ones hold escapes, markup, control characters. Whoever shows them must
make them harmless. Only U+0000 is replaced, which PostgreSQL cannot hold.
"""

from __future__ import annotations

from enum import IntFlag


class Flag(IntFlag):
    """What is conspicuous about an answer: bits of `generations.flags`. Their names are those that views show."""

    REFUSE = 1
    REPEAT = 2
    LENGTH = 4
    LEAK = 8
    EMPTY = 16
    ERROR = 32
    LOW = 64
    """Less likely under the model itself than nearly all answers when the release was packed."""
    BADJSON = 128


_HEAD = """
    cursor {cursor}, stream BIGINT, seq BIGINT, device TEXT NOT NULL, at_s DOUBLE PRECISION NOT NULL,
    received_s DOUBLE PRECISION NOT NULL, late BIGINT NOT NULL,"""

REPORTS: dict[str, str] = {
    # One answer. `generation` is the API's id; `served` → served.id; `missing` is JSON, '' for none.
    "generations": """
        served BIGINT NOT NULL, generation TEXT NOT NULL, flags BIGINT NOT NULL,
        prompt_tokens BIGINT NOT NULL, answer_tokens BIGINT NOT NULL, stop TEXT NOT NULL, error TEXT NOT NULL,
        queue_s DOUBLE PRECISION, ttft_s DOUBLE PRECISION, tokens_per_s DOUBLE PRECISION, threads BIGINT,
        mean_log_prob DOUBLE PRECISION, mean_entropy DOUBLE PRECISION, distinct_fraction DOUBLE PRECISION,
        byte_fraction DOUBLE PRECISION, missing TEXT NOT NULL, rss_bytes BIGINT, peak_rss_bytes BIGINT,
        temperature_c DOUBLE PRECISION, throttled BIGINT, characters BIGINT, repetition DOUBLE PRECISION,
        distinct2 DOUBLE PRECISION, non_letter_fraction DOUBLE PRECISION, script TEXT, json_valid BIGINT""",
    # Texts: they go earlier than the rest, and `level` is '' where they were erased.
    "samples": """
        generation TEXT NOT NULL, release TEXT NOT NULL, prompt TEXT NOT NULL, answer TEXT NOT NULL,
        level TEXT NOT NULL, why TEXT NOT NULL, redactions BIGINT NOT NULL, cut BIGINT NOT NULL""",
    # A later one of the same answer takes the place of an earlier one; may come before its generation does.
    "feedback": "generation TEXT NOT NULL, rating BIGINT NOT NULL, comment TEXT NOT NULL",
    # mean and variance are JSON.
    "embeddings": """
        release TEXT NOT NULL, what TEXT NOT NULL, n BIGINT NOT NULL, mean TEXT NOT NULL, variance TEXT NOT NULL""",
    # ids are JSON.
    "canaries": """
        release TEXT NOT NULL, prompt BIGINT NOT NULL, agreed BIGINT NOT NULL, expected BIGINT NOT NULL,
        log_prob_drop DOUBLE PRECISION NOT NULL, tokens_per_s DOUBLE PRECISION, intact BIGINT, ids TEXT NOT NULL""",
    "health": """
        release TEXT NOT NULL, uptime_s DOUBLE PRECISION NOT NULL, load_s DOUBLE PRECISION, rss_bytes BIGINT,
        peak_rss_bytes BIGINT, temperature_c DOUBLE PRECISION, throttled BIGINT, free_bytes BIGINT,
        free_ram_bytes BIGINT, spool_reports BIGINT NOT NULL, spool_bytes BIGINT NOT NULL, privacy TEXT NOT NULL""",
    # device is '' where none is concerned; grp only where it is not the device's. See `store.add_event`.
    "events": """
        level TEXT NOT NULL, what TEXT NOT NULL, detail TEXT NOT NULL, release TEXT NOT NULL, grp TEXT NOT NULL""",
    "dropped": """
        lane BIGINT NOT NULL, count BIGINT NOT NULL, first_seq BIGINT NOT NULL, last_seq BIGINT NOT NULL,
        why TEXT NOT NULL""",
}
"""Table → its columns after the head."""

_INDEXES = (
    *((table, "stream, seq", "UNIQUE ") for table in REPORTS),
    *((table, "device, at_s", "") for table in REPORTS if table != "feedback"),
    *((table, "device, generation", "") for table in ("generations", "samples", "feedback")),
    *((table, "at_s", "") for table in ("generations", "samples", "feedback", "canaries", "events", "embeddings")),
    ("generations", "served, at_s", ""),
)

_TABLES = (
    # One for each spool that a device ever had.
    """CREATE TABLE streams (
        id BIGINT PRIMARY KEY, device TEXT NOT NULL, stream TEXT NOT NULL, UNIQUE (device, stream))""",
    # What answers: a release with a prompt template on a runtime. `low_log_prob`: below it an answer is `Flag.LOW`.
    """CREATE TABLE served (
        id BIGINT PRIMARY KEY, release TEXT NOT NULL, template TEXT NOT NULL, runtime TEXT NOT NULL,
        low_log_prob DOUBLE PRECISION NOT NULL, UNIQUE (release, template, runtime))""",
    # The latest of each device that ever reported; the columns from `health_s` on are its last `health`, NULL before.
    """CREATE TABLE device_state (
        device TEXT PRIMARY KEY, heard_s DOUBLE PRECISION NOT NULL, clock_skew_s DOUBLE PRECISION, boot TEXT NOT NULL,
        stored BIGINT NOT NULL, known BIGINT NOT NULL, refused BIGINT NOT NULL, dropped BIGINT NOT NULL,
        generation_s DOUBLE PRECISION, health_s DOUBLE PRECISION, release TEXT, uptime_s DOUBLE PRECISION,
        load_s DOUBLE PRECISION, rss_bytes BIGINT, peak_rss_bytes BIGINT, temperature_c DOUBLE PRECISION,
        throttled BIGINT, free_bytes BIGINT, free_ram_bytes BIGINT, spool_reports BIGINT, spool_bytes BIGINT,
        privacy TEXT)""",
    # Lines that were not taken, by kind of fault (`ingest.Fault`); counted anew when a device sends them again.
    """CREATE TABLE refused (
        device TEXT NOT NULL, fault TEXT NOT NULL, count BIGINT NOT NULL, first_s DOUBLE PRECISION NOT NULL,
        last_s DOUBLE PRECISION NOT NULL, example TEXT NOT NULL, PRIMARY KEY (device, fault))""",
    # Sums since the store was made, for metrics: they never go down, whatever is thrown away. `grp` is the group that
    # the device was in when it reported; `release` is '' unless the server knows it.
    """CREATE TABLE totals (
        grp TEXT NOT NULL, release TEXT NOT NULL, name TEXT NOT NULL, value DOUBLE PRECISION NOT NULL,
        PRIMARY KEY (grp, release, name))""",
)


def telemetry_tables(dialect: str) -> tuple[str, ...]:
    """The statements that make them.

    Args:
        dialect: `sqlite`, where only `INTEGER PRIMARY KEY` is the row's own number, or `postgresql`.
    """
    cursor = "INTEGER PRIMARY KEY" if dialect == "sqlite" else "BIGINT PRIMARY KEY"
    tables = (
        f"CREATE TABLE {name} ({_HEAD.format(cursor=cursor)} {columns.strip()})" for name, columns in REPORTS.items()
    )
    indexes = (
        f"CREATE {unique}INDEX {name}_by_{columns.replace(', ', '_')} ON {name} ({columns})"
        for name, columns, unique in _INDEXES
    )
    return (*_TABLES, *tables, *indexes)
