"""Measure this machine: what the planner's cost model needs to know about it, in seconds, without torch.

- **Bandwidth**: one thread a core, each taking the maximum of its own float32 array, far larger than any
  cache: a pure read stream, as decoding is. The best round counts, since other processes only take away.
- **Kernels**: each installed runtime's own matrix product is run on one core with a weight matrix small enough for
  the cache, in each of its grids. Time at two heights, divided by the weights between them, is the cost of one weight
  without the cost of starting a graph. Where llama.cpp rearranges a grid when it loads it ("repacking"), that kernel
  is timed, because it is what a model will run.
- **Dispatch**: tiny llama models of two depths are decoded; the slope over depth less the kernels' share is
  what a block costs beside its weights (scheduling, norms, attention over a short context).

The minimum over repeats is taken for times: noise on a shared machine only ever adds.
"""

from __future__ import annotations

import contextlib
import math
import platform
import shutil
import tempfile
import threading
import time
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import psutil

from edgegen.common.host import clock_ghz, cpu_flags, cpu_name, isa_key, ram_bytes, usable_cores
from edgegen.errors import DeviceError, UnsupportedError
from edgegen.grids import uniform
from edgegen.grids.ggml import TYPES
from edgegen.records.profile import Budgets, Device, Number, Profile
from edgegen.runtime.kernels import Kernels

Progress = Callable[[str, float], None]
"""Called with what is being done and the fraction that is finished (0 to 1)."""

_PROMPT_TOKENS = 64
_TINY_WIDTH, _TINY_FFN = 128, 256
"""So small that eight blocks in float32 (5 MB) mostly stay in the cache."""


def probe_machine(
    progress: Progress | None = None,
    *,
    name: str = "this-machine",
    grids: Sequence[str] | None = None,
    seconds_per_timing: float = 0.05,
    bandwidth_bytes: int = 256 << 20,
    rearranged: bool = True,
) -> Profile:
    """Measure this machine and describe it as a profile.

    Args:
        progress: called before each step.
        name: the profile's name.
        grids: grids whose kernels are timed; None: all that the installed runtimes have.
        seconds_per_timing: how long each kernel is repeated; shorter is noisier.
        bandwidth_bytes: array size for each thread of the bandwidth test, bytes.
        rearranged: whether models will be loaded with llama.cpp's `use_extra_bufts`.

    Returns:
        A profile whose numbers are marked `measured`, for the runtimes that are installed; budgets are a share of the
        memory. What is missing for the other runtimes is said in the notes.

    Raises:
        DeviceError: too little free memory for the bandwidth test.
    """
    say = progress or (lambda step, fraction: None)
    say("looking at the processor", 0.0)
    arch, cores, ram = (
        platform.machine().lower().replace("arm64", "aarch64").replace("amd64", "x86_64"),
        usable_cores(),
        ram_bytes(),
    )
    say("reading memory", 0.02)
    bandwidth = read_bandwidth(cores, bandwidth_bytes)
    decode: dict[str, Number] = {}
    prefill: dict[str, Number] = {}
    overhead: dict[str, Number] = {}
    targets = []
    notes = [f"Measured by `edgegen profiles probe` on {platform.system()} {platform.release()}."]
    for target, open_kernels, names in _KERNELS:
        try:
            kernels = open_kernels(rearranged)
        except UnsupportedError as error:
            notes.append(f"Nothing was measured for {target}: {error}. {error.hint}")
            continue
        targets.append(target)
        wanted = [name for name in names if name not in decode and (grids is None or name in grids)]
        for index, grid in enumerate(wanted):
            say(f"timing {grid} ({target})", 0.1 + 0.8 * (len(targets) - 1 + index / len(wanted)) / len(_KERNELS))
            try:
                one = kernels.ns_per_weight(grid, 1, seconds_per_timing)
                many = kernels.ns_per_weight(grid, _PROMPT_TOKENS, seconds_per_timing)
            except UnsupportedError as error:
                notes.append(f"{error}.")
                continue
            decode[grid] = _measured(one, kernels.note(grid))
            prefill[grid] = _measured(many, f"{_PROMPT_TOKENS} tokens at once")
        if target == "gguf":
            say("decoding tiny models", 0.1 + 0.8 * len(targets) / len(_KERNELS))
            try:
                overhead[target] = _measured(
                    seconds_per_layer(kernels), f"tiny models of two depths, width {_TINY_WIDTH}"
                )
            except UnsupportedError as error:
                notes.append(f"Dispatch was not measured: {error}. {error.hint}")
    say("done", 1.0)
    clock = clock_ghz()
    return Profile(
        schema=1,
        name=name,
        title=f"This machine ({cpu_name()})",
        device=Device(
            cpu=cpu_name(),
            arch=arch,
            isa=isa_key(arch, cpu_flags()),
            cores=cores,
            clock_ghz=Number(clock, "assumed", "as the system reports it; kernels are timed directly"),
            ram_bytes=Number(float(ram), "measured", "as the system reports it"),
            storage_bytes=Number(
                float(shutil.disk_usage(Path.home()).total), "measured", "the disk of the home folder"
            ),
            bandwidth_bytes_per_s=_measured(bandwidth, f"numpy.max over float32, {cores} threads"),
        ),
        targets=tuple(targets) or ("gguf",),
        budgets=Budgets(
            max_bytes=int(ram * 0.3),
            max_rss_bytes=int(ram * 0.5),
            min_tokens_per_s=8.0,
            max_ttft_ms=2000.0,
            max_kl=0.05,
        ),
        kernel_ns_per_weight=decode,
        prefill_ns_per_weight=prefill,
        overhead_s_per_layer_token=overhead,
        notes=" ".join(notes),
    )


