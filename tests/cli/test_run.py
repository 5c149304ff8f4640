"""`edgegen run`: answers on stdout, talk on stderr, conversations that fit the context, in a terminal and in a pipe."""

import io
import json
import os
import pty
import select
import shutil
import signal
import subprocess
import sys
import time
from collections.abc import Iterator
from pathlib import Path

import msgspec
import pytest

from edgegen.common.codec import load_json, save_json
from edgegen.errors import ConfigError
from edgegen.records.answer import Answer
from edgegen.records.artifact import Artifact
from edgegen.records.bakeoff import BakeOff, Contender
from edgegen.runtime.sampling import Sampling
from edgegen.sdk.artifacts import artifact_folders, find_artifact
from edgegen.sdk.chat import Chat
from tests.flows.command import run_cli
from tests.runtime.test_text import CHATML
from tests.tiny_models import export_tiny, make_tiny

STRICT = CHATML.replace(
    "<|im_start|>{{", "{% if message.role == 'system' and 'no' in message.content %}"
    "{{ raise_exception('I take no orders') }}{% endif %}<|im_start|>{{", 1
)  # fmt: skip


@pytest.fixture(scope="module")
def plain(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """An artifact of a model without a chat template, whose texts end with no token."""
    folder = tmp_path_factory.mktemp("plain")
    export_tiny(make_tiny("llama", folder / "hf", tied=True, tokenizer="sentencepiece"), folder)
    return _endless(folder / "artifact")


@pytest.fixture(scope="module")
def talker(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """One of a model with a chat template."""
    folder = tmp_path_factory.mktemp("talker")
    made = make_tiny("llama", folder / "hf", tied=True, chat_template=STRICT, context=4096)
    export_tiny(made, folder, context_tokens=256)
    return _endless(folder / "artifact")


def _endless(folder: Path) -> Path:
    artifact = load_json(folder / "artifact.json", Artifact)
    save_json(folder / "artifact.json", msgspec.structs.replace(artifact, eos_ids=()))
    return folder


# One answer


def test_a_prompt_is_continued_and_its_speed_told(plain: Path) -> None:
    done = run_cli("run", plain, "the cat", "--max-tokens", "9")
    assert done.code == 0 and done.out.endswith("\n") and len(done.out) > 5
    notes = done.err.splitlines()
    assert len(notes) == 2 and "no chat template" in notes[0]
    assert notes[1].startswith("[9 tokens, ") and "tok/s" in notes[1] and "first token after" in notes[1]
    assert "cut at --max-tokens" in notes[1]


def test_the_answer_is_the_models_own(plain: Path) -> None:
    """The same ids as the runtime gives by itself, joined to the prompt as one text."""
    with Chat(plain) as chat:
        ids = chat._text.encode("the cat")
        made = list(chat._session.generate(ids, max_tokens=12))
        whole = chat._text.decode([*ids, *made])
    done = run_cli("run", plain, "the cat", "--max-tokens", "12", "--quiet")
    assert not done.err
    assert "the cat" + done.out == whole + "\n"


def test_json_is_one_record(plain: Path) -> None:
    done = run_cli("run", plain, "the cat", "--json", "-n", "5", "--threads", "2", "--quiet")
    answer = msgspec.json.decode(done.out, type=Answer)
    assert not done.err and done.code == 0
    assert (answer.target, answer.runtime, answer.threads) == ("gguf", "llama.cpp", 2)
    assert (answer.answer_tokens, answer.ended, answer.prompt) == (5, "length", "the cat")
    assert answer.ttft_ms and answer.ttft_ms > 0 and answer.decode_tokens_per_s and answer.load_ms > 0
    assert answer.notes and answer.prompt_tokens == len(Chat(plain)._text.encode("the cat"))


def test_a_seed_draws_the_same_again(plain: Path) -> None:
    def drawn(seed: int) -> str:
        options = ("--temperature", "1.5", "--top-k", "50", "--top-p", "0.95", "--min-p", "0.01")
        return run_cli("run", plain, "the cat", "-n", "20", "--seed", seed, *options, "--quiet").out

    assert drawn(1) == drawn(1) != drawn(2)


def test_a_stop_text_ends_the_answer(plain: Path) -> None:
    whole = run_cli("run", plain, "the cat", "-n", "20", "--quiet").out[:-1]
    stop = whole[6:9]
    answer = msgspec.json.decode(
        run_cli("run", plain, "the cat", "-n", "20", "--json", "--stop", "no such", "--stop", stop).out, type=Answer
    )
    assert answer.text == whole[: whole.index(stop)] and answer.ended == "stop_text"


def test_the_end_of_the_context_ends_the_answer(plain: Path) -> None:
    done = run_cli("run", plain, "the cat", "-n", "1000", "--json")
    answer = msgspec.json.decode(done.out, type=Answer)
    assert answer.ended == "context" and answer.prompt_tokens + answer.answer_tokens == 128 + 1
    assert "the context is full" in done.err


def test_an_end_token_ends_the_answer(plain: Path, tmp_path: Path) -> None:
    copy = shutil.copytree(plain, tmp_path / "copy")
    with Chat(plain) as chat:
        made = list(chat._session.generate(chat._text.encode("the cat"), max_tokens=9))
    artifact = load_json(copy / "artifact.json", Artifact)
    save_json(copy / "artifact.json", msgspec.structs.replace(artifact, eos_ids=(made[4],)))
    answer = msgspec.json.decode(run_cli("run", copy, "the cat", "--json").out, type=Answer)
    assert answer.ended == "stop" and answer.answer_tokens == made.index(made[4])


def test_a_prompt_from_stdin(plain: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(sys, "stdin", io.StringIO("two\nlines"))
    answer = msgspec.json.decode(run_cli("run", plain, "-", "-n", "3", "--json").out, type=Answer)
    assert answer.prompt == "two\nlines"


def test_an_empty_prompt_starts_from_nothing(plain: Path) -> None:
    assert len(run_cli("run", plain, "", "-n", "3").out) > 1


def test_the_template_and_the_system_message_lay_out_the_prompt(talker: Path) -> None:
    def tokens(*options: str) -> int:
        done = run_cli("run", talker, "hello", "-n", "2", "--json", *options)
        assert done.code == 0, done.err
        return msgspec.json.decode(done.out, type=Answer).prompt_tokens

    assert tokens("--system", "be brief") > tokens() > tokens("--raw") > 0
    assert "no chat template" not in run_cli("run", talker, "hello", "-n", "2", "--raw").err


@pytest.mark.parametrize(
    ("options", "said"),
    [
        (["hello", "--runtime", "onnxruntime"], "llama.cpp"),
        (["hello", "--target", "onnx"], "gguf"),
        (["hello", "--temperature", "-1"], "temperature"),
        (["hello", "--max-tokens", "0"], "max_tokens"),
        (["hello", "--threads", "0"], "threads"),
        (["hello", "--system", "x", "--raw"], "chat template"),
        (["hello", "--system", "no"], "I take no orders"),
        (["hello " * 300], "do not fit"),
        (["--json"], "prompt"),
    ],
    ids=lambda value: " ".join(value)[:30] if isinstance(value, list) else "",
)
def test_what_cannot_be_done_is_said_in_a_line(options: list[str], said: str, talker: Path) -> None:
    done = run_cli("run", talker, *options)
    assert done.code in (2, 3) and not done.out
    assert done.err.startswith("edgegen: ") and said in done.err and len(done.err.splitlines()) <= 2


@pytest.mark.parametrize("name", ["model.gguf", "tokenizer.json", "artifact.json"])
def test_a_missing_file_is_named(name: str, talker: Path, tmp_path: Path) -> None:
    copy = shutil.copytree(talker, tmp_path / "copy")
    (copy / name).unlink()
    done = run_cli("run", copy, "hello")
    assert done.code == 2 and (name if name != "artifact.json" else "no edgegen output") in done.err


# Conversations


def turns(chat: Chat) -> list[str]:
    return [turn["content"] for turn in chat._history if turn["role"] == "user"]


def test_a_conversation_is_remembered_and_the_oldest_forgotten(talker: Path) -> None:
    with Chat(talker, system="Be brief.") as chat:
        sizes, forgotten = [], 0
        for number in range(8):
            text = "".join(chat.ask(f"question {number} about the cat and the dog", max_tokens=24))
            assert chat.answer is not None and chat.answer.text == text
            sizes.append(chat.answer.prompt_tokens)
            forgotten += chat.answer.forgotten_turns
            assert sizes[-1] + 24 <= 256
        assert sizes[0] < sizes[1] < sizes[2] and forgotten >= 2
        assert turns(chat) == [f"question {n} about the cat and the dog" for n in range(forgotten, 8)]
        assert chat._history[1]["role"] == "assistant"
        chat.reset()
        list(chat.ask("question 0 about the cat and the dog", max_tokens=24))
        assert chat.answer.prompt_tokens == sizes[0]


def test_a_closed_answer_is_remembered_as_far_as_it_came(talker: Path) -> None:
    with Chat(talker) as chat:
        pieces = chat.ask("hello", max_tokens=50)
        first = next(pieces)
        pieces.close()  # type: ignore[attr-defined]
        assert chat.answer is not None and chat.answer.ended == "interrupted"
        assert chat._history == [
            {"role": "user", "content": "hello"},
            {"role": "assistant", "content": chat.answer.text},
        ]
        assert chat.answer.text == first
        assert "".join(chat.ask("and?", max_tokens=5)) == chat.answer.text


def test_a_refused_question_is_not_remembered(talker: Path) -> None:
    with Chat(talker) as chat:
        with pytest.raises(ConfigError, match="do not fit"):
            chat.ask("hello " * 300)
        with pytest.raises(ConfigError, match="top_p"):
            chat.ask("hello", sampling=Sampling(top_p=2.0))
        assert chat._history == []


def test_piped_lines_are_a_conversation(talker: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(sys, "stdin", io.StringIO("hello\n\n/help\n/nonsense\nand?\n/reset\nhello\n/quit\nnever\n"))
    done = run_cli("run", talker, "-n", "6")
    assert done.code == 0
    first, second, third, *rest = done.out.splitlines()
    assert first == third != second and not rest
    notes = done.err.splitlines()
    assert len([line for line in notes if "tok/s" in line]) == 3
    assert "no command /nonsense" in done.err and "[forgotten]" in notes


# In a terminal


@pytest.fixture
def terminal(talker: Path, tmp_path: Path) -> Iterator[tuple[subprocess.Popen[bytes], int]]:
    """A conversation with answers long enough to be stopped."""
    folder = shutil.copytree(talker, tmp_path / "long")
    artifact = load_json(folder / "artifact.json", Artifact)
    longer = msgspec.structs.replace(artifact.settings, context_tokens=4096)
    save_json(folder / "artifact.json", msgspec.structs.replace(artifact, settings=longer))
    ours, theirs = pty.openpty()
    root = str(Path(__file__).resolve().parents[2])
    process = subprocess.Popen(
        [sys.executable, "-m", "edgegen", "run", str(folder), "-n", "100000", "--temperature", "1.0", "--seed", "1"],
        stdin=theirs,
        stdout=theirs,
        stderr=theirs,
        start_new_session=True,
        preexec_fn=lambda: signal.signal(signal.SIGINT, signal.SIG_DFL),
        env={**os.environ, "PYTHONPATH": root, "TERM": "dumb"},
    )
    os.close(theirs)
    yield process, ours
    process.kill()
    process.wait()
    os.close(ours)


def _until(stream: int, *wanted: str, more: int = 0, seconds: float = 30) -> str:
    """What the terminal shows until all these texts, and some characters more, were there."""
    seen, end = "", time.monotonic() + seconds
    while not all(text in seen for text in wanted) or len(seen) < more:
        ready, _, _ = select.select([stream], [], [], max(0.0, end - time.monotonic()))
        if not ready:
            raise AssertionError(f"waited for {wanted}: {seen}")
        seen += os.read(stream, 4096).decode(errors="replace")
    return seen


def test_a_terminal_converses_and_ctrl_c_stops_an_answer(terminal: tuple[subprocess.Popen[bytes], int]) -> None:
    process, stream = terminal
    assert "/quit" in _until(stream, "> ")
    os.write(stream, b"hello\n")
    _until(stream, "hello", "\n", more=40)
    process.send_signal(signal.SIGINT)
    assert "stopped" in _until(stream, "tok/s", "stopped]", "> ")
    time.sleep(0.3)  # readline loses a signal that comes between its prompt and its wait for a key
    process.send_signal(signal.SIGINT)
    _until(stream, "Ctrl-D", "> ")
    os.write(stream, b"/reset\n")
    _until(stream, "forgotten", "> ")  # a Ctrl-D that comes before the prompt is the system's, and lost with it
    os.write(stream, b"\x04")
    assert process.wait(60) == 0


# Folders


def test_an_output_and_its_artifact_are_both_found(talker: Path, tmp_path: Path) -> None:
    folder = shutil.copytree(talker, tmp_path / "artifact")
    (tmp_path / "plan.json").touch()
    assert artifact_folders(tmp_path) == {"gguf": folder} == artifact_folders(folder)
    assert run_cli("run", tmp_path, "the cat", "-n", "3").code == 0


def bake(folder: Path, artifact: Path, recommended: str, *targets: str) -> Path:
    for target in targets:
        shutil.copytree(artifact, folder / target / "artifact")
    contenders = tuple(Contender(target=target, passed=True) for target in ("gguf", "onnx", "litert"))
    record = BakeOff(
        schema=1,
        model="m",
        profile="p",
        created="",
        command="",
        contenders=contenders,
        pairs=(),
        recommended=recommended,
        why="",
        fastest="",
        smallest="",
        best_quality="",
    )
    save_json(folder / "bakeoff.json", record)
    return folder


def test_a_bake_off_gives_the_recommended_artifact_or_the_named_one(talker: Path, tmp_path: Path) -> None:
    folder = bake(tmp_path / "a", talker, "litert", "gguf", "litert")
    assert find_artifact(folder) == folder / "litert" / "artifact"
    assert find_artifact(folder, "gguf") == folder / "gguf" / "artifact"
    assert list(artifact_folders(folder)) == ["gguf", "litert"]
    with pytest.raises(ConfigError, match="onnx") as caught:
        find_artifact(folder, "onnx")
    assert "gguf, litert" in caught.value.hint
    with pytest.raises(ConfigError, match="recommended") as caught:
        find_artifact(bake(tmp_path / "b", talker, "", "gguf", "onnx"))
    assert "--target" in caught.value.hint
    assert find_artifact(bake(tmp_path / "c", talker, "", "onnx")) == tmp_path / "c" / "onnx" / "artifact"
    with pytest.raises(ConfigError, match="none of its targets"):
        artifact_folders(bake(tmp_path / "d", talker, ""))


def test_running_needs_neither_torch_nor_typer(talker: Path) -> None:
    """The SDK's part, in a fresh process."""
    code = (
        "import sys, json; from pathlib import Path; from edgegen.sdk.chat import Chat\n"
        "from edgegen.sdk.artifacts import find_artifact\n"
        "with Chat(find_artifact(Path(sys.argv[1]))) as chat: list(chat.ask('hello', max_tokens=3))\n"
        "print(json.dumps(sorted({name.partition('.')[0] for name in sys.modules})))"
    )
    done = subprocess.run([sys.executable, "-c", code, str(talker)], capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr
    heavy = {"torch", "transformers", "typer", "matplotlib", "onnx", "scipy", "rich"}
    assert not heavy & set(json.loads(done.stdout))
