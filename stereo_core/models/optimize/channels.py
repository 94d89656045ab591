"""Adapt layers to a GPU's tensor cores: fold norms into convolutions, round channels up to multiples of eight."""

from __future__ import annotations

from collections.abc import Callable
from typing import TypeVar

import torch
from torch import Tensor, nn
from torch.nn import functional as F
from torch.nn.modules.batchnorm import _BatchNorm
from torch.nn.modules.conv import _ConvNd, _ConvTransposeNd
from torch.nn.utils.fusion import fuse_conv_bn_eval

from stereo_core.models.optimize.lookup import rounded_up

# Attribute names of a convolution and the norm that follows it in a module.
PAIRS = (("conv", "bn"), ("conv1", "bn1"), ("conv2", "bn2"), ("conv1", "norm1"), ("conv2", "norm2"), ("0", "1"))


def fold_batch_norms(network: nn.Module) -> None:
    """Fold every batch normalisation of a network in eval mode into the convolution before it."""
    for module in list(network.modules()):
        children = dict(module.named_children())
        for conv_name, norm_name in PAIRS:
            conv, norm = children.get(conv_name), children.get(norm_name)
            if isinstance(conv, _ConvNd) and isinstance(norm, _BatchNorm):
                setattr(module, conv_name, fuse_conv_bn_eval(conv, norm, isinstance(conv, _ConvTransposeNd)))
                setattr(module, norm_name, nn.Identity())


def replace(network: nn.Module, kind: type[nn.Module], make: Callable[[nn.Module], nn.Module]) -> None:
    """Replace all modules of a kind inside a network by `make(module)`."""
    for module in list(network.modules()):
        for name, child in list(module.named_children()):
            if type(child) is kind:
                setattr(module, name, make(child))


def pad_channels(network: nn.Module, *, of_images: bool = False) -> None:
    """Round the channels of all convolutions up to multiples of eight; added channels are zero or have zero weights.

    Batch normalisations must have been folded.

    Args:
        of_images: the first convolution takes images, which keep their three channels.
    """
    for module in network.modules():
        if isinstance(module, _ConvNd):
            inputs = module.in_channels if of_images else rounded_up(module.in_channels)
            pad_convolution(module, inputs, rounded_up(module.out_channels))
            of_images = False
        elif isinstance(module, nn.modules.instancenorm._InstanceNorm):
            module.num_features = rounded_up(module.num_features)


def pad_convolution(conv: _ConvNd, inputs: int, outputs: int) -> None:
    """Extend a convolution to the given input and output channels; the added ones come last and have zero weights."""
    transposed = isinstance(conv, _ConvTransposeNd)
    if conv.groups > 1:
        assert conv.groups == conv.in_channels == conv.out_channels, "only depth-wise convolutions are padded"
        conv.groups = outputs
        conv.weight.data = pad_rows(conv.weight.data, outputs)
    else:
        rows, columns = (inputs, outputs) if transposed else (outputs, inputs)
        weight = pad_rows(conv.weight.data, rows)
        conv.weight.data = pad_rows(weight.transpose(0, 1), columns).transpose(0, 1).contiguous()
    if conv.bias is not None:
        conv.bias.data = pad_rows(conv.bias.data, outputs)
    conv.in_channels, conv.out_channels = inputs, outputs


def pad_rows(x: Tensor, rows: int) -> Tensor:
    return torch.cat([x, x.new_zeros(rows - x.shape[0], *x.shape[1:])])


def aligned(weight: Tensor, *parts: int) -> Tensor:
    """Weights (outputs, inputs, ...) with channels rounded up to multiples of eight; added ones are zero.

    `parts`: channels of each tensor that is concatenated to form the inputs; each is rounded up separately.
    """
    pieces = weight.transpose(0, 1).split(parts or weight.shape[1])
    columns = torch.cat([pad_rows(piece, rounded_up(piece.shape[0])) for piece in pieces])
    return aligned_rows(columns.transpose(0, 1))


def aligned_rows(x: Tensor) -> Tensor:
    return pad_rows(x, rounded_up(x.shape[0]))


def aligned_linear(layer: nn.Linear) -> nn.Linear:
    return linear(aligned(layer.weight), aligned_rows(layer.bias))


