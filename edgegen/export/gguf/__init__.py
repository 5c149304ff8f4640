"""GGUF files for llama.cpp.

family      what the specification of a model family is made of
families    what each model family is called there, and which of its settings go where
encoder     the same for sentence encoders
layers      widths and heads that differ from layer to layer
rope        rotary positions and their scaling rules
tensors     names, row order and shapes
tokenizer   tokenizer.json in GGUF's words
wordpiece   the same for encoders' WordPiece
proof       that llama.cpp cuts text into the same tokens
header      the file before its data; exact sizes before writing
export      put together, streamed, renamed into place
"""

from edgegen.errors import UnsupportedError
from edgegen.export.registry import Exporter


def exporter() -> Exporter:
    """GGUF's exporter.

    Raises:
        UnsupportedError: the gguf package is not installed.
    """
    try:
        import gguf  # noqa: F401 - only whether it is there
    except ImportError as error:
        raise UnsupportedError(
            "writing GGUF needs the gguf package", hint="Install it with: pip install 'edgegen[gguf]'"
        ) from error
    from edgegen.export.gguf.export import GgufExporter

    return GgufExporter()
