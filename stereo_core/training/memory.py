"""What a training step takes: memory while it runs, and bytes of the checkpoint that it leaves."""

from __future__ import annotations

import copy
from contextlib import nullcontext
from dataclasses import dataclass

import torch
from torch import nn
from torch._subclasses.fake_tensor import FakeCopyMode, FakeTensorMode

from stereo_core.models.memory import LiveBytes
from stereo_core.spec.train import Train
from stereo_core.training.losses import stereo_loss

_AUTOCAST = {"bf16": torch.bfloat16, "fp16": torch.float16}


@dataclass(frozen=True)
class StepMemory:
    """Bytes on one device at the moment when a training step holds most.

    Attributes:
        weights: parameters and buffers.
        gradients: of all that is trained; twice with several ranks, where they are collected for sending.
        optimizer: its state.
        averages: of the weights (`train.ema_decay`).
        activations: the batch, what the backward pass needs and what is at work at that moment.
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
    """Run one training step, forward and backward, on tensors that have shapes and no contents, and count the bytes.

    The step is the real one at its full size: all operations of the network, their intermediate results and what they
    keep for the backward pass. Not counted: what libraries take beside tensors (a CUDA context, cuDNN's scratch
    memory), gaps between tensors in the allocator, and validation, whose images may be larger.

    Args:
        network: the network to train; it stays as it is.
        train: the spec's `train`.
        size: height and width in px of a training crop, multiples of 32.
        batch: pairs on one device.
        device: "cpu" or "cuda": which of them the operations are chosen for; cuda needs a GPU.
        ranks: processes of the run.
    """
    trained = sum(p.nbytes for p in network.parameters() if p.requires_grad)
    gradients = trained * (2 if ranks > 1 else 1)
    activations = _activations(network, train, size, batch, device, trained) - trained
    optimizer, averages = _optimizer(trained, train), _averages(network, trained, train)
    return StepMemory(_unique_bytes(network), gradients, optimizer, averages, activations)


def checkpoint_bytes(network: nn.Module, train: Train) -> int:
    """Size of a checkpoint: weights, the optimizer's state and averages; its other contents are kilobytes."""
    trained = sum(p.nbytes for p in network.parameters() if p.requires_grad)
    return _unique_bytes(network) + _optimizer(trained, train) + _averages(network, trained, train)


def _optimizer(trained: int, train: Train) -> int:
    """AdamW keeps two moments a weight, SGD its momentum."""
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
    """The most bytes that live beside the weights, gradients included."""
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
        live.now = gradients  # the last step's, which live until this step's backward pass begins
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
    """`network.to(device)`, which torch refuses for tensors without contents."""
    for module in network.modules():
        for name, value in module._parameters.items():
            if value is not None:
                module._parameters[name] = nn.Parameter(value.detach().to(device), value.requires_grad)
        for name, value in module._buffers.items():
            if value is not None:
                module._buffers[name] = value.to(device)
