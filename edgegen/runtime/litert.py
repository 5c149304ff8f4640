"""LiteRT files on `CompiledModel`, LiteRT's present interface, on the CPU through XNNPACK.

- **The cache never leaves the runtime**: keys and values are buffers that every signature takes as input and gives as
  output, so one token writes one row in place.
- **Packed weights are kept** in a file that XNNPACK writes and maps (`weight_cache`): all signatures share them, which
  takes a third of the memory of packing them for each, and the second start takes a fiftieth of the first. Artifact
  folders may be read-only and must not change, so the file lies in the user's cache folder, under a name that changes
  with the model file, the runtime and the processor. Where no file can be written there, weights are packed in memory.
- **Scoring has a signature of its own** (see `export.litert.wrapper`), which allocates its logits when first used.
- **Processors without LSE atomics** (Cortex-A53, A72: no ARMv8.1) cannot load one library of the package, a WebGPU
  back-end that is of no use there, and loading it ends the process. Then this runtime says so and the plain
  interpreter is used, until that library is removed.
"""

from __future__ import annotations

import contextlib
import ctypes
import functools
import hashlib
import importlib.util
import os
import platform
import time
from importlib import metadata
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from edgegen.common.folders import cache_folder
from edgegen.common.host import cpu_flags, cpu_name
from edgegen.errors import DeviceError, UnsupportedError
from edgegen.records.plan import Settings
from edgegen.runtime.base import Logits
from edgegen.runtime.chunks import ChunkedSession, opening, reason
from edgegen.runtime.quiet import native_stderr, quiet_exit

_HWCAP, _HWCAP_ATOMICS = 16, 1 << 8
"""Linux's auxiliary vector on ARM, and its bit for LSE atomics."""

_STALE_SECONDS = 30 * 86400
"""Packed weights that no process has opened for so long are removed."""


class LiteRt:
    """The `litert` target's runtime."""

    name = "litert"

    def version(self) -> str:
        """ai-edge-litert's version.

        Raises:
            UnsupportedError: it is not installed, or its WebGPU library would end the process on this processor.
        """
        _require_loadable()
        return library_version()

    def open(self, model: Path, settings: Settings) -> LiteRtSession:
        """Load a LiteRT file for the CPU.

        Raises:
            UnsupportedError: as `version`.
            ConfigError: no such file, or settings that the file does not take.
            DeviceError: LiteRT refuses the file; the message carries its own reason.
        """
        _require_loadable()
        return LiteRtSession(model, settings)


class LiteRtSession(ChunkedSession):
    """One loaded model with one sequence."""

    def __init__(self, model: Path, settings: Settings) -> None:
        self._model: Any = None
        self._buffers: dict[str, tuple[dict[str, Any], dict[str, Any]]] = {}
        library_version()
        with opening(model, settings):
            self._model = compiled_model(model, settings.threads)
            signatures = self._model.get_signature_list()
            decode = self._model.get_input_tensor_details("decode") if "decode" in signatures else {}
            shapes = {name: tuple(found["shape"]) for name, found in decode.items()}
            out = self._model.get_output_tensor_details("decode") if "decode" in signatures else {}
        quiet_exit()
        self._signatures: dict[str, Any] = signatures
        caches = {name: shape for name, shape in shapes.items() if name[:2] in ("k_", "v_")}
        tokens = min((shape[2] for shape in caches.values()), default=0)
        self._describe(model, settings, signatures, tokens, int(out["logits"]["shape"][-1]) if out else 0)
        with native_stderr():
            self._caches = {name: self._model.create_input_buffer_by_name("decode", name) for name in caches}
            for name, shape in caches.items():
                # What is masked is still multiplied, by zero: it must be a number.
                self._caches[name].write(np.zeros(shape, np.float32))

    def _compute(self, signature: str, tokens: NDArray[np.int32], positions: NDArray[np.int32]) -> Logits | None:
        inputs, outputs = self._buffers.get(signature) or self._allocate(signature)
        try:
            inputs["tokens"].write(tokens)
            inputs["input_pos"].write(positions)
            self._model.run_by_name(signature, inputs, outputs)
            if "logits" not in outputs:
                return None
            logits: Logits = outputs["logits"].read(tokens.size * self.vocab_size, np.float32)
        except Exception as error:
            raise DeviceError(f"LiteRT could not compute: {reason(error, '')}") from error
        return logits.reshape(tokens.size, self.vocab_size)

    def _allocate(self, signature: str) -> tuple[dict[str, Any], dict[str, Any]]:
        """The signature's buffers: its own for tokens, positions and logits, everyone's for the caches."""
        model = self._model
        with native_stderr():
            inputs = {name: model.create_input_buffer_by_name(signature, name) for name in ("tokens", "input_pos")}
            outputs = {}
            if "logits" in self._signatures[signature]["outputs"]:
                outputs["logits"] = model.create_output_buffer_by_name(signature, "logits")
        self._buffers[signature] = ({**inputs, **self._caches}, {**outputs, **self._caches})
        return self._buffers[signature]

    def _close(self) -> None:
        with native_stderr():
            self._buffers = {}
            self._caches = {}
            if self._model is not None:
                self._model.close()
            self._model = None


