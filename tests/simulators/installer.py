"""An agent's `install` as ssh meets it: fetches the manifest and its files from the lent port, and says how it ended.

Run as a program; it keeps what it fetched beside its configuration.
"""

from __future__ import annotations

import argparse
import hashlib
import json
import sys
import urllib.request
from pathlib import Path


def main() -> None:
    parser = argparse.ArgumentParser()
    parser.add_argument("--config", required=True)
    parser.add_argument("command")
    parser.add_argument("--repository", required=True)
    parser.add_argument("--target", required=True)
    parser.add_argument("--json", action="store_true")
    asked = parser.parse_args()
    folder = Path(asked.config).parent
    if (folder / "distrust").exists():
        sys.stderr.write("edgegen-agent: the timestamp is signed by nobody that is trusted here\n")
        sys.exit(6)
    with urllib.request.urlopen(f"{asked.repository}/bundle.json", timeout=20) as answer:
        digest = json.loads(answer.read())["digest"]
    name = f"{digest.removeprefix('sha256:')}.manifest.json"
    with urllib.request.urlopen(f"{asked.repository}/targets/{Path(asked.target).parent}/{name}", timeout=20) as answer:
        manifest = json.loads(answer.read())
    fetched = reused = 0
    for file in manifest["files"]:
        hexes = file["digest"].removeprefix("sha256:")
        here = folder / hexes
        if here.exists():
            reused += file["bytes"]
            continue
        url = f"{asked.repository}/blobs/sha256/{hexes[:2]}/{hexes}"
        request = urllib.request.Request(url, headers={"Range": "bytes=0-"})
        with urllib.request.urlopen(request, timeout=20) as answer:
            data = answer.read()
            assert answer.status == 206 and hashlib.sha256(data).hexdigest() == hexes
        here.write_bytes(data)
        fetched += len(data)
    bad = (folder / "bad").exists()
    said = {
        "digest": digest,
        "phase": "rolled-back" if bad else "confirmed",
        "reason": "golden" if bad else "none",
        "detail": "golden prompt 2 was answered wrongly" if bad else "",
        "bytesFetched": fetched,
        "bytesReused": reused,
        "seconds": 0.5,
    }
    sys.stdout.write(json.dumps(said) + "\n")
    sys.exit(7 if bad else 0)


main()
