"""LiteRT (TFLite) files.

wrapper   a causal model as functions of fixed shapes, with its cache as inputs and outputs
carry     packed weights in the place of the converter's float32 ones, code for code
convert   both, in a process of its own
export    put together, with all that travels, renamed into place
container the finished artifact once more as one `.litertlm` file, for LiteRT-LM
"""

import importlib.util

from edgegen.errors import UnsupportedError
from edgegen.export.registry import Exporter


def exporter() -> Exporter:
    """LiteRT's exporter.

    Raises:
        UnsupportedError: litert-torch or ai-edge-litert is not installed.
    """
    missing = [name for name in ("litert_torch", "ai_edge_litert") if importlib.util.find_spec(name) is None]
    if missing:
        raise UnsupportedError(
            "writing LiteRT files needs litert-torch",
            hint="Install it with: pip install 'edgegen[litert-convert,compress]'",
        )
    from edgegen.export.litert.export import LiteRtExporter

    return LiteRtExporter()
