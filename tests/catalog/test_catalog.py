"""Names are found where they should be, and wrong files are refused with the file, the key and what to do."""

import platform
import subprocess
import sys
from pathlib import Path

import msgspec
import psutil
import pytest

from edgegen.catalog import (
    THIS_MACHINE,
    is_this_machine,
    list_profiles,
    load_profile,
    load_target,
    save_user_profile,
    schema_of,
    user_folder,
)
from edgegen.catalog.locate import shipped_folder
from edgegen.catalog.machine import _host_names
from edgegen.errors import ConfigError
from edgegen.records.profile import Budgets, Number, Profile

PI = "raspberry-pi-5-8gb"


@pytest.fixture(autouse=True)
def home(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    monkeypatch.setenv("EDGEGEN_HOME", str(tmp_path / "home"))
    return tmp_path / "home"


def _edited(folder: Path, old: str, new: str, *, name: str = PI) -> Path:
    text = (shipped_folder("profiles") / f"{PI}.toml").read_text()
    assert old in text
    path = folder / f"{name}.toml"
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text(text.replace(old, new, 1))
    return path


def _named(profile: Profile, name: str) -> Profile:
    return msgspec.structs.replace(profile, name=name)


def test_user_file_overrides_a_shipped_one(home: Path) -> None:
    _edited(home / "profiles", "max_kl = 0.05", "max_kl = 0.5")
    assert load_profile(PI).budgets.max_kl == 0.5
    assert [profile.budgets.max_kl for profile in list_profiles() if profile.name == PI] == [0.5]


def test_path_is_taken_as_it_is(tmp_path: Path) -> None:
    path = _edited(tmp_path, "max_kl = 0.05", "max_kl = 0.25")
    assert load_profile(path).budgets.max_kl == load_profile(str(path)).budgets.max_kl == 0.25
    with pytest.raises(ConfigError, match=r"nowhere\.toml: no such file"):
        load_profile("nowhere.toml")


def test_unknown_name_suggests_the_nearest() -> None:
    with pytest.raises(ConfigError, match="raspberry-pi-5-8g") as caught:
        load_profile("raspberry-pi-5-8g")
    assert "Did you mean 'raspberry-pi-5-" in caught.value.hint
    with pytest.raises(ConfigError) as caught:
        load_target("ggfu")
    assert "'gguf'" in caught.value.hint


def test_unknown_key_names_file_and_key_and_the_nearest(tmp_path: Path) -> None:
    path = _edited(tmp_path, "max_rss_bytes", "max_rss_byte")
    with pytest.raises(ConfigError, match=r"raspberry-pi-5-8gb\.toml: unknown key 'budgets\.max_rss_byte'") as caught:
        load_profile(path)
    assert "max_rss_bytes" in caught.value.hint


@pytest.mark.parametrize(
    ("old", "new", "key"),
    [
        ("max_bytes = 2_800_000_000", "max_bytes = 0", r"budgets\.max_bytes: 0"),
        ("min_tokens_per_s = 8.0", "min_tokens_per_s = -1.0", r"budgets\.min_tokens_per_s"),
        ("max_ttft_ms = 2000.0", "max_ttft_ms = nan", r"budgets\.max_ttft_ms: nan"),
        ("max_rss_bytes = 3_800_000_000", "max_rss_bytes = 9_800_000_000", r"budgets\.max_rss_bytes: 9,800"),
        ("value = 2.4", "value = 0.0", r"device\.clock_ghz: 0"),
        ("value = 11_600_000_000", "value = inf", r"device\.bandwidth_bytes_per_s: inf"),
        ("cores = 4", "cores = 0", r"device\.cores: 0"),
        ('isa = "neon-dotprod"', 'isa = "neon-dotprd"', r"device\.isa: 'neon-dotprd'"),
        ('arch = "aarch64"', 'arch = "arm"', r"device\.arch: 'arm'"),
        ("schema = 1", "schema = 99", r"schema: 99"),
        ('name = "raspberry-pi-5-8gb"', 'name = "other"', r"name: 'other' is not the file's name"),
        ("context_tokens = 2048", "context_tokens = 100", r"workload\.context_tokens: 100"),
        ('targets = ["gguf", "onnx", "litert"]', "targets = []", r"targets: is empty"),
    ],
)
def test_impossible_value_names_file_and_key_and_says_what_to_do(tmp_path: Path, old: str, new: str, key: str) -> None:
    with pytest.raises(ConfigError, match=r"raspberry-pi-5-8gb\.toml: " + key) as caught:
        load_profile(_edited(tmp_path, old, new))
    assert caught.value.hint


@pytest.mark.parametrize(
    ("old", "new", "key"),
    [
        ("block = 32", "block = 0", r"grids\.q8_0\.block"),
        ('name = "q6_k"', 'name = "q8_0"', r"'q8_0' is there twice"),
        (
            "weights_resident_fraction = 1.0",
            "weights_resident_fraction = 1.5",
            r"weights_resident_fraction: 1\.5",
        ),
        ("fixed_buffer_bytes = 8_500_000", "fixed_buffer_bytes = -1", r"overheads\.fixed_buffer_bytes: -1"),
        ("fixed_buffer_bytes = 4_000_000", "fixed_buffer_bytes = -1", r"encoder_overheads\.fixed_buffer_bytes: -1"),
        ("parity_max_kl = 0.005", "parity_max_kl = 0.0", r"parity_max_kl"),
    ],
)
def test_impossible_target_is_refused(tmp_path: Path, old: str, new: str, key: str) -> None:
    text = (shipped_folder("targets") / "gguf.toml").read_text()
    assert old in text
    path = tmp_path / "gguf.toml"
    path.write_text(text.replace(old, new, 1))
    with pytest.raises(ConfigError, match=key) as caught:
        load_target(path)
    assert caught.value.hint


def test_this_machine_asks_for_a_probe_until_there_is_one() -> None:
    with pytest.raises(ConfigError) as caught:
        load_profile(THIS_MACHINE)
    assert "edgegen profiles probe" in caught.value.hint
    saved = save_user_profile(_named(load_profile(PI), THIS_MACHINE))
    assert saved == user_folder() / "profiles" / "this-machine.toml"
    assert load_profile(THIS_MACHINE) == _named(load_profile(PI), THIS_MACHINE)


def test_saving_refuses_what_would_not_be_read_back() -> None:
    profile = load_profile(PI)
    with pytest.raises(ConfigError, match="not a file name"):
        save_user_profile(_named(profile, "../escape"))
    with pytest.raises(ConfigError, match="max_bytes"):
        save_user_profile(msgspec.structs.replace(profile, budgets=Budgets(max_bytes=0)))
    assert not user_folder().exists()


def test_text_with_quotes_and_newlines_is_read_back() -> None:
    notes = 'a "quoted" word, a \\ and\na second line with ü'
    profile = msgspec.structs.replace(load_profile(PI), name="odd", notes=notes)
    save_user_profile(profile)
    assert load_profile("odd") == profile


def test_only_the_device_itself_is_this_machine() -> None:
    profile = load_profile(PI)
    host = sorted(_host_names(), key=len)
    if not host:
        pytest.skip("this machine does not name its processor")
    arch = {"arm64": "aarch64", "amd64": "x86_64"}.get(platform.machine().lower(), platform.machine().lower())
    cores = psutil.cpu_count(logical=False) or psutil.cpu_count() or 1
    ram = Number(float(psutil.virtual_memory().total), "measured")
    here = msgspec.structs.replace(profile.device, arch=arch, cpu=host[-1].upper(), cores=cores, ram_bytes=ram)
    assert is_this_machine(msgspec.structs.replace(profile, device=here))
    others = (
        {"arch": "riscv64"},
        {"cpu": "Another processor"},
        {"cores": 1009},
        {"ram_bytes": Number(2 * ram.value, "measured")},
    )
    for change in others:
        device = msgspec.structs.replace(here, **change)
        assert not is_this_machine(msgspec.structs.replace(profile, device=device)), change


def test_schema_describes_the_records() -> None:
    assert "bandwidth_bytes_per_s" in str(schema_of("profile"))
    assert "cycles_per_weight" in str(schema_of("target"))
    with pytest.raises(ConfigError):
        schema_of("plan")


def test_schema_tool_writes_and_checks(tmp_path: Path) -> None:
    tool = Path(__file__).resolve().parents[2] / "tools" / "schemas.py"

    def run(*arguments: str) -> int:
        command = [sys.executable, str(tool), "--out", str(tmp_path), *arguments]
        return subprocess.run(command, capture_output=True, check=False).returncode

    assert run("--check") == 1
    assert run() == 0
    assert run("--check") == 0
