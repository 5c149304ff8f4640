"""Convert a compressed folder to LiteRT files. Run as a program of its own: `python -m edgegen.export.litert.convert`.

The converter (torch, jax and an MLIR pipeline) takes half a gigabyte before the first weight, prints a great deal and
ends the process when memory runs out; so it works in a process that the exporter starts, watches and forgets.
"""

from __future__ import annotations

import json
import sys
import tempfile
import warnings
from pathlib import Path
from typing import Any

from edgegen.common.codec import load_json, save_json
from edgegen.common.process import peak_rss_bytes
from edgegen.errors import ConfigError, DeviceError, EdgegenError, UnsupportedError
from edgegen.records.base import Record
from edgegen.records.compressed import Compressed


class Request(Record, frozen=True):
    """What the exporter asks for."""

    compressed: str
    """Folder with compressed.json, weights.bin and config.json."""
    context_tokens: int
    prefill: tuple[int, ...]
    """Prompt chunks, tokens, largest first."""
    score_tokens: int
    """Tokens whose logits are computed at once for scoring; 0: none."""
    model: str
    """File to write."""
    strict: str
    """File that gets the same weights in float32; empty: none."""


class Result(Record, frozen=True):
    """How it went."""

    error: str = ""
    hint: str = ""
    kind: str = ""
    """The error's class."""
    graph_bytes: int = 0
    """The file without its weights."""
    peak_rss_bytes: int = 0


_KINDS: dict[str, type[EdgegenError]] = {
    kind.__name__: kind for kind in (ConfigError, UnsupportedError, DeviceError, EdgegenError)
}


def raise_error(result: Result) -> None:
    """Raise what the conversion met, if anything."""
    if result.error:
        raise _KINDS.get(result.kind, DeviceError)(result.error, hint=result.hint)


def main(request_path: str, result_path: str) -> int:
    """Convert and write the result; errors become part of it."""
    request = load_json(Path(request_path), Request)
    try:
        result = convert(request)
    except EdgegenError as error:
        result = Result(error=str(error), hint=error.hint, kind=type(error).__name__)
    except MemoryError:
        result = Result(
            error="not enough memory to convert", kind="DeviceError", hint="Use a machine with more memory."
        )
    except Exception as error:  # whatever the converter raises
        lines = [line for line in str(error).splitlines() if line.strip()] or [type(error).__name__]
        said = next((line for line in lines if "error:" in line), lines[0]).strip()
        result = Result(
            error=f"LiteRT's converter refuses this model: {said[:300]}",
            kind="UnsupportedError",
            hint="Use another target for this model.",
        )
    save_json(Path(result_path), result)
    return 0


def convert(request: Request) -> Result:
    """Rebuild, convert, carry the weights over, write and check."""
    folder = Path(request.compressed)
    with tempfile.TemporaryDirectory(prefix="edgegen-", dir=Path(request.model).parent) as scratch:
        plain = Path(scratch) / "plain.tflite"
        sources, said = _convert_plain(folder, request, plain)
        return _carry(plain, sources, said, request)


def _convert_plain(folder: Path, request: Request, path: Path) -> tuple[dict[str, Any], str]:
    """Write the model in float32 as the converter makes it; what is packed in its place, and the file's description."""
    warnings.filterwarnings("ignore")
    import litert_torch

    from edgegen.export.folder import map_weights
    from edgegen.export.litert import encoder
    from edgegen.export.litert.carry import Source
    from edgegen.export.litert.wrapper import Graph, prepare, sample_inputs, shape_of
    from edgegen.modeling.rebuild import rebuild_model
    from edgegen.modeling.summary import first_position

    compressed = load_json(folder / "compressed.json", Compressed)
    rebuilt = rebuild_model(folder, compressed, map_weights(folder, compressed))
    vectors = {name for name, parameter in rebuilt.model.named_parameters() if parameter.ndim < 2}
    sources = {
        tensor.name: Source(tensor=tensor, packed=rebuilt.packed(name).copy())
        for name, tensor in rebuilt.tensors.items()
        if name not in vectors
    }
    converter: Any = litert_torch
    if compressed.summary.pooling is not None:
        encoding = encoder.prepare(rebuilt.model)
        for length in encoder.lengths_of(request.context_tokens):
            embed = encoder.EncoderGraph(encoding, compressed.summary.pooling).eval()
            converter = converter.signature(f"embed_{length}", embed, sample_kwargs=encoder.sample_inputs(length))
        converter.convert().export(str(path))
        facts = {"vocab_size": compressed.summary.vocab_size, "first_position": first_position(rebuilt.model.config)}
        return sources, json.dumps(facts)
    model = prepare(rebuilt.model)
    shape = shape_of(model.config)
    context = request.context_tokens
    wanted = [("decode", 1, True), *((f"prefill_{tokens}", tokens, False) for tokens in request.prefill)]
    if request.score_tokens:
        wanted.append((f"score_{request.score_tokens}", request.score_tokens, True))
    for name, tokens, logits in wanted:
        graph = Graph(model, shape, context, logits=logits).eval()
        converter = converter.signature(name, graph, sample_kwargs=sample_inputs(shape, context, tokens))
    converter.convert().export(str(path))
    return sources, ""


def _carry(plain: Path, sources: dict[str, Any], said: str, request: Request) -> Result:
    from edgegen.export.litert.carry import carry_weights, check_carried
    from edgegen.runtime.flatmodel import read_model, write_model

    model = read_model(plain)
    model.description = said
    if request.strict:
        write_model(model, Path(request.strict))
    carry_weights(model, sources)
    write_model(model, Path(request.model))
    written = read_model(Path(request.model))
    check_carried(written, sources)
    weights = sum(buffer.data.nbytes for buffer in written.buffers if buffer.data is not None)
    return Result(graph_bytes=Path(request.model).stat().st_size - weights, peak_rss_bytes=peak_rss_bytes())


if __name__ == "__main__":
    sys.exit(main(*sys.argv[1:]))
