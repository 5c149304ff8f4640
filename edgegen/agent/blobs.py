"""Blobs over HTTP in ranges, or from a folder of the same shape."""

from __future__ import annotations

import email.utils
import time
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path

import urllib3

from edgegen.agent.fetch import BusyError, Fetcher, GoneError
from edgegen.bundle.layout import blob_file
from edgegen.bundle.sources import reason
from edgegen.errors import NetworkError

_CHUNK_BYTES = 256 << 10
_SLOWEST_BYTES_PER_S = 1024
_WINDOW_S = 30.0
_LONGEST_WAIT_S = 3600.0


def fetcher_for(place: str) -> Fetcher:
    """For the URL of a repository, or its folder."""
    return HttpFetcher(place) if place.startswith(("http://", "https://")) else FolderFetcher(Path(place))


class FolderFetcher:
    """A repository in a folder: a USB stick, a pushed bundle."""

    def __init__(self, folder: Path) -> None:
        self._folder = folder

    def fetch(self, digest: str, start: int, end: int, spend: Callable[[int], None]) -> Iterator[bytes]:
        """See `Fetcher`."""
        path = self._folder / blob_file(digest)
        try:
            with path.open("rb") as stream:
                stream.seek(start)
                while start < end and (data := stream.read(min(_CHUNK_BYTES, end - start))):
                    start += len(data)
                    spend(len(data))
                    yield data
        except FileNotFoundError as error:
            raise GoneError(f"{path}: no such file", hint="Is the folder a whole repository or bundle?") from error
        except OSError as error:
            raise GoneError(f"{path}: {error.strerror}") from error

    def close(self) -> None:
        """See `Fetcher`."""


@dataclass(slots=True)
class _Stream:
    """An answer that is being read."""

    digest: str
    answer: urllib3.BaseHTTPResponse
    position: int
    """Of the next byte in the blob."""


class HttpFetcher:
    """A repository on any web server that answers Range requests.

    A server without them gives a file from its start. Then the answer stays open between requests and is read on, so
    that a file costs at most its length however many parts of it are wanted.
    """

    def __init__(
        self,
        url: str,
        *,
        timeout_s: float = 30.0,
        window_s: float = _WINDOW_S,
        monotonic: Callable[[], float] = time.monotonic,
    ) -> None:
        """Prepare; nothing is asked yet.

        Args:
            timeout_s: longest silence.
            window_s: time within which at least 1 KiB/s must arrive, so that dripping bytes hold nothing up.
        """
        self._url = url.rstrip("/")
        self._window_s, self._monotonic = window_s, monotonic
        self._pool = urllib3.PoolManager(
            timeout=urllib3.Timeout(connect=timeout_s, read=timeout_s),
            retries=urllib3.Retry(total=None, connect=0, read=0, redirect=3, status=0, other=0),
            headers={"User-Agent": "edgegen-agent", "Accept-Encoding": "identity"},
        )

        self._open: _Stream | None = None
        """Of a server without ranges."""

    def fetch(self, digest: str, start: int, end: int, spend: Callable[[int], None]) -> Iterator[bytes]:
        """See `Fetcher`."""
        url = f"{self._url}/{blob_file(digest)}"
        try:
            stream = self._open
            if stream is None or stream.digest != digest or stream.position > start:
                self.close()
                stream = self._ask(digest, url, start, end)
            try:
                yield from self._read(stream, url, start, end, spend)
            finally:
                if stream is not self._open:
                    stream.answer.close()
        except (urllib3.exceptions.HTTPError, OSError, ValueError) as error:
            self.close()
            raise NetworkError(f"{url}: {reason(error)}", hint="Try again later.") from error
        except NetworkError:
            self.close()
            raise

    def close(self) -> None:
        """See `Fetcher`."""
        stream, self._open = self._open, None
        if stream is not None:
            stream.answer.close()

    def _ask(self, digest: str, url: str, start: int, end: int) -> _Stream:
        wanted = {"Range": f"bytes={start}-{end - 1}", **self._pool.headers}
        answer = self._pool.request("GET", url, headers=wanted, preload_content=False)
        try:
            stream = _Stream(digest, answer, _position(answer, url, start))
        except NetworkError:
            answer.close()
            raise
        if answer.status == 200:
            self._open = stream
        return stream

    def _read(self, stream: _Stream, url: str, start: int, end: int, spend: Callable[[int], None]) -> Iterator[bytes]:
        since, count = self._monotonic(), 0
        while stream.position < end:
            wanted = stream.position >= start
            data = stream.answer.read1(min(_CHUNK_BYTES, (end if wanted else start) - stream.position))
            if not data:
                self.close()
                return
            stream.position += len(data)
            spend(len(data))
            count += len(data)
            spent = self._monotonic() - since
            if spent > self._window_s:
                if count < _SLOWEST_BYTES_PER_S * spent:
                    raise NetworkError(f"{url}: only {count} bytes in {spent:.0f} s", hint="Try again later.")
                since, count = self._monotonic(), 0
            if wanted:
                yield data


def _position(answer: urllib3.BaseHTTPResponse, url: str, start: int) -> int:
    """Of the answer's first byte in the blob."""
    status = answer.status
    if status == 206:
        said = answer.headers.get("Content-Range", "")
        if not said.startswith(f"bytes {start}-"):
            raise NetworkError(f"{url}: the server gives another range ({said[:60]!r})")
        return start
    if status == 200:
        return 0
    if status in (408, 425, 429) or status >= 500:
        raise BusyError(f"{url}: the server answers {status}", after_s=_after_s(answer.headers.get("Retry-After", "")))
    raise GoneError(f"{url}: the server answers {status}")


def _after_s(text: str) -> float:
    """Seconds that a Retry-After header asks to wait, at most an hour; 0 if it says nothing that can be read."""
    if text.isdigit():
        return min(float(text), _LONGEST_WAIT_S)
    try:
        moment = email.utils.parsedate_to_datetime(text)
    except (ValueError, TypeError):
        return 0.0
    return max(0.0, min(moment.timestamp() - time.time(), _LONGEST_WAIT_S))
