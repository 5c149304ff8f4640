"""The fleet in Prometheus' text format: counts, never names of devices."""

from __future__ import annotations

from edgegen.fleet.transaction import Transaction

_MISSED_POLLS = 3


def describe_fleet(tx: Transaction, now_s: float, poll_s: float) -> str:
    """Devices by group and presence, actions of running rollouts by state, rollouts by state."""
    lines = [
        "# HELP edgegen_devices Enrolled devices; online: seen within three polls.",
        "# TYPE edgegen_devices gauge",
    ]
    since_s = now_s - _MISSED_POLLS * poll_s
    for row in tx.rows(
        "SELECT grp, SUM(CASE WHEN seen_s >= ? THEN 1 ELSE 0 END) AS online, COUNT(*) AS devices FROM devices "
        "WHERE revoked = 0 GROUP BY grp ORDER BY grp",
        since_s,
    ):
        for presence, count in (("online", row["online"]), ("offline", row["devices"] - row["online"])):
            lines.append(f'edgegen_devices{{group="{row["grp"]}",presence="{presence}"}} {count}')
    lines += ["# HELP edgegen_rollouts Rollouts.", "# TYPE edgegen_rollouts gauge"]
    for row in tx.rows("SELECT state, COUNT(*) AS rollouts FROM rollouts GROUP BY state ORDER BY state"):
        lines.append(f'edgegen_rollouts{{state="{row["state"]}"}} {row["rollouts"]}')
    lines += ["# HELP edgegen_actions Devices in each group's latest rollout.", "# TYPE edgegen_actions gauge"]
    for row in tx.rows(
        "SELECT rollouts.grp AS grp, actions.state AS state, COUNT(*) AS actions FROM actions JOIN rollouts "
        "ON rollouts.id = actions.rollout WHERE rollouts.id IN (SELECT MAX(id) FROM rollouts GROUP BY grp) "
        "GROUP BY rollouts.grp, actions.state ORDER BY rollouts.grp, actions.state"
    ):
        lines.append(f'edgegen_actions{{group="{row["grp"]}",state="{row["state"]}"}} {row["actions"]}')
    return "\n".join(lines) + "\n"
