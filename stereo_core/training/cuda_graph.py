"""A training step's loss and gradients as one CUDA graph (a record of the GPU's work, which is replayed)."""

from __future__ import annotations

import logging
from collections.abc import Callable, Iterable
from typing import Any

import torch
from torch import Tensor, nn
from torch.autograd.function import once_differentiable

from stereo_core.errors import ExplainedError
from stereo_core.spec.train import Train

LOG = logging.getLogger(__name__)

EAGER_STEPS = 2
"""Steps before the capture: libraries load kernels and allocate workspaces, which a capture does not allow."""


def captures(settings: Train, gpu: bool, processes: int) -> bool:
    """Whether steps are captured.

    Not with several processes, whose gradients are sent while others are still being computed; not with fp16, whose
    loss scale changes; not with deterministic kernels, because a resumed run must begin as the first one did.
    """
    asked = settings.compile != "off" and settings.precision != "fp16" and not settings.deterministic
    return asked and gpu and processes == 1


class CapturedLoss:
    """Computes a loss; from the third call on as a CUDA graph, which also contains the gradients.

    A step of the network has over twenty thousand kernels, and the host needs longer to launch them than the GPU to run
    small ones. The backward pass of the returned loss only copies the gradients. Weights and buffers must change only
    in place. Inputs of other shapes are computed without the graph.

    Args:
        loss: tensors of a batch -> (loss, prediction); no random choice on the host, and no wait for the GPU.
        parameters: the weights that are trained.
        others: bytes that other work, such as a validation, needs on the GPU. A graph keeps its memory, so there is
            none if it would leave less than that.
    """

    def __init__(
        self, loss: Callable[..., tuple[Tensor, Tensor]], parameters: Iterable[nn.Parameter], others: int = 0
    ) -> None:
        self.loss, self.parameters, self.others = loss, [p for p in parameters if p.requires_grad], others
        self.calls = 0
        # Weights remember the stream of their first use until no gradient needs it any more; a capture on another
        # stream would have to wait for that one, which is not allowed. So all steps before use the capture's stream.
        self.stream = torch.cuda.Stream()
        self.replay: Callable[[], None] | None = None
        self.inputs: list[Tensor] = []
        # Of the last replay: loss, prediction, gradients.
        self.results: tuple[Tensor, Tensor, list[Tensor | None]] | None = None

    def __call__(self, *inputs: Tensor) -> tuple[Tensor, Tensor]:
        """The loss, with its gradients, and the prediction, which is valid until the next call."""
        self.calls += 1
        if self.calls == EAGER_STEPS + 1:
            self._capture(inputs)
        if self.replay is None or [x.shape for x in inputs] != [x.shape for x in self.inputs]:
            return self._eager(inputs)
        for own, given in zip(self.inputs, inputs, strict=True):
            own.copy_(given)
        loss: Tensor = _Replay.apply(self, *self.parameters)
        assert self.results is not None
        return loss, self.results[1]

    def _eager(self, inputs: Iterable[Tensor]) -> tuple[Tensor, Tensor]:
        current = torch.cuda.current_stream()
        self.stream.wait_stream(current)
        with torch.cuda.stream(self.stream):
            results = self.loss(*inputs)
        current.wait_stream(self.stream)
        return results

    def _capture(self, inputs: Iterable[Tensor]) -> None:
        self.inputs = [x.clone() for x in inputs]
        torch.cuda.empty_cache()  # the graph has its own memory; that of the steps before would be held in vain
        graph = torch.cuda.CUDAGraph()
        try:
            # thread_local: the loader's thread that pins memory may use the GPU meanwhile
            with torch.cuda.graph(graph, stream=self.stream, capture_error_mode="thread_local"):
                self.results = self._compute()
        except torch.OutOfMemoryError:
            fits = False
        except RuntimeError as error:  # afterwards dropout's generator cannot be used in this process
            raise ExplainedError(
                "train.compile: a step cannot be recorded as a CUDA graph on this machine; set train.compile=off "
                f"({str(error).partition(chr(10))[0]})"
            ) from error
        else:
            fits = torch.cuda.mem_get_info()[0] >= self.others
        if fits:
            self.replay = graph.replay
            return
        LOG.warning("train.compile: the GPU's memory is too small for a step as a CUDA graph and for validation, so "
                    "steps run without the graph, and slower; train.compile=off begins without the try")  # fmt: skip
        del graph
        self.results = None
        torch.clear_autocast_cache()  # of weights whose casting was recorded, but never ran
        torch.cuda.empty_cache()

    def _compute(self) -> tuple[Tensor, Tensor, list[Tensor | None]]:
        loss, prediction = self.loss(*self.inputs)
        with torch.autocast(loss.device.type, enabled=False):  # as in a backward pass outside the forward one's context
            gradients = torch.autograd.grad(loss, self.parameters, allow_unused=True)
        return loss.detach(), prediction.detach(), list(gradients)


class _Replay(torch.autograd.Function):
    """Replays the graph; the weights are inputs so that autograd asks for their gradients."""

    @staticmethod
    def forward(ctx: Any, captured: CapturedLoss, *parameters: Tensor) -> Tensor:
        assert captured.replay is not None and captured.results is not None
        captured.replay()
        ctx.captured = captured
        return captured.results[0].clone()

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, factor: Tensor) -> tuple[Tensor | None, ...]:
        gradients = ctx.captured.results[2]
        scaled = iter(torch._foreach_mul([g for g in gradients if g is not None], factor))
        return (None, *(None if g is None else next(scaled) for g in gradients))
