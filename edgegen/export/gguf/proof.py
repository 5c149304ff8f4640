"""Prove that llama.cpp cuts text into the same tokens as the original tokenizer.

Stock converters recognise a tokenizer by a hash over one text's ids, so a custom or trimmed one is refused
or, worse, taken for another. Here the file's own header is loaded by the runtime (vocabulary only, no
weights) and both sides tokenise the same texts; a splitting rule is taken only if all ids agree.
"""

from __future__ import annotations

import contextlib
import tempfile
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

from tokenizers import Tokenizer

from edgegen.errors import ConfigError, DeviceError, UnsupportedError
from edgegen.export.gguf.header import start
from edgegen.export.gguf.rope import Value
from edgegen.export.gguf.tokenizer import TokenizerFiles, Vocabulary
from edgegen.runtime.llamacpp import LlamaCpp
from edgegen.runtime.llamacpp import Vocabulary as LoadedVocabulary

PROBES = (
    "Hello, world! It's 7:30 a.m.; I'll pay $1,234.50 (or 99%).",
    "  two spaces, a\ttab,\n\n two newlines \n and a trailing space ",
    "WE'RE HERE, they've GONE; don't you'd can't",
    "x=1234567890; for(i=0;i<10;++i){a[i]*=2;} // ok?",
    "naïve café — Größe, ¿qué? 東京 привет 😀 …",
    "http://example.org/a_b-c?d=e&f#g user@example.org",
)
"""Short texts with what everyday text may lack: digits, runs of spaces, code, other scripts. They decide
between rules that the held-out texts do not tell apart; failing them alone is a note, not a refusal."""

_SHOWN = 60


@dataclass(frozen=True, slots=True)
class Proof:
    """The tokenizer metadata that was proven and in what words."""

    metadata: dict[str, Value]
    words: str
    notes: tuple[str, ...]


@dataclass(frozen=True, slots=True)
class _Difference:
    text: str
    original: list[int]
    runtime: list[int]

    def words(self) -> str:
        """The first place where the ids part, short."""
        at = next(
            (index for index, pair in enumerate(zip(self.original, self.runtime, strict=False)) if pair[0] != pair[1]),
            min(len(self.original), len(self.runtime)),
        )
        begin = max(0, at - 3)
        text = self.text if len(self.text) <= _SHOWN else self.text[:_SHOWN] + "…"
        return (
            f"{text!r}: ids from position {begin} are {self.original[begin : at + 5]} in the original "
            f"and {self.runtime[begin : at + 5]} in llama.cpp"
        )


@dataclass(frozen=True, slots=True)
class _Outcome:
    """How one splitting rule did."""

    metadata: dict[str, Value]
    compared: int
    """Held-out texts that llama.cpp could tokenise."""
    refused: int
    """Held-out texts with characters that the vocabulary has no tokens for."""
    probed: int
    """Probes that llama.cpp could tokenise."""
    in_texts: tuple[_Difference, ...]
    in_probes: tuple[_Difference, ...]


def prove(
    arch: str,
    metadata: Mapping[str, Value],
    vocabulary: Vocabulary,
    files: TokenizerFiles,
    texts: Sequence[str],
    *,
    required: bool = True,
) -> Proof:
    """Choose the splitting rule whose ids agree on every text.

    Args:
        metadata: the file's other metadata.
        texts: held-out texts; none at all leaves the choice to the probes and makes a note.
        required: whether a difference is refused. If not, it is a note: an encoder's texts are cut by edgegen.

    Raises:
        UnsupportedError: no rule of llama.cpp gives the original's ids; names the first differing text.
    """
    texts = [text for text in texts if text]
    wanted, probes = _original(files.library, texts), _original(files.library, PROBES)
    tried: list[_Outcome] = []
    for name in vocabulary.pre_names or ("",):
        candidate = vocabulary.with_rule(name)
        with _opened(arch, {**metadata, **candidate}) as runtime:
            in_texts, refused = _differences(runtime, texts, wanted)
            in_probes, silent = _differences(runtime, PROBES, probes)
            outcome = _Outcome(
                candidate,
                len(texts) - refused,
                refused,
                len(PROBES) - silent,
                tuple(in_texts),
                tuple(in_probes),
            )
            if not in_texts and not in_probes:
                return _proven(outcome, runtime, vocabulary, files)
        tried.append(outcome)
    for outcome in tried:
        if outcome.compared and not outcome.in_texts:
            with _opened(arch, {**metadata, **outcome.metadata}) as runtime:
                return _proven(outcome, runtime, vocabulary, files)
    worst = (tried[0].in_texts or tried[0].in_probes)[0]
    if not required:
        return _unproven(tried[0], worst)
    raise UnsupportedError(
        f"llama.cpp does not tokenise like this model: {worst.words()}",
        hint="The tokenizer splits text in a way that llama.cpp has no rule for.",
    )


