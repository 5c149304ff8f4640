"""The command line: one file a command. stdout is results, stderr is talk, `--json` everywhere."""