def webgpu_library() -> Path | None:
    """The package's WebGPU back-end, which needs ARMv8.1 on ARM; None where it is not there."""
    found = importlib.util.find_spec("ai_edge_litert")
    for folder in (found.submodule_search_locations or ()) if found else ():
        path = Path(folder) / "libLiteRtWebGpuAccelerator.so"
        if path.exists():
            return path
    return None


def needs_removal() -> bool:
    """Whether that library is there and would end the process on this processor."""
    return webgpu_library() is not None and not _has_atomics()


@functools.cache
def library_version() -> str:
    """ai-edge-litert's version, after seeing that its parts are there.

    Raises:
        UnsupportedError: they are not.
    """
    try:
        import ai_edge_litert.interpreter  # noqa: F401
        import ml_dtypes  # noqa: F401 - CompiledModel's buffers need it
    except (ImportError, OSError) as error:
        raise UnsupportedError(
            f"LiteRT files need ai-edge-litert: {error}", hint="Install it with: pip install 'edgegen[litert]'"
        ) from error
    return metadata.version("ai-edge-litert")


def weight_cache(model: Path) -> tuple[Path, Path] | None:
    """Where a model's packed weights are, or will be, and where to write them first; None where nothing can be kept.

    The file's name holds a hash of the model's path, so that its earlier versions are found and removed, and one of
    everything that decides its content.
    """
    folder = cache_folder() / "litert"
    known = model.resolve()
    about = known.stat()
    place = hashlib.sha256(str(known).encode()).hexdigest()[:16]
    content = f"{about.st_size} {about.st_mtime_ns} {library_version()} {cpu_name()} {sorted(cpu_flags())}"
    path = folder / f"{place}-{hashlib.sha256(content.encode()).hexdigest()[:16]}.xnnpack"
    try:
        folder.mkdir(parents=True, exist_ok=True)
        for other in folder.iterdir():
            stale = time.time() - other.stat().st_mtime > _STALE_SECONDS
            if other != path and (stale or (other.name.startswith(place) and other.suffix == ".xnnpack")):
                other.unlink(missing_ok=True)
        if path.exists():
            os.utime(path)
        elif not os.access(folder, os.W_OK):
            return None
    except OSError:
        return None
    return path, folder / f"{path.name}.{os.getpid()}.tmp"


def compiled_model(model: Path, threads: int) -> Any:
    """A compiled model whose packed weights are kept if they can be."""
    from ai_edge_litert.compiled_model import CompiledModel
    from ai_edge_litert.options import CpuOptions, Options

    def load(cache: str) -> Any:
        options = Options(cpu_options=CpuOptions(num_threads=threads, xnnpack_weight_cache_path=cache))
        return CompiledModel.from_file(str(model), options=options)

    places = weight_cache(model)
    if places is None:
        return load("")
    path, fresh = places
    if path.exists():
        return load(str(path))
    try:
        loaded = load(str(fresh))
        # Only a whole file gets the name that others look for. XNNPACK writes all of it while loading.
        with contextlib.suppress(OSError):
            fresh.replace(path)
        return loaded
    finally:
        fresh.unlink(missing_ok=True)


def _require_loadable() -> None:
    if needs_removal():
        raise UnsupportedError(
            f"LiteRT's CompiledModel ends the process on {cpu_name()}: a library of its package was compiled with lse "
            "enabled, which needs ARMv8.1",
            hint=f"Remove {webgpu_library()}; until then the runtime litert-interpreter works.",
        )
    library_version()


def _has_atomics() -> bool:
    """Whether this is no ARM processor, or one with LSE atomics (ARMv8.1)."""
    if platform.system() != "Linux" or platform.machine() not in ("aarch64", "arm64"):
        return True
    with contextlib.suppress(OSError, AttributeError):
        getauxval = ctypes.CDLL(None).getauxval
        getauxval.restype, getauxval.argtypes = ctypes.c_ulong, (ctypes.c_ulong,)
        return bool(getauxval(_HWCAP) & _HWCAP_ATOMICS)
    return "atomics" in cpu_flags()
