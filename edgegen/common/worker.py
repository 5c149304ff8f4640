"""A job in a process of its own: a request's file in, a result's file out. What goes wrong is part of the result."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import TypeVar

import msgspec

from edgegen.common.codec import load_json, save_json
from edgegen.errors import EdgegenError

Asked = TypeVar("Asked", bound=msgspec.Struct)
Told = TypeVar("Told", bound=msgspec.Struct)


def answer_request(
    request_path: str,
    result_path: str,
    *,
    asks: type[Asked],
    work: Callable[[Asked], Told],
    failed: Callable[[EdgegenError], Told],
) -> int:
    """Do what a request asks and write the result; the exit code is 0 whether or not it could be done.

    Args:
        failed: the result that says why there is none.
    """
    try:
        result = work(load_json(Path(request_path), asks))
    except EdgegenError as error:
        result = failed(error)
    save_json(Path(result_path), result)
    return 0
