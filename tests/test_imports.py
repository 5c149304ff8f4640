"""What importing each package brings along. A static graph cannot see a deferred import; a fresh process can."""

import json
import os
import subprocess
import sys
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parents[1]
HEAVY = ("torch", "transformers", "datasets", "matplotlib", "typer", "scipy")


def _modules_after(code: str) -> set[str]:
    """Top-level modules that a fresh process holds after running some code."""
    program = f"{code}\nimport json, sys\nprint(json.dumps(sorted({{m.partition('.')[0] for m in sys.modules}})))"
    done = subprocess.run([sys.executable, "-c", program], capture_output=True, text=True, check=False, cwd=ROOT)
    assert done.returncode == 0, done.stderr
    return set(json.loads(done.stdout.splitlines()[-1]))


def _all_modules(package: str) -> list[str]:
    folder = ROOT / "edgegen" / package
    names = (path.relative_to(ROOT).with_suffix("") for path in sorted(folder.rglob("*.py")))
    return [".".join(name.parts).removesuffix(".__init__") for name in names]


@pytest.mark.parametrize(
    "package",
    ["common", "emulate", "records", "catalog", "grids", "runtime", "verify", "bundle", "agent", "receipt", "planner"],
)
def test_the_device_side_and_the_planner_stay_light(package: str) -> None:
    modules = _all_modules(package)
    assert modules
    loaded = _modules_after("import " + ", ".join(modules))
    assert not loaded & set(HEAVY)


def test_reading_an_output_needs_no_torch() -> None:
    assert not _modules_after("import edgegen; edgegen.verify, edgegen.read_result, edgegen.Result") & set(HEAVY)


@pytest.mark.parametrize(
    "code",
    [
        "import edgegen; assert edgegen.__version__; dir(edgegen)",
        "import sys; sys.argv = ['edgegen', '--help']\n"
        "try:\n    from edgegen.cli.app import main; main()\nexcept SystemExit as stop:\n    assert not stop.code",
    ],
    ids=["import edgegen", "edgegen --help"],
)
def test_starting_imports_no_numbers(code: str) -> None:
    assert not _modules_after(code) & {"numpy", "torch", "transformers", "tokenizers", "llama_cpp", "matplotlib"}


def test_every_public_name_resolves_and_stays_what_it_is() -> None:
    """Importing the packages `edgegen.compress` and `edgegen.verify` must not hide the functions of these names."""
    code = (
        "import edgegen\n"
        "from edgegen.compress import execute\n"
        "from edgegen.verify import verify as package_module\n"
        "from types import FunctionType, ModuleType\n"
        "for name in ('compress', 'verify', 'plan', 'read_result', 'list_profiles'):\n"
        "    assert isinstance(getattr(edgegen, name), FunctionType), name\n"
        "assert isinstance(edgegen.stages, ModuleType)\n"
        "assert all(getattr(edgegen, name) is not None for name in dir(edgegen))\n"
        "import edgegen.compress.execute, edgegen.verify.limits\n"
        "assert isinstance(edgegen.compress, FunctionType)\n"
        "from edgegen import compress, verify\n"
        "assert callable(compress) and callable(verify)\n"
    )
    _modules_after(code)


def test_verifying_works_where_the_compress_extra_is_not_installed(finished_copy: Path, tmp_path: Path) -> None:
    """A device has the base install and a runtime; here the other libraries are hidden from every process."""
    hidden = (
        "torch",
        "transformers",
        "datasets",
        "matplotlib",
        "scipy",
        "safetensors",
        "optimum",
        "accelerate",
        "peft",
    )
    folder = tmp_path / "hide"
    folder.mkdir()
    (folder / "sitecustomize.py").write_text(f"import sys\nsys.modules.update(dict.fromkeys({hidden!r}))\n")
    done = subprocess.run(
        [sys.executable, "-m", "edgegen", "verify", str(finished_copy), "--json", "--quiet"],
        env={**os.environ, "PYTHONPATH": os.pathsep.join([str(folder), str(ROOT)])},
        capture_output=True,
        text=True,
        check=False,
    )
    assert done.returncode == 0, done.stderr
    assert json.loads(done.stdout)["passed"] is True
    assert "matplotlib is not installed" in (finished_copy / "report.html").read_text()
