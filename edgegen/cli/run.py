"""`edgegen run BUILD "prompt"`: ask an artifact, or talk with it in the terminal; a pipeline's file runs its steps."""

from __future__ import annotations

import contextlib
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from edgegen.cli import options
from edgegen.cli.render import write_json
from edgegen.errors import ConfigError, EdgegenError

if TYPE_CHECKING:
    from edgegen.records.answer import Answer
    from edgegen.runtime.sampling import Sampling
    from edgegen.sdk.chat import Chat

_HELP = "/reset forgets the conversation, /quit (or Ctrl-D) leaves, Ctrl-C stops an answer"


def run(
    build: Annotated[
        str,
        typer.Argument(
            help="What `edgegen compress` wrote, an artifact's folder, or a pipeline's TOML file.", show_default=False
        ),
    ],
    prompt: Annotated[
        str | None,
        typer.Argument(help="What to ask; - reads all of stdin. Without it: a conversation.", show_default=False),
    ] = None,
    target: Annotated[
        str, typer.Option("--target", "-t", help="Which of several compared targets; else the recommended one.")
    ] = "",
    runtime: options.Runtime = "",
    raw: Annotated[bool, typer.Option("--raw", help="Continue the text, without the chat template.")] = False,
    system: Annotated[str, typer.Option("--system", help="What the model is told first.")] = "",
    max_tokens: Annotated[int, typer.Option("--max-tokens", "-n", help="Longest answer.")] = 256,
    temperature: Annotated[float, typer.Option("--temperature", help="0: always the most likely token.")] = 0.0,
    top_k: Annotated[int, typer.Option("--top-k", help="Only the k most likely tokens; 0: all.")] = 0,
    top_p: Annotated[float, typer.Option("--top-p", help="Only the most likely that reach this probability.")] = 1.0,
    min_p: Annotated[float, typer.Option("--min-p", help="Only those this share as likely as the first.")] = 0.0,
    repetition_penalty: Annotated[
        float, typer.Option("--repetition-penalty", help="Above 1: what was said is less likely again.")
    ] = 1.0,
    seed: Annotated[int | None, typer.Option("--seed", help="Draw the same answer again.")] = None,
    stop: Annotated[list[str] | None, typer.Option("--stop", help="End at this text; may be repeated.")] = None,
    compare: Annotated[
        list[str] | None, typer.Option("--with", help="Of an encoder: another text to compare; may be repeated.")
    ] = None,
    threads: Annotated[
        int | None, typer.Option("--threads", help="Threads; else the artifact's own number, if there are cores.")
    ] = None,
    dry_run: Annotated[
        bool, typer.Option("--dry-run", help="Of a pipeline: show what would be done, and do nothing.")
    ] = False,
    json: options.Json = False,
    quiet: options.Quiet = False,
) -> None:
    """Run an artifact on its runtime: an answer, or an encoder's vector, on stdout, its speed on stderr.

    A pipeline's TOML file runs every step from data to bundle that is not done yet.
    """
    if build.endswith(".toml"):
        from edgegen.cli.chain import run_pipeline

        run_pipeline(build, dry_run=dry_run, json=json, quiet=quiet)
        return
    if dry_run:
        raise ConfigError("--dry-run is for pipelines", hint="Give a pipeline's TOML file.")
    if json and prompt is None:
        raise ConfigError("--json needs a prompt", hint="Give one, or - to read it from stdin.")
    from edgegen.cli.embed import embed
    from edgegen.runtime.sampling import Sampling
    from edgegen.sdk.artifacts import find_artifact, is_encoder
    from edgegen.sdk.chat import Chat

    sampling = Sampling(
        temperature=temperature,
        top_k=top_k,
        top_p=top_p,
        min_p=min_p,
        repetition_penalty=repetition_penalty,
        seed=seed,
    )
    folder = find_artifact(Path(build), target)
    if is_encoder(folder):
        if prompt is None:
            raise ConfigError("an encoder needs a text", hint="Give one, or - to read it from stdin.")
        text = sys.stdin.read() if prompt == "-" else prompt
        embed(folder, text, compare or (), runtime=runtime, threads=threads, json=json, quiet=quiet)
        return
    if compare:
        raise ConfigError("--with is for encoders; this model continues text", hint="Leave it out.")
    with Chat(folder, runtime=runtime, threads=threads, system=system, raw=raw) as chat:
        teller = _Teller(chat, sampling, max_tokens, tuple(stop or ()), json=json, quiet=quiet)
        if prompt is None:
            teller.converse()
        elif teller.tell(sys.stdin.read() if prompt == "-" else prompt).ended == "interrupted":
            raise typer.Exit(130)


