"""AutoRound's GGUF files: its own environment, its own command line, and its tensors in a file like the others'."""

from __future__ import annotations

import json
import re
import shutil
import sys
import tempfile
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from peers.process import Cost, ProgramError, run
from peers.subject import Subject, tell

PACKAGES = ("auto-round==0.16.1", "gguf", "sentencepiece", "protobuf")
SAMPLES, SAMPLE_TOKENS = 64, 256
"""Calibration: as many tokens as edgegen's compensation learns from."""

_PROGRAM = '''
"""AutoRound's command line; a tokenizer that its converter does not know by a hash is written as GPT-2's."""
import sys
from auto_round.export.export_to_gguf import export
from auto_round.__main__ import run

converters = export.get_conversion

def get_conversion(*arguments, **options):
    found = converters(*arguments, **options)
    for name, module in list(sys.modules.items()):
        if name.endswith("conversion.base") and hasattr(module, "TextModel"):
            module.TextModel.get_vocab_base_pre = lambda self, tokenizer: "gpt-2"
    return found

export.get_conversion = get_conversion
run()
'''


def install(folder: Path, constraints: Path) -> Path:
    """An environment with AutoRound; one that is whole is used again.

    Args:
        folder: for the environment.
        constraints: file that pins torch.

    Returns:
        Its interpreter.

    Raises:
        ProgramError: it could not be made; the message says why.
    """
    python = folder / "bin" / "python"
    mark = folder / "whole"
    if not mark.exists():
        tell("installing AutoRound in an environment of its own")
        shutil.rmtree(folder, ignore_errors=True)
        torch = re.search(r"^torch==\S+", constraints.read_text(), re.MULTILINE)
        run([sys.executable, "-m", "venv", str(folder)])
        run([str(python), "-m", "pip", "install", "-q", *PACKAGES, torch[0] if torch else "torch"])
        mark.touch()
    return python


def quantize(python: Path, subject: Subject, source: Path, out: Path, arguments: Sequence[str]) -> tuple[Cost, int]:
    """Run AutoRound on the calibration rows and put its tensors into a file.

    A tied head that AutoRound stores a second time is stored once, as llama.cpp's quantizer does, and header and
    tokenizer are edgegen's: what differs between the files is their weights.

    Args:
        python: interpreter of AutoRound's environment.
        source: edgegen's GGUF file in float32.
        out: the file to write.
        arguments: scheme and format, or bit budget.

    Returns:
        (what it cost, bytes of the file that AutoRound wrote).

    Raises:
        ProgramError: it failed.
    """
    place = Path(tempfile.mkdtemp(prefix="autoround-"))  # AutoRound takes a comma in a path for two data sets
    program, corpus = place / "program.py", place / "corpus.json"
    program.write_text(_PROGRAM)
    corpus.write_text(json.dumps([{"text": text} for text in subject.calibration]))
    command = [str(python), str(program), "--model", str(subject.model), "--model_dtype", "float32"]
    command += ["--device_map", "cpu", "--dataset", str(corpus), "--output_dir", str(place / "out")]
    command += ["--nsamples", str(SAMPLES), "--seqlen", str(SAMPLE_TOKENS), *arguments]
    cost = run(command)
    written = sorted((place / "out").rglob("*.gguf"))
    if not written:
        raise ProgramError("AutoRound ended well and wrote no file")
    size = written[0].stat().st_size
    repack(source, written[0], out)
    shutil.rmtree(place)
    return cost, size


def repack(source: Path, theirs: Path, out: Path) -> None:
    """Write a GGUF file with one file's header and tensor names, and another's tensors.

    Args:
        source: gives metadata and the list of tensors; where it has no `output.weight`, theirs becomes the one table.
        theirs: gives types and data.
        out: the file to write.
    """
    import gguf

    reader = gguf.GGUFReader(source)
    tensors: dict[str, Any] = {tensor.name: tensor for tensor in gguf.GGUFReader(theirs).tensors}
    if "output.weight" in tensors and all(tensor.name != "output.weight" for tensor in reader.tensors):
        tensors["token_embd.weight"] = tensors["output.weight"]
    family = reader.fields["general.architecture"].contents()
    writer = gguf.GGUFWriter(out, family)
    for field in reader.fields.values():
        if field.name == "general.architecture" or field.name.startswith("GGUF."):
            continue
        inner = field.types[-1] if field.types[0] == gguf.GGUFValueType.ARRAY else None
        writer.add_key_value(field.name, field.contents(), field.types[0], sub_type=inner)
    for tensor in reader.tensors:
        found = tensors[tensor.name]
        writer.add_tensor(tensor.name, found.data, raw_dtype=found.tensor_type)
    writer.write_header_to_file()
    writer.write_kv_data_to_file()
    writer.write_tensors_to_file()
    writer.close()
