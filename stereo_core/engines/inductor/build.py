"""Compile a network for inference: it runs once, and each part is compiled at its first call."""

from __future__ import annotations

import logging
import tempfile
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import torch
import torch._inductor
from torch import Tensor, nn
from torch.utils import _pytree as pytree

from stereo_core.engines.inductor.program import Call, Part, Program, scheduled
from stereo_core.engines.inductor.runtime import DTYPES, load_parts
from stereo_core.errors import ModelError
from stereo_core.models import load_model
from stereo_core.models.optimize import FastNetwork, make_network

LOG = logging.getLogger(__name__)

Files = list[str]
"""The files that AOTInductor wrote for a part."""


def network_of(checkpoint: str, onnx: Path, info: dict[str, Any]) -> FastNetwork:
    """The network for inference with the weights of `checkpoint` and the settings of the ONNX file's `info`.

    Raises:
        ModelError: the ONNX file does not store its iterations, the checkpoint does not match it, or its network cannot
            be optimised.
    """
    if info["valid_iters"] is None:
        raise ModelError(f"{onnx}: the file does not store its number of iterations; export it again from {checkpoint}")
    model = load_model(checkpoint, max_disparity=info["max_disparity"])
    for key in ("encoder", "variant"):
        own = getattr(model.config, key)
        if info[key] not in (None, own):
            raise ModelError(
                f"{checkpoint}: {key} is {own}, but {onnx} has {info[key]}; name the checkpoint of that ONNX file"
            )
    return make_network(model.eval(), DTYPES[info["precision"]], compile=False)


def compiled(network: FastNetwork, batch: int, height: int, width: int, iters: int) -> tuple[Program, dict[str, Files]]:
    """The calls that `network` makes for images of this shape, and its compiled parts by name.

    Each part is compiled with inputs from the compiled parts before it, so that strides are right too.
    """
    first = next(network.parameters())
    images = (torch.zeros((batch, 3, height, width), device=first.device, dtype=first.dtype) for _ in range(2))
    recorder = _Recorder(network)
    parts, network.parts = network.parts, {name: recorder.wrapped(name, part) for name, part in network.parts.items()}
    network._beside = recorder.beside
    try:
        with torch.no_grad():
            disparity_B1HW = network(*images, iters)
    finally:
        network.parts = parts
        del network._beside
    return scheduled(recorder.calls, recorder.rows(disparity_B1HW)[0]), recorder.files


class _Recorder:
    """Records calls of a network's parts. It identifies values by their tensors, and therefore keeps the tensors."""

    def __init__(self, network: nn.Module):
        self.network = network
        self.calls: list[Call] = []
        self.files: dict[str, Files] = {}
        self._numbers: dict[int, int] = {}
        self._kept: list[Tensor] = []
        self._variants: dict[tuple[Any, ...], tuple[str, Part]] = {}
        self._side = False

    @contextmanager
    def beside(self, _: Any) -> Iterator[None]:
        """Marks the network's regions whose calls run in the second stream."""
        self._side = True
        yield
        self._side = False

    def wrapped(self, name: str, function: Callable[..., Any]) -> Callable[..., Any]:
        def call(*arguments: Any) -> Any:
            leaves, spec = pytree.tree_flatten(arguments)
            inputs = [leaf for leaf in leaves if isinstance(leaf, Tensor)]
            if not self._kept:  # the very first call gets the images
                self._number(inputs)
            part, run = self._variant(name, function, leaves, spec)
            expected, out_spec = pytree.tree_flatten(function(*arguments))
            made = run(inputs)
            read = tuple(map(self.rows, inputs))
            self.calls.append(Call(part, read, self._number(made), self._side))
            rest = iter(made)
            return pytree.tree_unflatten([next(rest) if isinstance(x, Tensor) else x for x in expected], out_spec)

        return call

    def rows(self, tensor: Tensor) -> tuple[int, int, int]:
        """The number of the value that a tensor belongs to, and its rows: between parts, the network only splits
        batches."""
        whole = tensor if id(tensor) in self._numbers else tensor._base
        if whole is None or whole.shape[1:] != tensor.shape[1:] or whole.stride() != tensor.stride():
            raise AssertionError(f"the network computed a tensor {tuple(tensor.shape)} outside its parts")
        first = (tensor.storage_offset() - whole.storage_offset()) // whole.stride(0)
        return self._numbers[id(whole)], first, first + tensor.shape[0]

    def _number(self, tensors: list[Tensor]) -> tuple[int, ...]:
        numbers = tuple(range(len(self._kept), len(self._kept) + len(tensors)))
        self._kept += tensors
        self._numbers |= zip(map(id, tensors), numbers, strict=True)
        return numbers

    def _variant(self, name: str, function: Callable[..., Any], leaves: list[Any], spec: Any) -> tuple[str, Part]:
        """The name of a part and its compiled version for these shapes, strides and constants."""
        inputs = tuple(leaf for leaf in leaves if isinstance(leaf, Tensor))
        constants = tuple(_TENSOR if isinstance(leaf, Tensor) else leaf for leaf in leaves)
        key = (name, constants, str(spec), *((x.shape, x.stride(), x.dtype) for x in inputs))
        if key not in self._variants:
            part = f"{name}_{sum(variant[0] == name for variant in self._variants)}"
            LOG.info("compiling %s", part)
            self.files[part] = compile_part(_Flat(self.network, function, constants, spec), inputs)
            self._variants[key] = (part, loaded(self.files[part]))
        return self._variants[key]


_TENSOR = "a tensor"


class _Flat(nn.Module):
    """A part whose inputs and outputs are only tensors; its other arguments are constant."""

    def __init__(self, network: nn.Module, function: Callable[..., Any], constants: tuple[Any, ...], spec: Any):
        super().__init__()
        self.network = network  # owns the weights that the function reads
        self.function, self.constants, self.spec = function, constants, spec

    def forward(self, *tensors: Tensor) -> list[Tensor]:
        rest = iter(tensors)
        leaves = [next(rest) if leaf is _TENSOR else leaf for leaf in self.constants]
        made = self.function(*pytree.tree_unflatten(leaves, self.spec))
        return [leaf for leaf in pytree.tree_leaves(made) if isinstance(leaf, Tensor)]


def compile_part(part: nn.Module, inputs: tuple[Tensor, ...]) -> Files:
    """The files of AOTInductor for a module with tensor inputs and outputs, including its weights."""
    exported = torch.export.export(part, inputs, strict=True)
    return torch._inductor.aot_compile(
        exported.module(check_guards=False), inputs, options={"aot_inductor.package": True}
    )


def loaded(files: Files) -> Part:
    """Load a compiled part."""
    from torch.export.pt2_archive._package import package_pt2

    with tempfile.TemporaryDirectory() as folder:
        package = f"{folder}/part.pt2"
        package_pt2(package, aoti_files=files)
        return load_parts(package)[0]["model"]