def _ggml(rearranged: bool) -> Any:
    return Kernels(rearranged=rearranged)


def _onnx(rearranged: bool) -> Any:
    from edgegen.runtime.kernels_onnx import OnnxKernels

    return OnnxKernels()


def _litert(rearranged: bool) -> Any:
    from edgegen.runtime.kernels_litert import LiteRtKernels

    return LiteRtKernels()


_KERNELS: tuple[tuple[str, Callable[[bool], Any], tuple[str, ...]], ...] = (
    ("gguf", _ggml, tuple(TYPES)),
    ("onnx", _onnx, tuple(name for name in uniform.NAMES if name[0] in "us")),
    ("litert", _litert, ("i8_row", "i4_row", "i4_32")),
)
"""Target, its kernels, and the grids that they are timed in."""


def time_kernels(target: str, grids: Sequence[str], seconds: float) -> dict[str, float]:
    """Seconds that decoding takes for one weight of each grid on one core, from the cache; without grids that the
    target's runtime has no kernel for, and empty where it is not installed.

    Args:
        seconds: how long each kernel is repeated.
    """
    found = {}
    for name, open_kernels, known in _KERNELS:
        if name == target:
            with contextlib.suppress(UnsupportedError):
                kernels = open_kernels(True)
                for grid in (grid for grid in grids if grid in known):
                    with contextlib.suppress(UnsupportedError):
                        found[grid] = kernels.ns_per_weight(grid, 1, seconds) * 1e-9
    return found


def _measured(value: float, note: str) -> Number:
    """A measured number to four figures, which is more than repeats agree on."""
    return Number(float(f"{value:.4g}"), "measured", note)


