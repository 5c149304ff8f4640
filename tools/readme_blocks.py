"""Keep the README's copies equal to what they copy: a command's help, a file of the repository.

python tools/readme_blocks.py --check    fail if a block is not what would be written
python tools/readme_blocks.py --write    write all blocks anew

Between these markers stands what the program itself says, or the file word for word, in a fenced block:

    <!-- begin:help compress -->     the output of `edgegen compress --help`; `edgegen` alone for the command's own help
    <!-- end:help -->
    <!-- begin:file examples/02_compress.py -->
    <!-- end:file -->
    <!-- begin:table techniques -->   registered techniques by what a Llama's can be written for, not fenced
    <!-- end:table -->

Help is asked for at 100 columns without colours, so that it does not depend on anyone's terminal.
"""

from __future__ import annotations

import argparse
import os
import re
import subprocess
import sys
from pathlib import Path

ROOT = Path(__file__).resolve().parent.parent
_BLOCK = re.compile(r"(?ms)^<!-- begin:(help|file|table) (.+?) -->\n(.*?)^<!-- end:\1 -->$")
_MARKER = re.compile(r"(?m)^<!-- (?:begin|end):.*$")
_LANGUAGES = {".py": "python", ".toml": "toml", ".json": "json", ".yml": "yaml", ".sh": "bash"}


def main(arguments: list[str] | None = None) -> int:
    """Exit code 0, or 1 for a block that is not up to date, a marker without its pair, or a source that is missing."""
    parser = argparse.ArgumentParser(description=(__doc__ or "").splitlines()[0])
    action = parser.add_mutually_exclusive_group(required=True)
    action.add_argument("--check", action="store_true", help="compare and write nothing")
    action.add_argument("--write", action="store_true", help="write the blocks anew")
    parser.add_argument("--readme", type=Path, default=ROOT / "README.md", help="the file that holds the blocks")
    options = parser.parse_args(arguments)
    text = options.readme.read_text(encoding="utf-8")
    try:
        renewed = renew(text)
    except ValueError as error:
        print(f"{options.readme.name}: {error}", file=sys.stderr)
        return 1
    if options.write:
        options.readme.write_text(renewed, encoding="utf-8")
        return 0
    if renewed != text:
        print(
            f"{options.readme.name}: not up to date: {', '.join(changed(text, renewed))}; "
            "run python tools/readme_blocks.py --write",
            file=sys.stderr,
        )
        return 1
    return 0


def renew(text: str) -> str:
    """The text with every block written anew.

    Raises:
        ValueError: a marker without its pair, an unknown command, or no such file.
    """
    blocks = list(_BLOCK.finditer(text))
    markers = _MARKER.findall(text)
    if len(markers) != 2 * len(blocks):
        raise ValueError(
            f"{len(markers)} markers make {len(blocks)} blocks; each begin needs its end on a line of its own"
        )
    return _BLOCK.sub(_renewed, text)


def changed(before: str, after: str) -> list[str]:
    """Names of the blocks that differ."""
    pairs = zip(_BLOCK.finditer(before), _BLOCK.finditer(after), strict=True)
    return [f"{old[1]} {old[2]}" for old, new in pairs if old[3] != new[3]]


def _renewed(block: re.Match[str]) -> str:
    kind, name = block[1], block[2]
    if kind == "table":
        return f"<!-- begin:table {name} -->\n{table_of(name)}\n<!-- end:table -->"
    content, language = (help_of(name), "text") if kind == "help" else file_of(name)
    # A fence longer than any in the content, so that Markdown files can be included too.
    fence = "`" * max(3, *(len(run) + 1 for run in re.findall(r"`{3,}", content)), 3)
    return f"<!-- begin:{kind} {name} -->\n{fence}{language}\n{content.rstrip()}\n{fence}\n<!-- end:{kind} -->"


def help_of(command: str) -> str:
    """What `edgegen COMMAND --help` prints.

    Raises:
        ValueError: there is no such command.
    """
    words = [word for word in command.split() if word != "edgegen"]
    program = "import sys; from edgegen.cli.app import main; sys.argv[0] = 'edgegen'; main()"
    done = subprocess.run(
        [sys.executable, "-c", program, *words, "--help"],
        cwd=ROOT,
        env={**os.environ, "COLUMNS": "100", "NO_COLOR": "1", "TERM": "dumb"},
        capture_output=True,
        text=True,
        check=False,
    )
    if done.returncode != 0:
        raise ValueError(f"edgegen {command} --help: {done.stderr.strip() or 'failed'}")
    return "\n".join(line.rstrip() for line in done.stdout.strip("\n").splitlines())


def table_of(name: str) -> str:
    """A table that the registries say.

    Raises:
        ValueError: there is no such table.
    """
    if name != "techniques":
        raise ValueError(f"table {name}: the only one is techniques")
    from transformers import LlamaConfig

    from edgegen.catalog import load_target
    from edgegen.export.registry import TARGETS
    from edgegen.techniques.registry import techniques

    config = LlamaConfig()
    lines = [f"| `--techniques` | what it does | {' | '.join(TARGETS)} |", "|---|---|" + "---|" * len(TARGETS)]
    for technique in techniques():
        cells = [technique.obstacle(config, load_target(target)) or "yes" for target in TARGETS]
        lines.append(f"| `{technique.NAME}` | {technique.TITLE} | {' | '.join(cells)} |")
    return "\n".join(lines)


def file_of(name: str) -> tuple[str, str]:
    """A file's text and the language of its fence.

    Raises:
        ValueError: there is no such file in the repository.
    """
    path = (ROOT / name).resolve()
    if not path.is_relative_to(ROOT) or not path.is_file():
        raise ValueError(f"file {name}: not in the repository")
    return path.read_text(encoding="utf-8"), _LANGUAGES.get(path.suffix, "text")


if __name__ == "__main__":
    sys.exit(main())
