"""The wheel holds its data, and its base install works without any extra: that is what a device gets."""

import os
import subprocess
import sys
import venv
import zipfile
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parents[1]
pytestmark = pytest.mark.slow


@pytest.fixture(scope="module")
def wheel(tmp_path_factory: pytest.TempPathFactory) -> Path:
    out = tmp_path_factory.mktemp("dist")
    _run(sys.executable, "-m", "build", "--wheel", "--no-isolation", "--outdir", out, ROOT)
    return next(out.glob("edgegen-*.whl"))


@pytest.fixture(scope="module")
def base_install(wheel: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The `bin` folder of an environment with the wheel and its plain dependencies."""
    folder = tmp_path_factory.mktemp("base")
    venv.create(folder, with_pip=True)
    scripts = folder / ("Scripts" if os.name == "nt" else "bin")
    _run(scripts / "python", "-m", "pip", "install", "-q", "-c", ROOT / "constraints.txt", wheel)
    return scripts


def _run(*command: object, code: int = 0) -> subprocess.CompletedProcess[str]:
    """Run a program outside the checkout, so that only what is installed can be found."""
    environment = {name: value for name, value in os.environ.items() if name != "PYTHONPATH"}
    done = subprocess.run(
        [str(word) for word in command],
        cwd=Path(sys.prefix),
        env=environment,
        capture_output=True,
        text=True,
        check=False,
    )
    assert done.returncode == code, done.stdout + done.stderr
    return done


def test_the_wheel_holds_its_data(wheel: Path) -> None:
    names = set(zipfile.ZipFile(wheel).namelist())
    for kind in ("targets", "profiles"):
        shipped = {path.name for path in (ROOT / kind).glob("*.toml")}
        assert shipped and shipped == {Path(n).name for n in names if n.startswith(f"edgegen/_data/{kind}/")}
    assert {
        "edgegen/prepare/generic.jsonl",
        "edgegen/receipt/receipt.html.j2",
        "edgegen/receipt/receipt.css",
    } <= names
    assert not [name for name in names if name.startswith(("tests/", "examples/", "tools/"))]


def test_the_base_install_brings_no_torch(base_install: Path) -> None:
    _run(base_install / "python", "-c", "import edgegen, sys; assert 'torch' not in sys.modules")
    _run(base_install / "python", "-c", "import torch", code=1)


@pytest.mark.parametrize(
    ("words", "said"),
    [
        ("--help", "compress"),
        ("profiles", "raspberry-pi-4-4gb"),
        ("profiles show raspberry-pi-4-4gb", "Cortex-A72"),
        ("doctor", "pip install 'edgegen[gguf]'"),
    ],
)
def test_the_base_install_runs(base_install: Path, words: str, said: str) -> None:
    assert said.lower() in _run(base_install / "edgegen", *words.split()).stdout.lower()


@pytest.mark.parametrize("command", ["plan", "compress"])
def test_a_missing_extra_is_named_in_one_line(base_install: Path, command: str, tmp_path: Path) -> None:
    done = _run(
        *(base_install / "edgegen", command, "x", "--profile", "raspberry-pi-4-4gb", "--quiet"),
        *("--out", tmp_path / "out"),
        code=3,
    )
    (line,) = done.stderr.strip().splitlines()
    assert line.startswith("edgegen: ") and "pip install 'edgegen[gguf,compress]'" in line
    assert not done.stdout and not list(tmp_path.iterdir())
