"""7: signed releases: who vouches for them, until when, who runs them, what fetching one would cost."""

from __future__ import annotations

from collections.abc import Iterable
from typing import ClassVar

from textual import events
from textual.binding import BindingType
from textual.widget import Widget

from edgegen.monitor import acting
from edgegen.monitor.columns import Column
from edgegen.monitor.filters import Searchable
from edgegen.monitor.ink import Line, Piece
from edgegen.monitor.keymap import key
from edgegen.monitor.screens.view import Question, View
from edgegen.monitor.shown import UNKNOWN, age, digest, moment, seconds, size
from edgegen.monitor.table import Table
from edgegen.monitor.widgets.lines import Lines
from edgegen.monitor.widgets.prompt import Prompt
from edgegen.records.monitor import BundleRow

_SOON_S = 7 * 86400.0


def _expires(row: BundleRow, now_s: float) -> Piece:
    if row.expires_s is None:
        return UNKNOWN, "dim"
    left = row.expires_s - now_s
    if left <= 0:
        return "✗ over", "bad"
    return (f"! {seconds(left)}", "warn") if left < _SOON_S else (seconds(left), "")


COLUMNS: tuple[Column[BundleRow], ...] = (
    Column("release", "RELEASE", 22, 1, lambda r, n: (r.label, "bold"), lambda r: r.label, grows=True),
    Column("digest", "DIGEST", 12, 2, lambda r, n: (digest(r.digest), "dim"), lambda r: r.digest),
    Column("kind", "KIND", 8, 8, lambda r, n: (r.kind, ""), lambda r: r.kind),
    Column("target", "TARGET", 8, 6, lambda r, n: (r.target, ""), lambda r: r.target),
    Column("epoch", "EPOCH", 5, 7, lambda r, n: (str(r.epoch), ""), lambda r: r.epoch, True, falls=True),
    Column("size", "SIZE", 8, 3, lambda r, n: (size(r.install_bytes), ""), lambda r: r.install_bytes, True, falls=True),
    Column(
        "fetch", "FETCH", 8, 4, lambda r, n: (size(r.transfer_bytes), ""), lambda r: r.transfer_bytes, True, falls=True
    ),
    Column("devices", "DEVICES", 7, 2, lambda r, n: (f"{r.devices:,}", ""), lambda r: r.devices, True, falls=True),
    Column("expires", "EXPIRES", 8, 2, _expires, lambda r: r.expires_s, True),
    Column("age", "AGE", 4, 5, lambda r, n: (age(n - r.published_s), ""), lambda r: r.published_s, True, falls=True),
    Column("signed", "SIGNED BY", 18, 5, lambda r, n: (r.signed_by or UNKNOWN, "dim"), lambda r: r.signed_by or None),
)


def searchable(row: BundleRow) -> Searchable:
    """A release as filters see it."""
    return Searchable(
        f"{row.label} {row.digest} {row.kind} {row.target} {row.signed_by} {row.lineage}",
        {"release": row.label, "kind": row.kind, "target": row.target, "signed": row.signed_by},
    )


class BundlesView(View):
    """All releases."""

    NAME = "bundles"
    TITLE_WORDS = "Bundles: signed releases"
    LABELS = ("release", "kind", "target", "signed")
    CSS = "BundlesView #detail { height: 40%; max-height: 8; border-top: solid $primary; }"
    BINDINGS: ClassVar[list[BindingType]] = [
        key("bundles.devices", "o", "devices", "Devices that run it", show="devices"),
        key("bundles.deploy", "U", "deploy", "ACTS: bring it to a group", show="deploy"),
    ]

    def body(self) -> Iterable[Widget]:
        yield Table(COLUMNS, lambda row: row.digest, search=searchable, empty="no release was published", id="main")
        yield Lines(id="detail")

    @property
    def table(self) -> Table[BundleRow]:
        found: Table[BundleRow] = self.query_one("#main", Table)
        return found

    def question(self) -> Question:
        source, ask = self.monitor.source, self.monitor.ask_of()
        return lambda: source.bundles(ask)

    def accept(self, value: tuple[BundleRow, ...]) -> None:
        if self.is_ready:
            self.table.update_rows(value, self.monitor.now_s)
            self._show()

    def tick(self) -> None:
        super().tick()
        self._show()

    def on_resize(self, event: events.Resize) -> None:
        self._show()

    def on_table_moved(self, event: Table.Moved) -> None:
        self._show()

    def on_table_opened(self, event: Table.Opened) -> None:
        self.action_devices()

    def _show(self) -> None:
        if self.is_ready:
            row = self.table.row
            self.query_one("#detail", Lines).show(bundle_lines(row, self.monitor.now_s) if row is not None else [])

    def action_devices(self) -> None:
        if (row := self.table.row) is not None:
            self.monitor.go("fleet")
            self.monitor.filter(f"-l release={row.label}")

    def action_deploy(self) -> None:
        if self.table.row is not None and self.monitor.may_act():
            self.monitor.prompt("group", "bring it to which group? tab completes", self.monitor.groups())

    def on_prompt_typed(self, message: Prompt.Typed) -> None:
        """The group was named."""
        row = self.table.row
        if message.purpose != "group" or message.how != "entered" or row is None:
            return
        group = message.line.strip()
        if group not in self.monitor.groups():
            self.monitor.say(f"no device is in the group {group[:30]!r}", "bad")
            return
        self.monitor.act(acting.of_release(row.digest, row.label, group, self.monitor.fleet))


def bundle_lines(row: BundleRow, now_s: float) -> list[Line]:
    """A release in full."""
    expires, role = _expires(row, now_s)
    return [
        [(f" {row.label}", "bold"), (f"  {row.kind} for {row.target}, epoch {row.epoch}", "")],
        [("   digest    ", "dim"), (row.digest, "")],
        [("   published ", "dim"), (f"{moment(row.published_s)}, {age(now_s - row.published_s)} ago", "")],
        [
            ("   signed by ", "dim"),
            (row.signed_by or UNKNOWN, ""),
            ("  to be signed anew in ", "dim"),
            (expires, role),
        ],
        [
            ("   size      ", "dim"),
            (size(row.install_bytes), ""),
            ("  to fetch from the commonest release ", "dim"),
            (size(row.transfer_bytes), ""),
        ],
        [("   lineage   ", "dim"), (row.lineage or UNKNOWN, ""), (f"  {row.devices:,} devices run it", "")],
    ]
