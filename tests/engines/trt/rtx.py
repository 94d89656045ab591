"""TensorRT-RTX's real builder, which needs no GPU, and what its tests share.

No GPU that TensorRT-RTX runs on is here: that an engine gives the right disparity is not tested; that it is built of
the right network, with the right profile, is.
"""

from __future__ import annotations

import json

import pytest

from stereo_core.engines import BuildSettings
from stereo_core.engines.files import sidecar_path
from stereo_core.engines.tensorrt.targets import Gpu

trt = pytest.importorskip("tensorrt_rtx", reason="pip install 'stereo-pipelines[tensorrt-rtx]'")

RTX = BuildSettings(backend="tensorrt_rtx", compute_capabilities=("8.6",), workspace_gib=4)
L4 = Gpu("NVIDIA L4", (8, 9), 24 * 2**30)


def quantised(source, out, height, width):
    """The file that `depth_net quantize` makes with ModelOpt, calibrated on one synthetic pair."""
    from stereo_core.engines.verify import synthetic_pair
    from stereo_core.quantization.modelopt_onnx import quantize
    from stereo_core.spec.quantize import Quantize

    quantize(source, out, Quantize(backend="modelopt.onnx", device="cpu"), [synthetic_pair(height, width, 1)])
    return out


def copied(engine, folder, **changed):
    target = folder / "e.engine"
    target.write_bytes(engine.read_bytes())
    info = json.loads(sidecar_path(engine).read_text()) | changed
    sidecar_path(target).write_text(json.dumps(info))
    return target
