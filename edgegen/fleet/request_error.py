"""A request that is answered with a status code instead of a result."""

from __future__ import annotations


class RequestError(Exception):
    """Raised while a request is handled; the transaction is undone.

    Attributes:
        status: HTTP status code.
    """

    def __init__(self, status: int, message: str) -> None:
        super().__init__(message)
        self.status = status
