"""Write a compressed model for a runtime: Compressed → Artifact.

One package a file format, one registry. Each exporter proves the tokenizer on the runtime before it writes;
whether the numbers come out right is `verify`'s question.
"""

from edgegen.export.registry import EXPORTERS, exporter_for

__all__ = ["EXPORTERS", "exporter_for"]
