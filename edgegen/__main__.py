"""`python -m edgegen`."""

from edgegen.cli.app import main

main()
