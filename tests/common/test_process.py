"""Memory figures of this process and of no other."""

from __future__ import annotations

import subprocess
import sys

import numpy as np

from edgegen.common.host import cpu_name
from edgegen.common.process import peak_rss_bytes, rss_bytes

_SLOPPY_BYTES = 2_000_000
"""Linux adds up what each thread counted, a little late."""
_CHILD = "from edgegen.common.process import peak_rss_bytes; print(peak_rss_bytes())"


def test_the_peak_is_at_least_what_is_resident_and_stays() -> None:
    before = peak_rss_bytes()
    block = np.ones(8_000_000)  # touched, so resident
    high = peak_rss_bytes()
    assert rss_bytes() <= high + _SLOPPY_BYTES
    assert high >= block.nbytes
    del block
    assert peak_rss_bytes() + _SLOPPY_BYTES >= high
    assert high + _SLOPPY_BYTES >= before


def test_a_child_does_not_inherit_the_peak() -> None:
    block = np.ones(25_000_000)
    child = int(subprocess.run([sys.executable, "-c", _CHILD], capture_output=True, text=True, check=True).stdout)
    assert 5_000_000 < child < block.nbytes


def test_the_processor_has_a_name() -> None:
    assert cpu_name()
