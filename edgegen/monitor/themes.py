"""Themes: Textual's own, and two of ours, one dark and one light, whose colours a person with red-green blindness tells
apart (Okabe and Ito's palette)."""

from __future__ import annotations

from textual.theme import Theme

DEFAULT_THEME = "edgegen"
PLAIN_THEME = "ansi-dark"
"""For `NO_COLOR`: the terminal's own colours, of which a filter then leaves none."""

THEMES = (
    Theme(
        name="edgegen",
        primary="#56b4e9",
        secondary="#0072b2",
        accent="#cc79a7",
        foreground="#d8dee4",
        background="#12161a",
        surface="#181d22",
        panel="#20262d",
        success="#2fc195",
        warning="#e69f00",
        error="#f0743e",
        dark=True,
    ),
    Theme(
        name="edgegen-light",
        primary="#0060a0",
        secondary="#56b4e9",
        accent="#9b3f75",
        foreground="#1b1f23",
        background="#fbfbf8",
        surface="#f1f1ec",
        panel="#e6e6df",
        success="#00704f",
        warning="#8a5a00",
        error="#b84300",
        dark=False,
    ),
)
