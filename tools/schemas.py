"""Write the JSON Schemas of target and profile files, for editors that complete and check TOML.

python tools/schemas.py                 print both
python tools/schemas.py --out FOLDER    write FOLDER/{profile,target}.schema.json
python tools/schemas.py --out FOLDER --check    fail if they are not what would be written
"""

from __future__ import annotations

import argparse
import json
import sys
from pathlib import Path

from edgegen.catalog.schema import KINDS, schema_of


def main(arguments: list[str] | None = None) -> int:
    """Exit code 0, or 1 if `--check` finds a schema that is missing or old."""
    parser = argparse.ArgumentParser(description=(__doc__ or "").splitlines()[0])
    parser.add_argument("--out", type=Path, help="folder to write to")
    parser.add_argument("--check", action="store_true", help="compare with the files in --out and write nothing")
    options = parser.parse_args(arguments)
    if options.check and options.out is None:
        parser.error("--check needs --out")
    texts = {kind: json.dumps(schema_of(kind), indent=2, ensure_ascii=False) + "\n" for kind in KINDS}
    if options.out is None:
        sys.stdout.write("".join(texts.values()))
        return 0
    stale = 0
    for kind, text in texts.items():
        path = options.out / f"{kind}.schema.json"
        if options.check:
            if not path.exists() or path.read_text() != text:
                print(
                    f"{path} is not up to date: run python tools/schemas.py --out {options.out}",
                    file=sys.stderr,
                )
                stale = 1
        else:
            path.parent.mkdir(parents=True, exist_ok=True)
            path.write_text(text)
    return stale


if __name__ == "__main__":
    sys.exit(main())
