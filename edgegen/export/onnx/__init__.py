"""ONNX folders for onnxruntime-genai and plain ONNX Runtime.

weights     packed rows as the initializers that ONNX Runtime's operators take
families    what can be expressed, which way it is built, positions as transformers computes them
builder     the usual way: onnxruntime-genai's own model builder, fed with the model in memory
traced      the other way: torch's exporter, with the same operators, for what the builder does not know
graph       what both make: short names, weights in one file, exact sizes, the strict twin
settings    genai_config.json
export      put together, written, renamed into place

Quantisation happened before: rows arrive packed and are only moved. ONNX Runtime's own quantizers are never called.
"""

from importlib.util import find_spec

from edgegen.errors import UnsupportedError
from edgegen.export.registry import Exporter

_NEEDED = {
    "onnx": "onnx",
    "onnx_ir": "onnx-ir",
    "onnxscript": "onnxscript",
    "onnxruntime_genai": "onnxruntime-genai",
}
"""Module → distribution."""


def exporter() -> Exporter:
    """ONNX's exporter.

    Raises:
        UnsupportedError: a package that it is written with is not installed.
    """
    missing = [name for module, name in _NEEDED.items() if find_spec(module) is None]
    if missing:
        raise UnsupportedError(
            f"writing ONNX needs {', '.join(missing)}", hint="Install it with: pip install 'edgegen[onnx,compress]'"
        )
    from edgegen.export.onnx.export import OnnxExporter

    return OnnxExporter()