def _proven(outcome: _Outcome, runtime: LoadedVocabulary, vocabulary: Vocabulary, files: TokenizerFiles) -> Proof:
    notes = list(vocabulary.notes)
    words = f"{outcome.compared} of {outcome.compared} held-out texts tokenise identically"
    if not outcome.compared:
        words = "no held-out text was compared"
        proven = "proven on built-in probes only" if outcome.probed else "not proven"
        notes.append(f"the tokenizer is {proven}, since no held-out text was compared")
    if outcome.refused:
        words += f", {outcome.refused} were left out"
        notes.append(f"{outcome.refused} held-out texts have characters that the vocabulary has no tokens for")
    if outcome.in_probes:
        notes.append(f"llama.cpp tokenises unusual text differently: {outcome.in_probes[0].words()}")
    elif outcome.probed:
        words += f", {outcome.probed} of {outcome.probed} probes too"
    rule = outcome.metadata.get("tokenizer.ggml.pre")
    words += f" (llama.cpp's {rule or vocabulary.kind} rule)"
    special = [f"a {text} b" for text in vocabulary.special_texts[:64]]
    wrong, _ = _differences(runtime, special, _original(files.library, special))
    if wrong:
        notes.append(f"llama.cpp handles text around special tokens differently: {wrong[0].words()}")
    return Proof(outcome.metadata, words, tuple(notes))


def _unproven(outcome: _Outcome, worst: _Difference) -> Proof:
    """What is said of a file whose own tokenizer is not the original's."""
    same = outcome.compared - len(outcome.in_texts)
    words = (
        f"the device cuts text with the original's own tokenizer.json and library; llama.cpp's own tokenizer, which is "
        f"not used, cuts {same} of {outcome.compared} held-out texts identically"
    )
    return Proof(outcome.metadata, words, (f"llama.cpp's own tokenizer, not used here, differs: {worst.words()}",))


def _original(library: Tokenizer, texts: Sequence[str]) -> list[list[int]]:
    return [encoding.ids for encoding in library.encode_batch(list(texts), add_special_tokens=False)]


def _differences(
    runtime: LoadedVocabulary, texts: Sequence[str], wanted: Sequence[list[int]]
) -> tuple[list[_Difference], int]:
    """Texts that llama.cpp tokenises differently, and how many it has no tokens for."""
    found, refused = [], 0
    for text, ids in zip(texts, wanted, strict=True):
        try:
            own = runtime.tokenize(text, parse_special=True)
        except ConfigError:
            refused += 1
            continue
        if own != ids:
            found.append(_Difference(text, ids, own))
    return found, refused


@contextlib.contextmanager
def _opened(arch: str, metadata: Mapping[str, Value]) -> Iterator[LoadedVocabulary]:
    """llama.cpp's tokenizer under this metadata."""
    with tempfile.TemporaryDirectory(prefix="edgegen-") as folder:
        path = Path(folder) / "vocabulary.gguf"
        start(path, arch, metadata, []).close()
        try:
            runtime = LlamaCpp().open_vocabulary(path)
        except DeviceError as error:
            raise UnsupportedError(f"llama.cpp refuses the tokenizer: {error}") from error
        with runtime:
            yield runtime