def aligned_convolution(conv: nn.Conv2d, *parts: int) -> nn.Conv2d:
    """A convolution that keeps the size of the image; `parts` as of `aligned`."""
    return convolution(aligned(conv.weight, *parts), None if conv.bias is None else aligned_rows(conv.bias))


def linear(weight: Tensor, bias: Tensor | None) -> nn.Linear:
    """A linear layer of these weights (outputs, inputs)."""
    return _with(nn.Linear(weight.shape[1], weight.shape[0], bias is not None, device="meta"), weight, bias)


def convolution(weight: Tensor, bias: Tensor | None) -> nn.Conv2d:
    """A convolution of these weights (outputs, inputs, height, width) that keeps the size of the image."""
    outputs, inputs, height, width = weight.shape
    padding = (height // 2, width // 2)
    conv = nn.Conv2d(inputs, outputs, (height, width), padding=padding, bias=bias is not None, device="meta")
    return _with(conv, weight, bias)


Layer = TypeVar("Layer", nn.Linear, nn.Conv2d)


def _with(layer: Layer, weight: Tensor, bias: Tensor | None) -> Layer:
    """A layer made on meta, where initial values cost nothing, with these weights."""
    layer.weight = nn.Parameter(weight.detach().clone())
    if bias is not None:
        layer.bias = nn.Parameter(bias.detach().clone())
    return layer


class FromOneChannel(nn.Module):
    """A convolution of one channel with odd kernel size K, as a matrix product of every pixel's K x K neighbourhood."""

    def __init__(self, conv: nn.Conv2d):
        super().__init__()
        self.K = conv.kernel_size[0]
        weight = conv.weight.flatten(1)
        self.mix = linear(F.pad(weight, (0, rounded_up(self.K**2) - self.K**2)), conv.bias)

    def forward(self, x_B1hw: Tensor) -> Tensor:
        padded = F.pad(x_B1hw[:, 0], (self.K // 2,) * 4)
        patches_BhwK = padded.unfold(1, self.K, 1).unfold(2, self.K, 1).flatten(3)
        patches_BhwK = F.pad(patches_BhwK, (0, self.mix.in_features - self.K**2))
        return self.mix(patches_BhwK).permute(0, 3, 1, 2)


class ToOneChannel(nn.Module):
    """A convolution to one channel with odd kernel size K: a matrix product to K x K maps, shifted and summed in
    float32."""

    def __init__(self, conv: nn.Conv2d):
        super().__init__()
        self.K = conv.kernel_size[0]
        weight = conv.weight[0].flatten(1).transpose(0, 1)
        self.mix = linear(pad_rows(weight, rounded_up(self.K**2)), None)
        self.bias = nn.Parameter(conv.bias.detach().clone())

    def forward(self, x_BChw: Tensor) -> Tensor:
        h, w = x_BChw.shape[-2:]
        maps = self.mix(x_BChw.permute(0, 2, 3, 1))[..., : self.K**2]
        maps = F.pad(maps.to(torch.promote_types(maps.dtype, torch.float32)), (0, 0) + (self.K // 2,) * 4)
        moved = [maps[:, i // self.K :, i % self.K :, i][:, :h, :w] for i in range(self.K**2)]
        return sum(moved[1:], moved[0] + self.bias)[:, None]


class Doubling(nn.Module):
    """A deconvolution of kernel size 4 that doubles the size, as a convolution to four phases: it is fast for any
    number of output channels."""

    def __init__(self, deconv: nn.ConvTranspose2d):
        super().__init__()
        assert (deconv.kernel_size, deconv.stride, deconv.padding) == ((4, 4), (2, 2), (1, 1))
        taps = F.pad(deconv.weight.flip(2, 3), (1, 1, 1, 1))
        phases = [taps[:, :, 1 - y :: 2, 1 - x :: 2] for y in range(2) for x in range(2)]
        weight = torch.stack(phases, dim=2).flatten(1, 2).transpose(0, 1)
        self.outputs = weight.shape[0]
        bias = deconv.bias.repeat_interleave(4)
        self.conv = convolution(aligned_rows(weight), aligned_rows(bias))

    def forward(self, x_BChw: Tensor) -> Tensor:
        return F.pixel_shuffle(self.conv(x_BChw)[:, : self.outputs], 2)
