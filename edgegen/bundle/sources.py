"""Where a repository's small files come from: a web server, or a folder (a USB stick, a pushed bundle).

Only metadata and manifests are read this way, whole and into memory; weights are fetched in ranges by the agent.
"""

from __future__ import annotations

import time
from pathlib import Path
from typing import Protocol

import urllib3

from edgegen.errors import DeviceError, Fault, NetworkError, TrustError

_CHUNK_BYTES = 64 << 10


class MissingError(NetworkError):
    """The repository has no such file."""

    retryable = False


class Source(Protocol):
    """A repository that can be read."""

    def read(self, path: str, limit: int) -> bytes:
        """A whole file.

        Args:
            path: relative to the repository, `/` between parts.
            limit: most bytes that are taken.

        Raises:
            MissingError: it is not there.
            TrustError: it is longer than the limit.
            NetworkError: it cannot be had now.
        """
        ...


class FolderSource:
    """A repository in a folder."""

    def __init__(self, folder: Path) -> None:
        self._folder = folder

    def read(self, path: str, limit: int) -> bytes:
        """See `Source`."""
        file = self._folder / path
        try:
            with file.open("rb") as stream:
                data = stream.read(limit + 1)
        except (FileNotFoundError, NotADirectoryError, IsADirectoryError) as error:
            raise MissingError(f"{file}: no such file", hint="Is the folder a whole repository or bundle?") from error
        except OSError as error:
            raise DeviceError(f"{file}: {error.strerror}") from error
        return _limited(data, path, limit)


class HttpSource:
    """A repository on a web server."""

    def __init__(
        self, url: str, *, timeout_s: float = 20.0, deadline_s: float = 120.0, headers: dict[str, str] | None = None
    ) -> None:
        """Prepare; nothing is asked yet.

        Args:
            url: of the repository's folder.
            timeout_s: longest silence.
            deadline_s: longest time for one file, so that a server that drips bytes holds nobody up.
            headers: sent with each request.
        """
        self._url = url.rstrip("/")
        self._deadline_s = deadline_s
        self._pool = urllib3.PoolManager(
            timeout=urllib3.Timeout(connect=timeout_s, read=timeout_s),
            retries=urllib3.Retry(total=None, connect=0, read=0, redirect=3, status=0, other=0),
            headers={"User-Agent": "edgegen", "Accept-Encoding": "identity", **(headers or {})},
        )

    def read(self, path: str, limit: int) -> bytes:
        """See `Source`."""
        url = f"{self._url}/{path}"
        ends = time.monotonic() + self._deadline_s
        try:
            answer = self._pool.request("GET", url, preload_content=False)
            try:
                if answer.status in (403, 404, 410):
                    raise MissingError(f"{url}: the server answers {answer.status}")
                if answer.status != 200:
                    raise NetworkError(f"{url}: the server answers {answer.status}", hint="Try again later.")
                data = read_within(answer, url, limit=limit, deadline_s=ends - time.monotonic())
            finally:
                answer.close()
        except (urllib3.exceptions.HTTPError, OSError, ValueError) as error:
            raise NetworkError(f"{url}: {reason(error)}", hint="Try again later.") from error
        return _limited(data, path, limit)


def read_within(answer: urllib3.BaseHTTPResponse, url: str, *, limit: int, deadline_s: float) -> bytes:
    """An answer's body as it was sent; of one that is longer than `limit`, a little more than that.

    Raises:
        NetworkError: it ends early, or is not there after `deadline_s`, however its bytes drip in.
    """
    ends = time.monotonic() + deadline_s
    data = bytearray()
    while len(data) <= limit and (part := answer.read1(_CHUNK_BYTES, decode_content=False)):
        data += part
        if time.monotonic() > ends:
            raise NetworkError(f"{url}: not whole after {deadline_s:.3g} s", hint="Try again later.")
    if len(data) <= limit and answer.length_remaining:
        raise NetworkError(f"{url}: ended {answer.length_remaining:,} bytes early", hint="Try again later.")
    return bytes(data)


def _limited(data: bytes, path: str, limit: int) -> bytes:
    if len(data) > limit:
        raise TrustError(
            f"{path}: longer than the {limit:,} bytes that are allowed", hint="Nothing is used.", fault=Fault.SIZE
        )
    return data


def reason(error: Exception) -> str:
    """The innermost cause, in one line."""
    cause: BaseException = getattr(error, "reason", None) or error
    return str(cause).strip().splitlines()[0][:200] if str(cause).strip() else type(cause).__name__
