"""Memory of a training step, and size of a checkpoint."""

from __future__ import annotations

import copy
from contextlib import nullcontext
from dataclasses import dataclass

import torch
from torch import nn
from torch._subclasses.fake_tensor import FakeCopyMode, FakeTensorMode

from stereo_core.models.memory import LiveBytes
from stereo_core.spec.train import Train
from stereo_core.training.cuda_graph import captures
from stereo_core.training.losses import stereo_loss

_AUTOCAST = {"bf16": torch.bfloat16, "fp16": torch.float16}


@dataclass(frozen=True)
class StepMemory:
    """Bytes on one device at the peak of a training step.

    Attributes:
        weights: parameters and buffers.
        gradients: of all trained weights; doubled with several ranks, which copy them into send buffers, and with a
            CUDA graph, which has its own.
        optimizer: its state.
        averages: averaged weights (`train.ema_decay`).
        activations: the batch, tensors saved for the backward pass, and temporary tensors at the peak.
    """

    weights: int
    gradients: int
    optimizer: int
    averages: int
    activations: int

    @property
    def total(self) -> int:
        return self.weights + self.gradients + self.optimizer + self.averages + self.activations


def step_memory(
    network: nn.Module, train: Train, size: tuple[int, int], batch: int, *, device: str = "cpu", ranks: int = 1
) -> StepMemory:
    """Run one training step, forward and backward, on tensors without data, and count the bytes.

    It counts all operations of the step at full size, their intermediate results and the tensors saved for the backward
    pass. It does not count memory that libraries allocate outside tensors (the CUDA context, cuDNN's workspace), gaps
    in the allocator, and validation, whose images may be larger.

    Args:
        network: the network to train; it is not changed.
        train: the spec's `train`.
        size: height and width in px of a training crop, multiples of 32.
        batch: pairs on one device.
        device: "cpu" or "cuda": the device whose operations are counted; cuda needs a GPU.
        ranks: processes of the run.
    """
    trained = sum(p.nbytes for p in network.parameters() if p.requires_grad)
    twice = ranks > 1 or captures(train, device == "cuda", ranks)
    gradients = trained * (2 if twice else 1)
    activations = _activations(network, train, size, batch, device, trained) - trained
    optimizer, averages = _optimizer(trained, train), _averages(network, trained, train)
    return StepMemory(_unique_bytes(network), gradients, optimizer, averages, activations)


def checkpoint_bytes(network: nn.Module, train: Train) -> int:
    """Size of a checkpoint in bytes: weights, optimizer state and averages; the rest is only kilobytes."""
    trained = sum(p.nbytes for p in network.parameters() if p.requires_grad)
    return _unique_bytes(network) + _optimizer(trained, train) + _averages(network, trained, train)


def _optimizer(trained: int, train: Train) -> int:
    """AdamW keeps two moments per weight, SGD its momentum."""
    return trained * (2 if train.optim.optimizer == "AdamW" else 1)


def _averages(network: nn.Module, trained: int, train: Train) -> int:
    if train.ema_decay is None:
        return 0
    return trained + sum(b.nbytes for b in network.buffers() if b.is_floating_point())


def _unique_bytes(network: nn.Module) -> int:
    return sum(tensor.nbytes for tensor in (*network.parameters(), *network.buffers()))


def _activations(
    network: nn.Module, train: Train, size: tuple[int, int], batch: int, device: str, gradients: int
) -> int:
    """Peak bytes besides the weights, including gradients."""
    mode = FakeTensorMode()
    with FakeCopyMode(mode):
        network = copy.deepcopy(network)
    precision = _AUTOCAST.get(train.precision)
    with mode, torch.device(device):
        _move(network.train(), device)
        network.recompute = train.activation_checkpoint
        images = [torch.empty(batch, 3, *size) for _ in range(2)]
        gt, valid = torch.empty(batch, 1, *size), torch.empty(batch, 1, *size, dtype=torch.bool)
        live = LiveBytes()
        live.now = gradients  # gradients of the last step live until this step's backward pass
        for tensor in (*images, gt, valid):
            live.add(tensor)
        for tensor in (*network.parameters(), *network.buffers()):
            live.ignore(tensor)
        with live:
            with torch.autocast(device, precision) if precision else nullcontext():
                init, disparities = network(*images)
                loss = stereo_loss(init, disparities, gt, valid, network.config.max_disparity)
            live.now -= gradients
            loss.backward()
    return live.peak


def _move(network: nn.Module, device: str) -> None:
    """`network.to(device)`, which torch does not allow for tensors without data."""
    for module in network.modules():
        for name, value in module._parameters.items():
            if value is not None:
                module._parameters[name] = nn.Parameter(value.detach().to(device), value.requires_grad)
        for name, value in module._buffers.items():
            if value is not None:
                module._buffers[name] = value.to(device)