def read_bandwidth(threads: int, array_bytes: int, rounds: int = 5) -> float:
    """Bytes per second that `threads` threads read together; the best of `rounds`.

    Raises:
        DeviceError: the arrays would take more than half of the free memory.
    """
    size = min(array_bytes, psutil.virtual_memory().available // (4 * threads))
    if size < 1 << 20:
        raise DeviceError("too little free memory to measure its bandwidth", hint="Close other programs and try again.")
    arrays = [np.ones(size // 4, dtype=np.float32) for _ in range(threads)]
    best = 0.0
    for _ in range(rounds):
        gate = threading.Barrier(threads + 1)

        def read(array: Any, gate: threading.Barrier = gate) -> None:
            gate.wait()
            np.max(array)

        workers = [threading.Thread(target=read, args=(array,)) for array in arrays]
        for worker in workers:
            worker.start()
        gate.wait()
        start = time.perf_counter()
        for worker in workers:
            worker.join()
        best = max(best, sum(array.nbytes for array in arrays) / (time.perf_counter() - start))
    return best


def seconds_per_layer(kernels: Kernels, depths: tuple[int, int] = (2, 8), tokens: int = 100) -> float:
    """Seconds per block and decoded token beside the weights' own work, one thread.

    Raises:
        UnsupportedError: the `gguf` package is not installed.
        DeviceError: llama.cpp refuses the tiny model.
    """
    width, ffn = _TINY_WIDTH, _TINY_FFN
    weights = 4 * width * width + 3 * width * ffn
    with tempfile.TemporaryDirectory() as folder:
        times = []
        for depth in depths:
            path = Path(folder) / f"{depth}.gguf"
            write_tiny_llama(path, layers=depth, width=width, ffn=ffn)
            times.append(_best_decode_seconds(path, tokens))
    per_layer = (times[1] - times[0]) / (depths[1] - depths[0])
    kernel = weights * 1e-9 * kernels.ns_per_weight("f32", 1, 0.02)
    # A contended slope can fall below the kernels' share; a tenth of the block is still spent beside them.
    return max(per_layer - kernel, 0.1 * times[1] / depths[1])


def write_tiny_llama(path: Path, *, layers: int, width: int, ffn: int, vocab: int = 512) -> None:
    """Write a float32 llama model with random weights and a byte tokenizer.

    Raises:
        UnsupportedError: the `gguf` package is not installed.
    """
    try:
        import gguf
    except ImportError as error:
        raise UnsupportedError("the gguf package is missing", hint="pip install 'edgegen[gguf]'") from error
    writer = gguf.GGUFWriter(path, "llama")
    writer.add_context_length(256)
    writer.add_embedding_length(width)
    writer.add_block_count(layers)
    writer.add_feed_forward_length(ffn)
    writer.add_head_count(4)
    writer.add_head_count_kv(4)
    writer.add_layer_norm_rms_eps(1e-5)
    writer.add_rope_dimension_count(width // 4)
    writer.add_vocab_size(vocab)
    writer.add_tokenizer_model("llama")
    tokens = ["<unk>", "<s>", "</s>", *(f"<0x{byte:02X}>" for byte in range(256))]
    writer.add_token_list(tokens + [f"t{index}" for index in range(len(tokens), vocab)])
    writer.add_token_scores([0.0] * vocab)
    writer.add_token_types([2, 3, 3] + [6] * 256 + [1] * (vocab - len(tokens)))
    random = np.random.default_rng(0)

    def add(name: str, *shape: int) -> None:
        writer.add_tensor(name, (random.standard_normal(shape) * 0.02).astype(np.float32))

    add("token_embd.weight", vocab, width)
    writer.add_tensor("output_norm.weight", np.ones(width, dtype=np.float32))
    for layer in range(layers):
        for norm in ("attn_norm", "ffn_norm"):
            writer.add_tensor(f"blk.{layer}.{norm}.weight", np.ones(width, dtype=np.float32))
        for part in ("attn_q", "attn_k", "attn_v", "attn_output"):
            add(f"blk.{layer}.{part}.weight", width, width)
        add(f"blk.{layer}.ffn_gate.weight", ffn, width)
        add(f"blk.{layer}.ffn_up.weight", ffn, width)
        add(f"blk.{layer}.ffn_down.weight", width, ffn)
    writer.write_header_to_file()
    writer.write_kv_data_to_file()
    writer.write_tensors_to_file()
    writer.close()


def _best_decode_seconds(path: Path, tokens: int) -> float:
    """Shortest time of one decoded token on one thread."""
    import llama_cpp

    llama_cpp.llama_backend_init()
    options = llama_cpp.llama_model_default_params()
    options.n_gpu_layers = 0
    model = llama_cpp.llama_model_load_from_file(str(path).encode(), options)
    if not model:
        raise DeviceError("llama.cpp refuses the probe's model", hint="Reinstall llama-cpp-python.")
    settings = llama_cpp.llama_context_default_params()
    settings.n_ctx, settings.n_batch, settings.n_ubatch = 256, 8, 8
    settings.n_threads = settings.n_threads_batch = 1
    context = llama_cpp.llama_init_from_model(model, settings)
    try:
        best = math.inf
        for index in range(min(tokens, 250)):
            token = (llama_cpp.llama_token * 1)(3 + index)
            start = time.perf_counter()
            llama_cpp.llama_decode(context, llama_cpp.llama_batch_get_one(token, 1))
            llama_cpp.llama_get_logits(context)
            best = min(best, time.perf_counter() - start)
        return best
    finally:
        llama_cpp.llama_free(context)
        llama_cpp.llama_model_free(model)
