"""The README's blocks are what they copy, and the tool that keeps them so says what is wrong."""

import importlib.util
from pathlib import Path
from types import ModuleType

import pytest

ROOT = Path(__file__).resolve().parents[1]


def _load_tool() -> ModuleType:
    spec = importlib.util.spec_from_file_location("readme_blocks", ROOT / "tools" / "readme_blocks.py")
    assert spec is not None and spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


blocks = _load_tool()


@pytest.fixture
def readme(tmp_path: Path) -> Path:
    path = tmp_path / "README.md"
    path.write_text(
        "# Title\n\n<!-- begin:help doctor -->\nold\n<!-- end:help -->\n\ntext\n\n"
        "<!-- begin:file targets/gguf.toml -->\n<!-- end:file -->\n"
    )
    return path


def test_the_readme_is_up_to_date() -> None:
    assert blocks.main(["--check"]) == 0


def test_no_markers_pass(tmp_path: Path) -> None:
    path = tmp_path / "README.md"
    path.write_text("# Title\n")
    assert blocks.main(["--check", "--readme", str(path)]) == 0


def test_writing_makes_the_check_pass_and_changes_nothing_twice(readme: Path) -> None:
    assert blocks.main(["--write", "--readme", str(readme)]) == 0
    written = readme.read_text()
    assert "Usage: edgegen doctor" in written and "\x1b" not in written
    assert (ROOT / "targets" / "gguf.toml").read_text().rstrip() in written
    assert written.startswith("# Title\n") and "\n\ntext\n\n" in written
    assert blocks.main(["--check", "--readme", str(readme)]) == 0
    assert blocks.main(["--write", "--readme", str(readme)]) == 0 and readme.read_text() == written


def test_an_old_block_is_named(readme: Path, capsys: pytest.CaptureFixture[str]) -> None:
    before = readme.read_text()
    assert blocks.main(["--check", "--readme", str(readme)]) == 1
    assert "help doctor" in capsys.readouterr().err
    assert readme.read_text() == before


@pytest.mark.parametrize(
    ("text", "said"),
    [
        ("<!-- begin:help doctor -->\nno end\n", "markers"),
        ("<!-- begin:file no/such.py -->\n<!-- end:file -->\n", "no/such.py"),
        ("<!-- begin:file ../outside -->\n<!-- end:file -->\n", "outside"),
        ("<!-- begin:help nonsense -->\n<!-- end:help -->\n", "nonsense"),
    ],
)
def test_what_cannot_be_written_is_an_error(
    text: str, said: str, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    path = tmp_path / "README.md"
    path.write_text(text)
    assert blocks.main(["--write", "--readme", str(path)]) == 1
    assert said in capsys.readouterr().err
    assert path.read_text() == text


def test_a_fence_in_the_content_is_enclosed_by_a_longer_one(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    (tmp_path / "inner.md").write_text("```bash\nls\n```\n")
    monkeypatch.setattr(blocks, "ROOT", tmp_path)
    assert "````text\n```bash" in blocks.renew("<!-- begin:file inner.md -->\n<!-- end:file -->")
