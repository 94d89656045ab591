"""Depth-wise convolutions of channels-last images in Triton.

cuDNN compiles some of its kernels in every process, which takes 0.15 to 0.25 s per layer, and for one pair they are
slower. Triton's compiled kernels stay in our cache folder.
"""

from __future__ import annotations

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from stereo_core.models.compiler import tl, triton

PIXELS, LANES = 16, 64  # pixels and channels per kernel program


class DepthwiseConv(nn.Module):
    """A depth-wise convolution of odd kernel size K that keeps the size of the image."""

    def __init__(self, conv: nn.Conv2d):
        super().__init__()
        self.weight_KKC = nn.Parameter(conv.weight.detach()[:, 0].permute(1, 2, 0).contiguous())
        self.bias = conv.bias

    def forward(self, x_BCHW: Tensor) -> Tensor:
        if triton is not None and x_BCHW.is_cuda:
            return convolve_triton(x_BCHW, self.weight_KKC, self.bias)
        return convolve_torch(x_BCHW, self.weight_KKC, self.bias)


def speed_up_depthwise(network: nn.Module) -> None:
    """Replace the depth-wise convolutions of a network."""
    for module in list(network.modules()):
        for name, child in list(module.named_children()):
            if isinstance(child, nn.Conv2d) and _fits(child):
                setattr(module, name, DepthwiseConv(child))


def _fits(conv: nn.Conv2d) -> bool:
    depthwise = conv.groups == conv.in_channels == conv.out_channels
    return depthwise and conv.stride == (1, 1)


def convolve_torch(x_BCHW: Tensor, weight_KKC: Tensor, bias_C: Tensor) -> Tensor:
    """The same as the kernel, in PyTorch."""
    weight_C1KK = weight_KKC.permute(2, 0, 1)[:, None]
    return F.conv2d(x_BCHW, weight_C1KK, bias_C, padding=weight_KKC.shape[0] // 2, groups=x_BCHW.shape[1])


def convolve_triton(x_BCHW: Tensor, weight_KKC: Tensor, bias_C: Tensor) -> Tensor:
    """Accumulates in float32."""
    x_BCHW = x_BCHW.contiguous(memory_format=torch.channels_last)
    B, C, H, W = x_BCHW.shape
    K = weight_KKC.shape[0]
    out_BCHW = torch.empty_like(x_BCHW)
    grid = (B * H * triton.cdiv(W, PIXELS), triton.cdiv(C, LANES))
    _kernel[grid](x_BCHW, weight_KKC, bias_C, out_BCHW, H, W, C=C, K=K, PIXELS=PIXELS, LANES=LANES, num_warps=4)
    return out_BCHW


if triton is not None:

    @triton.jit
    def _kernel(
        x, weight, bias, out, H, W,
        C: tl.constexpr, K: tl.constexpr, PIXELS: tl.constexpr, LANES: tl.constexpr,
    ):  # fmt: skip
        """PIXELS pixels of a row, LANES of their channels."""
        blocks = tl.cdiv(W, PIXELS)
        row = tl.program_id(0) // blocks
        y = row % H
        column = tl.program_id(0) % blocks * PIXELS + tl.arange(0, PIXELS)
        channel = tl.program_id(1) * LANES + tl.arange(0, LANES)
        real = channel < C
        total = tl.zeros((PIXELS, LANES), tl.float32) + tl.load(bias + channel, mask=real, other=0.0)[None, :]
        for i in range(K):  # not unrolled: a kernel size of nine would take eight seconds to compile
            inside_y = (y + i - K // 2 >= 0) & (y + i - K // 2 < H)
            start = x + (row + i - K // 2).to(tl.int64) * W * C
            for j in tl.static_range(K):
                at = column + j - K // 2
                inside = ((at >= 0) & (at < W) & inside_y)[:, None] & real[None, :]
                value = tl.load(start + at[:, None] * C + channel[None, :], mask=inside, other=0.0)
                factor = tl.load(weight + (i * K + j) * C + channel, mask=real, other=0.0)
                total += value.to(tl.float32) * factor.to(tl.float32)[None, :]
        to = out + row.to(tl.int64) * W * C + column[:, None] * C + channel[None, :]
        tl.store(to, total.to(out.dtype.element_ty), mask=(column < W)[:, None] & real[None, :])
