"""Post-training quantisation: the choice of layers (`rules`), and one adapter per library.

An adapter is a module with `quantize(...)`, which writes a file and returns a summary of the quantised layers.
"""

from __future__ import annotations

import contextlib
import importlib.util
import logging
import warnings
from collections.abc import Iterator
from dataclasses import dataclass

from stereo_core.errors import SpecError


@dataclass(frozen=True)
class Backend:
    """A value of quantize.backend.

    Attributes:
        module: the adapter, below this package.
        needs: the Python modules it imports.
        extra: the extra of this distribution that installs them.
        takes: the kind of its input file: checkpoint or onnx.
        file: the file name of the result.
        static: whether activations are quantised, which needs calibration pairs.
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


_NOISY = {
    "torchao.": logging.ERROR,  # about missing Triton and kernels for other GPUs
    "torch.": logging.ERROR,  # about torchao's type registration
    "modelopt.": logging.CRITICAL,  # reports a missing GPU as an error
    "root.": logging.WARNING,  # ONNX Runtime's quantiser logs each copy of a bias
}
"""Loggers -> the lowest useful level; real failures are raised as exceptions."""


@contextlib.contextmanager
def without_noise() -> Iterator[None]:
    """Suppress the libraries' messages about missing parts that are not needed.

    It filters in handlers, because the libraries reset the levels of their loggers.
    """

    def is_heard(record: logging.LogRecord) -> bool:
        return all(record.levelno >= level for name, level in _NOISY.items() if f"{record.name}.".startswith(name))

    handlers = [handler for name in ("", "torch") for handler in logging.getLogger(name).handlers]
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        for handler in handlers:
            handler.addFilter(is_heard)
        try:
            yield
        finally:
            for handler in handlers:
                handler.removeFilter(is_heard)


def check_installed(name: str) -> None:
    """Raise SpecError, naming the extra, if a library of the backend is missing."""
    missing = [module for module in BACKENDS[name].needs if importlib.util.find_spec(module) is None]
    if missing:
        raise SpecError(
            f"quantize.backend: {name} needs {', '.join(missing)}, which is not installed; "
            f"run pip install 'stereo-pipelines[{BACKENDS[name].extra}]'"
        )
