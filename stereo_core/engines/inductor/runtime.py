"""Run an engine of parts compiled by AOTInductor, without the network's Python code."""

from __future__ import annotations

import logging
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor

from stereo_core.engines.base import Engine
from stereo_core.engines.inductor.program import Part, Program, Streams, execute

PROGRAM = "program.json"  # among the package's extra files
DTYPES = {"fp32": torch.float32, "fp16": torch.float16, "bf16": torch.bfloat16}
WARM_UP = 2  # runs before a CUDA graph is recorded: cuDNN chooses kernels, and the parts load theirs


def load_parts(path: str | Path, gpu_id: int = -1) -> tuple[dict[str, Part], dict[str, str]]:
    """Load the compiled parts of a package by name, and its extra files. This runs native code of the file."""
    from torch.export.pt2_archive._package import load_pt2

    # Only one thread uses a part; the synchronisation for several cannot be recorded in a CUDA graph.
    with quiet():
        package = load_pt2(str(path), run_single_threaded=True, device_index=gpu_id)
    runners = {name: model.loader for name, model in package.aoti_runners.items()}
    return {name: _part(runner) for name, runner in runners.items()}, package.extra_files


def _part(runner: Any) -> Part:
    return lambda tensors: runner.boxed_run(list(tensors))


@contextmanager
def quiet() -> Iterator[None]:
    """Suppress PyTorch's warning about packages without the suffix .pt2: users choose the names of engines."""
    log = logging.getLogger("torch.export.pt2_archive._package")
    before = log.level
    log.setLevel(logging.ERROR)
    yield
    log.setLevel(before)


class InductorEngine(Engine):
    """On a GPU, one CUDA graph with two streams, recorded in the first run."""

    def __init__(self, path: Path, info: dict[str, Any], device: str):
        super().__init__(info)
        self.device = device
        on_gpu = device != "cpu"
        self._parts, extra = load_parts(path, torch.device(device).index if on_gpu else -1)
        self._program = Program.from_json(extra[PROGRAM])
        self._dtype = DTYPES[info["precision"]]
        self._images: Tensor | None = None
        place = torch.cuda.get_device_name(device) if on_gpu else "CPU"
        self.runtime = f"PyTorch {torch.__version__}, AOTInductor, {place}"

    def run(self, left_B3HW: np.ndarray, right_B3HW: np.ndarray) -> np.ndarray:
        images = (torch.from_numpy(x).to(self.device) for x in (left_B3HW, right_B3HW))
        return self.run_torch(*images).cpu().numpy()

    @torch.inference_mode()
    def run_torch(self, left_B3HW: Tensor, right_B3HW: Tensor) -> Tensor:
        """On a GPU, the run has finished when this returns."""
        if self.device == "cpu":
            images = torch.cat([left_B3HW, right_B3HW]).to(self._dtype, memory_format=torch.channels_last)
            return execute(self._program, self._parts, images)[:, 0]
        with torch.cuda.device(self.device):
            if self._images is None:
                self._record(left_B3HW, right_B3HW)
            self._fill(left_B3HW, right_B3HW)
            self._graph.replay()
            disparity_BHW = self._output[:, 0].clone()
            torch.cuda.current_stream().synchronize()
        return disparity_BHW

    def _fill(self, left_B3HW: Tensor, right_B3HW: Tensor) -> None:
        self._images[: len(left_B3HW)].copy_(left_B3HW)
        self._images[len(left_B3HW) :].copy_(right_B3HW)

    def _record(self, left_B3HW: Tensor, right_B3HW: Tensor) -> None:
        """Record the program as one CUDA graph, with images and output at fixed addresses."""
        batch, *size = left_B3HW.shape
        shape = (2 * batch, *size)
        self._images = torch.empty(shape, dtype=self._dtype, device=self.device, memory_format=torch.channels_last)
        self._fill(left_B3HW, right_B3HW)
        stream = torch.cuda.Stream()
        stream.wait_stream(torch.cuda.current_stream())
        with torch.cuda.stream(stream), torch.backends.cudnn.flags(enabled=True, benchmark=True, allow_tf32=False):
            for _ in range(WARM_UP):  # in one stream: cuDNN times its kernels, and nothing else may run meanwhile
                execute(self._program, self._parts, self._images)
            torch.cuda.synchronize()
            torch.cuda.empty_cache()
            self._graph = torch.cuda.CUDAGraph()
            with torch.cuda.graph(self._graph, stream=stream):
                streams = Streams()
                self._output = execute(self._program, self._parts, self._images, streams)
                streams.join()
