"""Where a teacher's batches of examples are written and scored: in this process, or on the workers of a Ray cluster.

A batch depends on its number alone (`propose`), and batches are handed on in order, so the examples are the same on one
machine and on many. A worker that is lost is started again, with the batch that it had.
"""

from __future__ import annotations

from collections import deque
from collections.abc import Generator, Iterator
from contextlib import contextmanager
from typing import Any

from edgegen.errors import ConfigError, DeviceError, NetworkError, UnsupportedError
from edgegen.records.task import Task
from edgegen.tune.propose import Pairs, Proposal, propose
from edgegen.tune.synthesize import Ask

LOCAL = "local"
"""Address of a cluster of this machine's own processors, started for the run."""
_AHEAD = 2
"""Batches that a worker has at once, so that it never waits for the next."""
_RESTARTS = 3


@contextmanager
def writers(model: Any, tokenizer: Any, seeds: Pairs, task: Task, seed: int, *, address: str = "") -> Iterator[Ask]:
    """Whoever writes batches.

    Args:
        model: the teacher, in memory; workers get a copy.
        address: of a Ray cluster, `host:port` or `auto`; `local`; empty: this process.

    Raises:
        UnsupportedError: Ray is not installed.
        NetworkError: there is no cluster at the address.
        DeviceError: a worker was lost again and again.
    """
    if not address:
        yield lambda batches: (propose(model, tokenizer, seeds, task, seed, number) for number in range(batches))
        return
    with _cluster(address) as ray:
        lot = ray.put((model, tokenizer, tuple(seeds), task, seed))
        remote = ray.remote(num_cpus=1, max_restarts=_RESTARTS, max_task_retries=_RESTARTS)(_Writer)
        count = max(1, int(ray.cluster_resources().get("CPU", 1)))
        yield lambda batches: _in_order(ray, [remote.remote(lot) for _ in range(min(count, batches))], batches)


class _Writer:
    """A worker; Ray puts what it is given into its memory."""

    def __init__(self, lot: tuple[Any, Any, Pairs, Task, int]) -> None:
        import torch

        torch.set_num_threads(1)
        self._lot = lot

    def write(self, number: int) -> list[Proposal]:
        return propose(*self._lot, number)


def _in_order(ray: Any, workers: list[Any], batches: int) -> Generator[list[Proposal]]:
    waiting: deque[Any] = deque()
    begun = 0
    try:
        while begun < batches or waiting:
            while begun < batches and len(waiting) < _AHEAD * len(workers):
                waiting.append(workers[begun % len(workers)].write.remote(begun))
                begun += 1
            try:
                yield ray.get(waiting.popleft())
            except ray.exceptions.RayTaskError as error:
                cause = error.cause if isinstance(error.cause, Exception) else error
                raise cause from error
            except ray.exceptions.RayError as error:
                first = str(error).strip().splitlines()[0]
                raise DeviceError(f"a worker of the Ray cluster was lost: {first}", hint="Run it again.") from error
    finally:
        for worker in workers:
            ray.kill(worker)


@contextmanager
def _cluster(address: str) -> Iterator[Any]:
    try:
        import ray
    except ModuleNotFoundError as error:
        raise UnsupportedError("--ray needs ray, which is not installed", hint="pip install 'edgegen[ray]'") from error
    if ray.is_initialized():
        yield ray
        return
    try:
        ray.init(
            address=None if address == LOCAL else address,
            include_dashboard=False if address == LOCAL else None,
            log_to_driver=False,
            logging_level="ERROR",
        )
    except ValueError as error:
        raise ConfigError(f"--ray {address}: {_first(error)}", hint="Like auto, local, or host:6379.") from error
    except (ConnectionError, RuntimeError, OSError) as error:
        raise NetworkError(
            f"no Ray cluster at {address}: {_first(error)}",
            hint="Start one with `ray start --head`, or use --ray local.",
        ) from error
    try:
        yield ray
    finally:
        ray.shutdown()


def _first(error: Exception) -> str:
    return next(iter(str(error).strip().splitlines()), type(error).__name__)
