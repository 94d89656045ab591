"""Post-training quantisation: which layers (`rules`), and one adapter for each library that does it.

An adapter is a module with `quantize(...)`, which writes a file and returns the layers as it quantised them.
"""

from __future__ import annotations

import importlib.util
from dataclasses import dataclass

from stereo_core.errors import SpecError


@dataclass(frozen=True)
class Backend:
    """A value of quantize.backend.

    Attributes:
        module: the adapter, below this package.
        needs: the Python modules it imports.
        extra: the extra of this distribution that installs them.
        takes: the kind of file it quantises: checkpoint or onnx.
        file: the name of the result.
        static: whether activations are quantised, which takes calibration data.
    """

    module: str
    needs: tuple[str, ...]
    extra: str
    takes: str
    file: str
    static: bool


BACKENDS = {
    "torchao": Backend("torchao", ("torchao",), "quantize", "checkpoint", "quantized_model_torchao.pth", False),
    "modelopt.pytorch": Backend(
        "modelopt_torch",
        ("modelopt",),
        "modelopt",
        "checkpoint",
        "quantized_model_modelopt.pytorch.pth",
        True,
    ),
    "modelopt.onnx": Backend(
        "modelopt_onnx",
        ("modelopt", "onnx_graphsurgeon", "onnxruntime"),
        "modelopt",
        "onnx",
        "quantized_model_modelopt_named.onnx",  # TAO's service keeps files that end in _named.onnx
        True,
    ),
}


def check_installed(name: str) -> None:
    """SpecError, naming the extra, where a library of the backend is missing."""
    missing = [module for module in BACKENDS[name].needs if importlib.util.find_spec(module) is None]
    if missing:
        raise SpecError(
            f"quantize.backend: {name} needs {', '.join(missing)}, which is not installed; "
            f"pip install 'stereo-pipelines[{BACKENDS[name].extra}]'"
        )
