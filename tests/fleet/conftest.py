"""The databases that the fleet's tests run on."""

from __future__ import annotations

import os
import pwd
import shutil
import subprocess
import tempfile
import uuid
from collections.abc import Iterator
from pathlib import Path

import pytest

from tests.fleet.site import Desk


@pytest.fixture(scope="session")
def postgres() -> Iterator[str]:
    """URL of a PostgreSQL cluster of our own, on a socket in a temporary folder; skips where there is none."""
    pytest.importorskip("psycopg", reason="psycopg is not installed")
    programs = _programs()
    if programs is None:
        pytest.skip("PostgreSQL's server programs are not installed (Debian: postgresql)")
    user = "postgres" if os.getuid() == 0 else pwd.getpwuid(os.getuid()).pw_name
    if os.getuid() == 0 and not any(entry.pw_name == user for entry in pwd.getpwall()):
        pytest.skip("PostgreSQL does not run as root, and there is no user postgres")
    as_user = ["setpriv", "--reuid", user, "--regid", user, "--clear-groups"] if os.getuid() == 0 else []
    folder = Path(tempfile.mkdtemp(prefix="edgegen-pg-"))
    folder.chmod(0o755)
    data = folder / "data"
    data.mkdir()
    if as_user:
        for path in (folder, data):
            shutil.chown(path, user)
    options = f"-c listen_addresses='' -c unix_socket_directories={folder} -c fsync=off"

    def run(*words: str) -> None:
        done = subprocess.run([*as_user, *words], capture_output=True, text=True, cwd="/", check=False)
        assert done.returncode == 0, done.stdout + done.stderr

    run(str(programs / "initdb"), "-D", str(data), "-A", "trust", "-U", "edgegen", "-N")
    run(
        *(str(programs / "pg_ctl"), "-D", str(data), "-w", "-l", str(folder / "log"), "-o", options, "start"),
    )
    try:
        yield f"postgresql://edgegen@/postgres?host={folder}"
    finally:
        run(str(programs / "pg_ctl"), "-D", str(data), "-m", "immediate", "stop")
        shutil.rmtree(folder, ignore_errors=True)


@pytest.fixture
def postgres_store(postgres: str) -> str:
    """URL of an empty database."""
    import psycopg

    name = f"fleet_{uuid.uuid4().hex[:12]}"
    with psycopg.connect(postgres, autocommit=True) as connection:
        connection.execute(f"CREATE DATABASE {name}")
    return postgres.replace("/postgres?", f"/{name}?")


@pytest.fixture(params=["sqlite", pytest.param("postgresql", marks=pytest.mark.slow)])
def store(request: pytest.FixtureRequest, tmp_path: Path) -> str:
    """An empty database of each kind."""
    if request.param == "sqlite":
        return str(tmp_path / "fleet.db")
    return str(request.getfixturevalue("postgres_store"))


@pytest.fixture
def desk(store: str) -> Iterator[Desk]:
    found = Desk(store)
    yield found
    found.database.close()


def _programs() -> Path | None:
    """Folder of initdb and pg_ctl: Debian keeps them off the PATH."""
    candidates = sorted(Path("/usr/lib/postgresql").glob("*/bin"), reverse=True)
    found = shutil.which("initdb")
    if found:
        candidates.append(Path(found).resolve().parent)
    return next((folder for folder in candidates if (folder / "pg_ctl").exists()), None)
