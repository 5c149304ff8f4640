"""A folder of signing keys: private keys as PEM files, one a file, told apart by what they are, not by their names.

    keys/keys.json           how long each role's signature lasts
    keys/root.json           what devices are set up with
    keys/private/*.pem       ed25519 keys, readable by their owner only
    keys/metadata/           the signed metadata: the ledger of what was published
    keys/pending/            metadata that waits for more signatures

Any private key may be moved elsewhere (a stick, another person's machine): a role is signed with those of its keys that
are there, and waits in `pending/` while they are too few. ed25519 only, because it is what a device can verify without
compiled libraries. EDGEGEN_KEY_PASSWORD encrypts new keys and opens encrypted ones.
"""

from __future__ import annotations

import os
import stat
from pathlib import Path

import msgspec
from cryptography.exceptions import UnsupportedAlgorithm
from cryptography.hazmat.primitives.asymmetric.ed25519 import Ed25519PrivateKey
from cryptography.hazmat.primitives.serialization import (
    BestAvailableEncryption,
    Encoding,
    KeySerializationEncryption,
    NoEncryption,
    PrivateFormat,
    load_pem_private_key,
)
from securesystemslib.signer import CryptoSigner

from edgegen.common.codec import load_json, read_bytes, save_json
from edgegen.common.files import disk_errors, sync_folder
from edgegen.errors import ConfigError
from edgegen.records.base import Record

PASSWORD = "EDGEGEN_KEY_PASSWORD"
PRIVATE = "private"
PENDING = "pending"
SETTINGS = "keys.json"
ROOT = "root.json"
DAYS = {"root": 365, "targets": 365, "release": 90, "dev": 30, "snapshot": 30, "timestamp": 7}
"""How long a signature lasts. The last is how long a device can be kept from news unnoticed."""
OFFLINE_DAYS = {**DAYS, "release": 365, "snapshot": 365, "timestamp": 365}
"""For devices that are reached by hand: nobody renews a timestamp every week."""


class KeySettings(Record, frozen=True):
    """`keys.json`."""

    schema: int
    days: dict[str, int]


def make_key(folder: Path, name: str) -> CryptoSigner:
    """Make a key and save it in `private/`, for its owner's eyes only.

    Raises:
        ConfigError: a key of this name is there.
    """
    key = Ed25519PrivateKey.generate()
    password = os.environ.get(PASSWORD, "")
    form: KeySerializationEncryption = BestAvailableEncryption(password.encode()) if password else NoEncryption()
    path = folder / PRIVATE / f"{name}.pem"
    write_private(path, key.private_bytes(Encoding.PEM, PrivateFormat.PKCS8, form))
    return CryptoSigner(key)


def write_private(path: Path, data: bytes) -> None:
    """Write a new file that only its owner may read, from the first byte on.

    Raises:
        ConfigError: it is there already.
    """
    with disk_errors(path):
        path.parent.mkdir(parents=True, exist_ok=True)
        path.parent.chmod(0o700)
        try:
            handle = os.open(path, os.O_WRONLY | os.O_CREAT | os.O_EXCL, 0o600)
        except FileExistsError as error:
            raise ConfigError(f"{path}: is there already", hint="Keys are never overwritten.") from error
        with os.fdopen(handle, "wb") as stream:
            stream.write(data)
            stream.flush()
            os.fsync(stream.fileno())
        sync_folder(path.parent)


def load_signers(folder: Path, more: tuple[Path, ...] = ()) -> dict[str, CryptoSigner]:
    """Key id → what signs with it, of all keys in `private/` and of further files.

    Raises:
        ConfigError: a file that is no ed25519 key, cannot be opened, or that others may read.
    """
    found = {}
    for path in (*sorted((folder / PRIVATE).glob("*.pem")), *more):
        signer = load_key(path)
        found[str(signer.public_key.keyid)] = signer
    return found


def key_name(folder: Path, keyid: str) -> str:
    """The file name of a key that is here, without `.pem`; empty if it is not."""
    for path in sorted((folder / PRIVATE).glob("*.pem")):
        if load_key(path).public_key.keyid == keyid:
            return path.stem
    return ""


def free_name(folder: Path, role: str) -> str:
    """A name for a role's next key: the first number that no file has."""
    number = 1
    while (folder / PRIVATE / f"{role}-{number}.pem").exists():
        number += 1
    return f"{role}-{number}"


def load_settings(folder: Path) -> KeySettings:
    """`keys.json`.

    Raises:
        ConfigError: not a folder of keys.
    """
    if not (folder / SETTINGS).is_file():
        raise ConfigError(f"{folder}: no signing keys in it", hint=f"Make them with: edgegen keys init {folder}")
    settings = load_json(folder / SETTINGS, KeySettings)
    unknown = sorted(set(DAYS) ^ set(settings.days))
    if unknown or min(settings.days.values()) < 1:
        raise ConfigError(f"{folder / SETTINGS}: days: each role needs a number of days: {', '.join(DAYS)}")
    return settings


def save_settings(folder: Path, days: dict[str, int]) -> None:
    """Write `keys.json`."""
    save_json(folder / SETTINGS, KeySettings(schema=1, days=msgspec.convert(days, dict[str, int])))


def load_key(path: Path) -> CryptoSigner:
    """A private key from its file.

    Raises:
        ConfigError: no ed25519 key, one that cannot be opened, or that others may read.
    """
    data = read_bytes(path)
    if os.name == "posix" and path.stat().st_mode & (stat.S_IRWXG | stat.S_IRWXO):
        raise ConfigError(f"{path}: others may read this private key", hint=f"Run: chmod 600 {path}")
    password = os.environ.get(PASSWORD, "")
    try:
        key = load_pem_private_key(data, password.encode() if password and b"ENCRYPTED" in data else None)
    except (ValueError, TypeError, UnsupportedAlgorithm) as error:
        hint = f"Set {PASSWORD} to its password." if b"ENCRYPTED" in data else ""
        raise ConfigError(f"{path}: not a private key that can be opened", hint=hint) from error
    if not isinstance(key, Ed25519PrivateKey):
        raise ConfigError(f"{path}: not an ed25519 key", hint="Devices verify ed25519 only.")
    return CryptoSigner(key)
