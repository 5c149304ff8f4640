"""`python -m edgegen.monitor --mock 500`: the screens on a simulated fleet."""

from __future__ import annotations

import argparse
import sys

from edgegen.errors import EdgegenError
from edgegen.monitor.terminal import prepare_terminal


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("site", nargs="?", help="a site's folder or a server's URL")
    parser.add_argument("--mock", type=int, metavar="N", help="a simulated fleet of N devices")
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--write", action="store_true")
    options = parser.parse_args()
    try:
        prepare_terminal()
        from edgegen.monitor.app import run
        from edgegen.monitor.source import mock_source, open_source

        if options.mock is None and options.site is None:
            parser.error("name a site, or --mock N")
        source = mock_source(options.mock, options.seed) if options.mock is not None else open_source(options.site)
        return run(source, write=options.write)
    except EdgegenError as error:
        print(f"edgegen: {error}\n  {error.hint}".rstrip(), file=sys.stderr)
        return error.exit_code


if __name__ == "__main__":
    sys.exit(main())
