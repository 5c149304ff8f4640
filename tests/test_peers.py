"""What the benchmark against other tools rests on: fronts, pairs, costs, and files packed anew."""

import sys
from pathlib import Path

import numpy as np
import pytest

from edgegen.records.report import Interval, Quality

TOOLS = Path(__file__).resolve().parents[1] / "tools"


@pytest.fixture(scope="module", autouse=True)
def importable() -> None:
    sys.path.insert(0, str(TOOLS))


def quality(kl: float) -> Quality:
    same = Interval(value=0.9, low=0.9, high=0.9)
    return Quality(
        tokens=100,
        windows=2,
        kl=Interval(value=kl, low=kl, high=kl),
        kl_median=kl / 2,
        kl_p99=kl * 5,
        kl_p999=kl * 9,
        top1_fraction=same,
        ln_ppl_ratio=same,
        bits_per_byte=same,
        original_bits_per_byte=0.8,
        renormalised=False,
    )


def test_the_front_has_what_nothing_smaller_beats() -> None:
    from peers.points import Point, front, spread

    points = [
        Point(model="m", target="gguf", tool="t", name=name, bytes=size, quality=quality(kl) if kl else None)
        for name, size, kl in (
            ("a", 10, 3.0),
            ("b", 12, 3.5),
            ("c", 12, 2.0),
            ("d", 20, 1.0),
            ("e", 30, 1.5),
            ("f", 9, 0),
        )
    ]
    assert [point.name for point in front(points)] == ["a", "c", "d"]
    assert [point.name for point in spread(front(points), 2)] == ["a", "d"]
    assert spread(front(points), 3) == front(points)


def test_tables_hold_pairs_ratios_and_reasons() -> None:
    from peers.points import Point
    from peers.process import Cost
    from peers.tables import beside, every, ratios

    cost = Cost(wall_s=2.0, cpu_s=1.5, peak_rss_bytes=5_000_000)
    points = [
        Point("m", "gguf", "llama.cpp", "Q4_0", bytes=100, quality=quality(0.02), cost=cost),
        Point("m", "gguf", "llama.cpp", "Q4_0 imatrix", bytes=100, quality=quality(0.01), cost=cost),
        Point("m", "gguf", "AutoRound", "Q4_0", error="cannot be installed: no network"),
        Point("m", "gguf", "edgegen", "llama.cpp Q4_0 imatrix", bytes=99, limit=100, quality=quality(0.004), cost=cost),
    ]
    tuned = "llama.cpp Q4_0 imatrix, time 10m"
    points.append(Point("m", "gguf", "edgegen", tuned, bytes=99, limit=100, quality=quality(0.002), cost=cost))
    rows = list(beside(points))[2:]
    assert len(rows) == 2 and "llama.cpp Q4_0 imatrix" in rows[0] and "| 0.40 |" in rows[0]
    assert "99 B, 10m of tuning" in rows[1] and "| 0.20 |" in rows[1]
    assert list(ratios(points))[2:] == [
        "| m | llama.cpp | 1 | 0.40, 0.40, 0.40 | 0.45 | 1 of 1 |",
        "| m | llama.cpp, 10m of tuning | 1 | 0.20, 0.20, 0.20 | 0.45 | 1 of 1 |",
    ]
    assert any("cannot be installed: no network" in row for row in every(points))


def test_a_program_has_its_own_memory_and_says_why_it_failed() -> None:
    from peers.process import ProgramError, run

    ballast = np.ones(40_000_000)  # in this process, not in the other
    cost = run([sys.executable, "-S", "-c", "x = bytearray(50_000_000)"])
    assert 50_000_000 < cost.peak_rss_bytes < 50_000_000 + ballast.nbytes / 2
    assert cost.cpu_s > 0 and 0 < cost.wall_s < 60
    with pytest.raises(ProgramError, match="ended with 3:\nwhy"):
        run([sys.executable, "-c", "print('why'); raise SystemExit(3)"])
    run([sys.executable, "-c", "raise SystemExit(5)"], codes=(0, 5))


def test_tensors_of_one_file_go_under_the_header_of_another(tmp_path: Path) -> None:
    gguf = pytest.importorskip("gguf")
    from peers.autoround import repack

    table, head = np.zeros((64, 32), dtype=np.float32), np.ones((64, 32), dtype=np.float32)

    def write(path: Path, name: str, **tensors: np.ndarray) -> None:
        writer = gguf.GGUFWriter(path, "llama")
        writer.add_name(name)
        writer.add_token_list(["a", "b"])
        for tensor, values in tensors.items():
            quantized = gguf.quants.quantize(values, gguf.GGMLQuantizationType.Q8_0)
            writer.add_tensor(f"{tensor}.weight", quantized, raw_dtype=gguf.GGMLQuantizationType.Q8_0)
        writer.write_header_to_file()
        writer.write_kv_data_to_file()
        writer.write_tensors_to_file()
        writer.close()

    write(tmp_path / "ours", "ours", token_embd=table)
    write(tmp_path / "theirs", "theirs", token_embd=table, output=head)
    repack(tmp_path / "ours", tmp_path / "theirs", tmp_path / "out")
    found = gguf.GGUFReader(tmp_path / "out")
    assert found.fields["general.name"].contents() == "ours"
    assert found.fields["tokenizer.ggml.tokens"].contents() == ["a", "b"]
    assert [tensor.name for tensor in found.tensors] == ["token_embd.weight"]
    values = gguf.quants.dequantize(found.tensors[0].data, found.tensors[0].tensor_type)
    assert np.allclose(values, 1, atol=0.01)