class _Teller:
    """Asks, and shows what comes."""

    def __init__(
        self, chat: Chat, sampling: Sampling, max_tokens: int, stop: tuple[str, ...], *, json: bool, quiet: bool
    ) -> None:
        self._chat, self._sampling, self._max_tokens, self._stop = chat, sampling, max_tokens, stop
        self._json, self._quiet = json, quiet
        for note in chat.notes:
            self._talk(note)

    def tell(self, prompt: str) -> Answer:
        """Ask once; Ctrl-C ends the answer, not the program."""
        from edgegen.receipt.shown import visible

        # What a model writes may drive a terminal; a pipe gets it as it is.
        shown = visible if sys.stdout.isatty() else str
        pieces = self._chat.ask(prompt, max_tokens=self._max_tokens, sampling=self._sampling, stop=self._stop)
        with contextlib.suppress(KeyboardInterrupt), contextlib.closing(pieces):
            for piece in pieces:
                if not self._json:
                    sys.stdout.write(shown(piece))
                    sys.stdout.flush()
        answer = self._chat.answer
        assert answer is not None, "a closed answer is told about"
        if self._json:
            write_json(answer)
        else:
            sys.stdout.write("\n")
            sys.stdout.flush()
        self._talk(describe(answer))
        return answer

    def converse(self) -> None:
        """Ask whatever is typed or piped in, a line at a time."""
        typed = sys.stdin.isatty()
        if typed:
            chat = self._chat
            self._talk(
                f"{chat.artifact.family} on {chat.runtime}, context of {chat.settings.context_tokens} tokens. {_HELP}"
            )
        for line in _typed_lines() if typed else sys.stdin:
            words = line.strip()
            if words in ("/quit", "/exit"):
                return
            if words == "/reset":
                self._chat.reset()
                self._talk("forgotten")
            elif words == "/help":
                self._talk(_HELP)
            elif words.startswith("/"):
                self._talk(f"no command {words.split()[0]}: {_HELP}")
            elif words:
                self._try(line.rstrip("\n"), goes_on=typed)

    def _try(self, prompt: str, *, goes_on: bool) -> None:
        try:
            self.tell(prompt)
        except EdgegenError as error:
            if not goes_on:
                raise
            self._talk(f"{error} {error.hint}".strip())

    def _talk(self, text: str) -> None:
        if not self._quiet:
            sys.stderr.write(f"[{text}]\n")
            sys.stderr.flush()


def describe(answer: Answer) -> str:
    """An answer's speed, and why it ended if not by itself."""
    from edgegen.common.units import format_seconds
    from edgegen.receipt.shown import significant

    words = [f"{answer.answer_tokens} token{'' if answer.answer_tokens == 1 else 's'}"]
    if answer.decode_tokens_per_s is not None:
        words.append(f"{significant(answer.decode_tokens_per_s)} tok/s")
    if answer.ttft_ms is not None:
        words.append(f"first token after {format_seconds(answer.ttft_ms / 1000)}")
    if answer.forgotten_turns:
        words.append(f"the context is small: forgot the {answer.forgotten_turns} oldest questions")
    ends = {"length": "cut at --max-tokens", "context": "the context is full", "interrupted": "stopped"}
    words += [ends[answer.ended]] if answer.ended in ends else []
    return ", ".join(words)


def _typed_lines() -> Iterator[str]:
    """Lines from a terminal, with the arrow keys where the system has readline, until Ctrl-D."""
    with contextlib.suppress(ImportError):
        import readline  # noqa: F401  input() uses it once it is imported
    while True:
        try:
            yield input("> ")
        except KeyboardInterrupt:
            sys.stderr.write(f"\n[{_HELP}]\n")
        except EOFError:
            sys.stderr.write("\n")
            return
