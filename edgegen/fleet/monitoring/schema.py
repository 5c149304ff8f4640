"""The tables of monitoring: schema 3 of a fleet's database.

All can be made anew: from reports (roll-ups, faults) or from what is true now (alerts).

rollups        a cell for each step of time, subject and `served.id` (what answers): sums, and sketches of values.
               A subject is a device's name, or `group:<name>` for the group that devices were in when it was rolled up.
               `changed` grows with each write, so that a reader finds what is new since it looked. `median_speed` is
               that of `speed`, for sparklines.
progress       how far each lane of the roll-ups has read `generations`; when each group's drift was judged.
alerts         a row for each stretch of time in which a rule was in a state; `until_s` NULL: now.
faults         a row for each stretch of time in which a device's golden answers were not what they were at first.
verdicts       a row for each stretch of time in which a release's drift in a group was judged alike: the worst verdict,
               and the metrics that drifted, in words and number.
outbox         alerts that a webhook has still to be told.
"""

from __future__ import annotations

COUNTS = (
    "answers",
    "errors",
    "prompt_tokens",
    "answer_tokens",
    "refused",
    "repeated",
    "cut",
    "leaked",
    "empty",
    "low",
    "bad_json",
    "throttled",
)
"""Sums of a cell; all but the tokens count answers."""
SKETCHES = ("ttft", "speed", "tokens", "log_prob")
"""Of time to first token (s), decoding (tokens/s), tokens of an answer, mean log-probability (nats)."""

_TABLES = (
    # SQLite keeps bytes as they are whatever a column is called; PostgreSQL's name is taken.
    f"""CREATE TABLE rollups (
        step BIGINT NOT NULL, start_s BIGINT NOT NULL, subject TEXT NOT NULL, served BIGINT NOT NULL,
        changed BIGINT NOT NULL, {", ".join(f"{name} BIGINT NOT NULL" for name in COUNTS)},
        {", ".join(f"{name} BYTEA" for name in SKETCHES)}, median_speed DOUBLE PRECISION,
        PRIMARY KEY (step, start_s, subject, served))""",
    "CREATE INDEX rollups_by_changed ON rollups (step, changed)",
    "CREATE INDEX rollups_by_subject ON rollups (subject, step, start_s)",
    """CREATE TABLE progress (
        lane TEXT PRIMARY KEY, cursor BIGINT NOT NULL, at_s DOUBLE PRECISION NOT NULL)""",
    """CREATE TABLE alerts (
        id BIGINT PRIMARY KEY, rule TEXT NOT NULL, grp TEXT NOT NULL, metric TEXT NOT NULL, state TEXT NOT NULL,
        threshold DOUBLE PRECISION NOT NULL, value DOUBLE PRECISION, n BIGINT NOT NULL,
        since_s DOUBLE PRECISION NOT NULL, until_s DOUBLE PRECISION)""",
    "CREATE INDEX alerts_by_until ON alerts (until_s)",
    """CREATE TABLE faults (
        id BIGINT PRIMARY KEY, device TEXT NOT NULL, release TEXT NOT NULL, words TEXT NOT NULL,
        since_s DOUBLE PRECISION NOT NULL, until_s DOUBLE PRECISION)""",
    "CREATE INDEX faults_by_device ON faults (device, until_s)",
    """CREATE TABLE verdicts (
        id BIGINT PRIMARY KEY, grp TEXT NOT NULL, release TEXT NOT NULL, verdict TEXT NOT NULL, metrics TEXT NOT NULL,
        drifted BIGINT NOT NULL, n BIGINT NOT NULL, since_s DOUBLE PRECISION NOT NULL, until_s DOUBLE PRECISION)""",
    "CREATE INDEX verdicts_by_until ON verdicts (until_s)",
    """CREATE TABLE outbox (
        id BIGINT PRIMARY KEY, body TEXT NOT NULL, tries BIGINT NOT NULL, next_s DOUBLE PRECISION NOT NULL,
        created_s DOUBLE PRECISION NOT NULL)""",
)

_OF_REPORTS = (
    # Conspicuous answers are few: without this their tail would read every answer.
    "CREATE INDEX generations_flagged ON generations (cursor) WHERE flags <> 0",
    "CREATE INDEX generations_missing ON generations (at_s) WHERE missing <> ''",
)


def monitoring_tables() -> tuple[str, ...]:
    """The statements that make them, with further indexes on the tables of telemetry."""
    return (*_TABLES, *_OF_REPORTS)
