"""The terminal's screens: a fleet that runs, and a compression that runs."""
