"""Files cut at their tensors, and what a device with an older release has to fetch."""

from pathlib import Path

import gguf
import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from edgegen.bundle.delta import transfer
from edgegen.bundle.formats import Span, UnreadableError
from edgegen.bundle.formats.gguf import tensor_spans
from edgegen.bundle.formats.onnx import tensor_spans as onnx_spans
from edgegen.bundle.formats.tflite import tensor_spans as tflite_spans
from edgegen.bundle.segments import LARGEST_BYTES, cut, describe_file, describe_folder
from edgegen.common.files import digest_bytes
from tests.bundle.releases import sample_manifest

ROWS = 256


def write_gguf(path: Path, *, name: str = "model", seed: int = 0, changed: int = -1) -> None:
    """Eight tensors of 128 KiB; the one numbered `changed` differs."""
    writer = gguf.GGUFWriter(path, "llama")
    writer.add_name(name)
    writer.add_array("tokenizer.ggml.tokens", ["a", "bc", "é"])
    writer.add_array("some.numbers", [1.0, 2.0])
    for number in range(8):
        rng = np.random.default_rng(seed + number + (1000 if number == changed else 0))
        writer.add_tensor(f"blk.{number}.weight", rng.normal(size=(ROWS, 128)).astype(np.float32))
    writer.write_header_to_file()
    writer.write_kv_data_to_file()
    writer.write_tensors_to_file()
    writer.close()


def test_gguf_tensors_are_where_the_gguf_package_finds_them(tmp_path: Path) -> None:
    path = tmp_path / "m.gguf"
    write_gguf(path)
    reader = gguf.GGUFReader(path)
    assert [(s.name, s.offset) for s in tensor_spans(path)] == [(t.name, t.data_offset) for t in reader.tensors]


def test_a_second_release_transfers_its_header_and_what_changed(tmp_path: Path) -> None:
    """The header grows, so that every tensor stands elsewhere; one of eight tensors changed."""
    write_gguf(tmp_path / "a.gguf")
    write_gguf(tmp_path / "b.gguf", name="a much longer name " * 9, changed=3)
    old, new = ((describe_folder(tmp_path, [name]))[0][0] for name in ("a.gguf", "b.gguf"))
    moved = transfer(sample_manifest(files=(new,)), [sample_manifest(files=(old,))])
    tensor = ROWS * 128 * 4
    assert tensor <= moved.fetched < tensor + 8192
    assert moved.fetched + moved.reused == new.bytes
    assert transfer(sample_manifest(files=(new,)), [sample_manifest(files=(new,))]) == (0, new.bytes)
    assert transfer(sample_manifest(files=(new,)), []).fetched == new.bytes


def test_onnx_tensors_in_the_file_and_beside_it(tmp_path: Path) -> None:
    onnx = pytest.importorskip("onnx")
    from onnx import TensorProto, helper, numpy_helper

    rng = np.random.default_rng(0)
    values = {f"w{n}": rng.normal(size=(64, 64)).astype(np.float32) for n in range(4)}
    graph = helper.make_graph(
        [helper.make_node("Add", ["w0", "w1"], ["y"])],
        "g",
        [],
        [helper.make_tensor_value_info("y", TensorProto.FLOAT, [64, 64])],
        [numpy_helper.from_array(value, name) for name, value in values.items()],
    )
    model = helper.make_model(graph)
    onnx.save_model(model, tmp_path / "inside.onnx")
    onnx.save_model(model, tmp_path / "m.onnx", save_as_external_data=True, location="m.data", size_threshold=0)
    for name, file in (("inside.onnx", "inside.onnx"), ("m.onnx", "m.data")):
        spans = onnx_spans(tmp_path / name)
        assert set(spans) == {file}
        data = (tmp_path / file).read_bytes()
        assert {s.name: data[s.offset : s.offset + s.bytes] for s in spans[file]} == {
            name: value.tobytes() for name, value in values.items()
        }
    (_, beside), notes = describe_folder(tmp_path, ["m.onnx", "m.data"])
    assert not notes and sum(s.bytes for s in beside.segments) in (0, beside.bytes)


def test_litert_buffers(tmp_path: Path) -> None:
    schema = pytest.importorskip("ai_edge_litert.schema_py_generated")
    flatbuffers = pytest.importorskip("flatbuffers")
    rng = np.random.default_rng(0)
    datas = [rng.integers(0, 255, size=4096, dtype=np.uint8) for _ in range(3)]
    model, graph = schema.ModelT(), schema.SubGraphT()
    model.version, model.buffers, graph.tensors = 3, [schema.BufferT()], []
    for number, data in enumerate(datas):
        buffer, tensor = schema.BufferT(), schema.TensorT()
        buffer.data, tensor.buffer, tensor.name, tensor.shape = data, number + 1, f"w{number}".encode(), [4096]
        model.buffers.append(buffer)
        graph.tensors.append(tensor)
    graph.inputs, graph.outputs, graph.operators = [], [], []
    model.subgraphs, model.operatorCodes = [graph], []
    builder = flatbuffers.Builder(1024)
    builder.Finish(model.Pack(builder), b"TFL3")
    path = tmp_path / "m.tflite"
    path.write_bytes(bytes(builder.Output()))
    found = {s.name: path.read_bytes()[s.offset : s.offset + s.bytes] for s in tflite_spans(path)}
    assert found == {f"w{number}": data.tobytes() for number, data in enumerate(datas)}


@pytest.mark.parametrize("suffix", [".gguf", ".tflite", ".onnx"])
@given(data=st.binary(max_size=300))
def test_any_bytes_are_cut_somehow(suffix: str, data: bytes, tmp_path_factory: pytest.TempPathFactory) -> None:
    """Broken files are the runtime's to refuse; here they are cut evenly and a note says so."""
    folder = tmp_path_factory.getbasetemp() / "any"
    folder.mkdir(exist_ok=True)
    magic = {".gguf": b"GGUF\x03\0\0\0", ".tflite": b"\x10\0\0\0TFL3", ".onnx": b""}[suffix]
    (folder / f"m{suffix}").write_bytes(magic + data)
    (file,), _ = describe_folder(folder, [f"m{suffix}"])
    assert file.digest == digest_bytes(magic + data)


def test_a_cut_off_file_is_told(tmp_path: Path) -> None:
    write_gguf(tmp_path / "m.gguf")
    (tmp_path / "m.gguf").write_bytes((tmp_path / "m.gguf").read_bytes()[:60])
    with pytest.raises(UnreadableError, match="cut off"):
        tensor_spans(tmp_path / "m.gguf")
    _, (note,) = describe_folder(tmp_path, ["m.gguf"])
    assert "not at its tensors" in note


@given(
    st.integers(0, 3 * LARGEST_BYTES),
    st.lists(st.tuples(st.integers(0, 3 * LARGEST_BYTES), st.integers(-5, 2 * LARGEST_BYTES)), max_size=20),
)
def test_segments_add_up(size: int, places: list[tuple[int, int]]) -> None:
    pieces = cut(size, [Span(offset, length, "w") for offset, length in places])
    assert sum(length for length, _ in pieces) == size
    assert all(0 < length <= LARGEST_BYTES + 64 * 1024 for length, _ in pieces)


def test_an_empty_file_has_no_segments(tmp_path: Path) -> None:
    (tmp_path / "empty").write_bytes(b"")
    assert describe_file(tmp_path, "empty").segments == ()
