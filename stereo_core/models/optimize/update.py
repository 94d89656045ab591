"""A faster iteration: constant parts are computed once, and gates that share an input are joined.

B images, C channels, h = H/4, w = W/4.
"""

from __future__ import annotations

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from stereo_core.models.foundation_stereo.layers import at_least_float32, resize
from stereo_core.models.foundation_stereo.refinement import (
    ConvGRU,
    DisparityHead,
    HeadBlock,
    MotionEncoder,
    SelectiveGRU,
    halve,
)
from stereo_core.models.optimize.channels import (
    FromOneChannel,
    ToOneChannel,
    aligned,
    aligned_convolution,
    aligned_linear,
    aligned_rows,
    convolution,
    linear,
    pad_convolution,
)
from stereo_core.models.optimize.lookup import Tables, look_up, lookup_order, rounded_up


class FastMotion(nn.Module):
    """Disparity -> motion features followed by the raw disparity; it looks up the costs itself."""

    def __init__(self, encoder: MotionEncoder, channels: int, levels: int, radius: int):
        super().__init__()
        weight = encoder.convc1.weight.flatten(1)[:, lookup_order(channels, levels, radius)]
        self.costs = linear(aligned(weight), aligned_rows(encoder.convc1.bias))
        self.convc2, self.convd2 = aligned_convolution(encoder.convc2), aligned_convolution(encoder.convd2)
        pad_convolution(encoder.convd1, 1, rounded_up(encoder.convd1.out_channels))
        self.convd1 = FromOneChannel(encoder.convd1)
        self.conv = aligned_convolution(encoder.conv, encoder.convc2.out_channels, encoder.convd2.out_channels)
        self.wanted = encoder.conv.out_channels
        self.spare = rounded_up(self.wanted + 1) - self.wanted - 1

    def forward(self, disp_B1hw: Tensor, tables: Tables) -> Tensor:
        B, _, h, w = disp_B1hw.shape
        costs = self.costs(look_up(disp_B1hw, tables)).relu().reshape(B, h, w, -1).permute(0, 3, 1, 2)
        costs = self.convc2(costs).relu()
        disp_B1hw = disp_B1hw.to(costs.dtype)
        shape = self.convd2(self.convd1(disp_B1hw).relu()).relu()
        motion = self.conv(torch.cat([costs, shape], dim=1)).relu()
        return torch.cat([motion[:, : self.wanted], F.pad(disp_B1hw, (0, 0, 0, 0, 0, self.spare))], dim=1)


class FastGate(nn.Module):
    def __init__(self, gru: ConvGRU):
        super().__init__()
        hidden = gru.convq.out_channels
        gates = (aligned_convolution(gru.convz), aligned_convolution(gru.convr))
        self.convzr = convolution(torch.cat([g.weight for g in gates]), torch.cat([g.bias for g in gates]))
        self.convq = aligned_convolution(gru.convq, hidden, gru.convq.in_channels - hidden)

    def forward(self, h: Tensor, x: Tensor, hx: Tensor) -> Tensor:
        z, r = self.convzr(hx).sigmoid().chunk(2, dim=1)
        q = self.convq(torch.cat([r * h, x], dim=1)).tanh()
        return (1 - z) * h + z * q


class FastGRU(nn.Module):
    """A selective GRU. Its first input, the context, is passed as `fixed`: the context's contribution to the first
    convolution, which is equal in every iteration.

    State and inputs have their channels rounded up; added channels stay zero.
    """

    def __init__(self, gru: SelectiveGRU, context: int, has_coarser: bool):
        super().__init__()
        first, second, hidden = gru.conv0[0], gru.conv1[0], gru.small_gru.convq.out_channels
        own = first.in_channels - context
        inputs = (own - hidden, hidden) if has_coarser else (own,)
        self.context = convolution(aligned_rows(first.weight[:, :context]), aligned_rows(first.bias))
        self.rest = convolution(aligned(first.weight[:, context:], *inputs), None)
        self.conv1 = aligned_convolution(second, first.out_channels, hidden)
        self.small, self.large = FastGate(gru.small_gru), FastGate(gru.large_gru)

    def forward(self, fixed: Tensor, attention: Tensor, state: Tensor, *inputs: Tensor) -> Tensor:
        x = (self.rest(torch.cat(inputs, dim=1)) + fixed).relu()
        hx = self.conv1(torch.cat([x, state], dim=1)).relu()
        small, large = self.small(state, x, hx), self.large(state, x, hx)
        return attention * small + (1 - attention) * large

    def coarse(self, fixed: Tensor, attention: Tensor, state: Tensor, finer: Tensor, coarser: Tensor | None) -> Tensor:
        """New state of a level below the finest."""
        inputs = [halve(finer)] + ([] if coarser is None else [resize(coarser, state.shape[-2:])])
        return self(fixed, attention, state, *inputs)

    def finest(self, fixed: Tensor, attention: Tensor, state: Tensor, motion: Tensor, coarser: Tensor | None) -> Tensor:
        inputs = [motion] + ([] if coarser is None else [resize(coarser, state.shape[-2:])])
        return self(fixed, attention, state, *inputs)


class FastHead(nn.Module):
    """State at 1/4 and disparity -> new disparity, in quarter-resolution px, float32 or wider."""

    def __init__(self, head: DisparityHead):
        super().__init__()
        first, relu, *blocks, last = head.conv
        for block in blocks:
            _align_block(block)
        self.before = nn.Sequential(aligned_convolution(first), relu, *blocks)
        pad_convolution(last, rounded_up(last.in_channels), 1)
        self.last = ToOneChannel(last)

    def forward(self, state: Tensor, disp_B1hw: Tensor) -> Tensor:
        return disp_B1hw + at_least_float32(self.last(self.before(state)))


def _align_block(block: HeadBlock) -> None:
    lanes = rounded_up(block.dwconv.in_channels)
    pad_convolution(block.dwconv, lanes, lanes)
    block.gamma.data = aligned_rows(block.gamma.data)
    block.pwconv1, block.pwconv2 = aligned_linear(block.pwconv1), aligned_linear(block.pwconv2)
