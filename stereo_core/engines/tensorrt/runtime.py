"""Run an engine."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np

from stereo_core.engines.base import Engine
from stereo_core.engines.files import DISPARITY, LEFT, RIGHT, without_channel
from stereo_core.engines.tensorrt.interface import interface_of_engine, interface_of_info, refuse_difference
from stereo_core.engines.tensorrt.messages import logger
from stereo_core.errors import ModelError


class TensorRTEngine(Engine):
    """An engine on one GPU, with its own CUDA stream. Runs raise RuntimeError if TensorRT reports a failure."""

    def __init__(self, trt: Any, path: Path, info: dict[str, Any], gpu_id: int):
        import torch

        super().__init__(info)
        self.device = f"cuda:{gpu_id}"
        self._log = logger(trt, verbose=False)
        with torch.cuda.device(self.device):
            self._runtime = trt.Runtime(self._log)
            self._engine = self._runtime.deserialize_cuda_engine(path.read_bytes())
            if self._engine is None:
                raise ModelError(
                    f"{path}: {trt.__name__} cannot read the engine ({self._log.take_errors()}); build it again"
                )
            refuse_difference(path, interface_of_engine(trt, self._engine), interface_of_info(info))
            self._context = self._engine.create_execution_context()
            if self._context is None:
                raise RuntimeError(f"{path}: TensorRT could not create an execution context: {self._log.take_errors()}")
            self._stream = torch.cuda.Stream()  # type: ignore[no-untyped-call] # torch
        self.runtime = f"{trt.__name__} {trt.__version__}, {torch.cuda.get_device_name(self.device)}"

    def run(self, left_B3HW: np.ndarray, right_B3HW: np.ndarray) -> np.ndarray:
        import torch

        images = (torch.from_numpy(x).to(self.device) for x in (left_B3HW, right_B3HW))
        disparity: np.ndarray = self.run_torch(*images).cpu().numpy()
        return disparity

    def run_torch(self, left_B3HW: Any, right_B3HW: Any) -> Any:
        """Pass the tensors' own memory to TensorRT; the run has finished when this returns."""
        import torch

        with torch.cuda.device(self.device):
            # All memory belongs to the caller's stream: memory freed there is no longer written to here.
            images = {LEFT: left_B3HW.contiguous(), RIGHT: right_B3HW.contiguous()}
            for name, image in images.items():
                shape = tuple(image.shape)
                self._check(self._context.set_input_shape(name, shape), f"{name} of {shape}")
            disparity = torch.empty(tuple(self._context.get_tensor_shape(DISPARITY)), device=self.device)
            for name, tensor in (images | {DISPARITY: disparity}).items():
                self._check(self._context.set_tensor_address(name, tensor.data_ptr()), f"the memory of {name}")
            self._stream.wait_stream(torch.cuda.current_stream())
            self._check(self._context.execute_async_v3(self._stream.cuda_stream), "the run")
            self._stream.synchronize()
        return without_channel(disparity)

    def _check(self, done: bool, what: str) -> None:
        if not done:
            raise RuntimeError(f"TensorRT rejects {what}: {self._log.take_errors() or 'no reason given'}")
