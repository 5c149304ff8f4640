"""Write a compressed model for a runtime: Compressed → Artifact.

One package a file format, one registry. Each exporter proves what it can prove before it writes; whether the numbers
come out right is `verify`'s question.
"""

from edgegen.export.registry import TARGETS, Exporter, exporter_for

__all__ = ["TARGETS", "Exporter", "exporter_for"]
