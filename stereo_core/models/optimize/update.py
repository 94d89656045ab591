"""The iteration, faster: what does not change over the iterations computed once, gates that share an input joined.

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
    MotionEncoder,
    SelectiveGRU,
    halve,
)
from stereo_core.models.optimize.channels import FromOneChannel, ToOneChannel, convolution, linear, pad_convolution
from stereo_core.models.optimize.lookup import Tables, look_up, lookup_order, rounded_up


class FastMotion(nn.Module):
    """Disparity -> motion features, the raw disparity as their last channel; the costs are looked up here."""

    def __init__(self, encoder: MotionEncoder, channels: int, levels: int, radius: int):
        super().__init__()
        weight = encoder.convc1.weight.flatten(1)[:, lookup_order(channels, levels, radius)]
        self.costs = linear(F.pad(weight, (0, rounded_up(weight.shape[1]) - weight.shape[1])), encoder.convc1.bias)
        self.convc2, self.convd2, self.conv = encoder.convc2, encoder.convd2, encoder.conv
        self.convd1 = FromOneChannel(encoder.convd1)
        self.wanted = self.conv.out_channels
        pad_convolution(self.conv, self.conv.in_channels, self.wanted + 1)

    def forward(self, disp_B1hw: Tensor, tables: Tables) -> Tensor:
        B, _, h, w = disp_B1hw.shape
        costs = self.costs(look_up(disp_B1hw, tables)).relu().reshape(B, h, w, -1).permute(0, 3, 1, 2)
        costs = self.convc2(costs).relu()
        disp_B1hw = disp_B1hw.to(costs.dtype)
        shape = self.convd2(self.convd1(disp_B1hw).relu()).relu()
        motion = self.conv(torch.cat([costs, shape], dim=1)).relu()
        return torch.cat([motion[:, : self.wanted], disp_B1hw], dim=1)


class FastGate(nn.Module):
    def __init__(self, gru: ConvGRU):
        super().__init__()
        weight = torch.cat([gru.convz.weight, gru.convr.weight])
        self.convzr = convolution(weight, torch.cat([gru.convz.bias, gru.convr.bias]))
        self.convq = gru.convq

    def forward(self, h: Tensor, x: Tensor, hx: Tensor) -> Tensor:
        z, r = self.convzr(hx).sigmoid().chunk(2, dim=1)
        q = self.convq(torch.cat([r * h, x], dim=1)).tanh()
        return (1 - z) * h + z * q


class FastGRU(nn.Module):
    """A selective GRU whose context, the first of its inputs, comes as `fixed`: what its part of the first convolution
    makes of it, the same in every iteration."""

    def __init__(self, gru: SelectiveGRU, context: int):
        super().__init__()
        first = gru.conv0[0]
        self.context = convolution(first.weight[:, :context], first.bias)
        self.rest = convolution(first.weight[:, context:], None)
        self.conv1 = gru.conv1[0]
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
        self.before = head.conv[:-1]
        self.last = ToOneChannel(head.conv[-1])

    def forward(self, state: Tensor, disp_B1hw: Tensor) -> Tensor:
        return disp_B1hw + at_least_float32(self.last(self.before(state)))
