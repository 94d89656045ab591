"""The refinement's lookup in one Triton kernel that reads the filtered volume in the convolutions' layout.

B images, C channels, D disparity bins, h = H/4, w = W/4, N = B * h * w pixels, K = 2 * radius + 1 offsets.
"""

from __future__ import annotations

from typing import NamedTuple

import torch
from torch import Tensor
from torch.nn import functional as F

from stereo_core.models.compiler import tl, triton
from stereo_core.models.foundation_stereo.layers import at_least_float32
from stereo_core.models.foundation_stereo.rows import read_around

ALIGNED = 8  # channels: tensor core kernels read 16 bytes at a time
PIXELS = 16  # pixels per kernel program


def rounded_up(channels: int) -> int:
    return -(-channels // ALIGNED) * ALIGNED


class Tables(NamedTuple):
    """The tables that the lookup reads, one tensor per level.

    Attributes:
        geometry: filtered volume (B, C', D / 2^level, h, w), channels last; only the first `channels` of C' are used.
        pairs: cosine of each left with each right pixel of its row, (B, h, w, w / 2^level), contiguous.
    """

    geometry: tuple[Tensor, ...]
    pairs: tuple[Tensor, ...]
    channels: int
    radius: int

    @property
    def width(self) -> int:
        """Channels of the result, without those added for alignment."""
        return len(self.geometry) * (self.channels + 1) * (2 * self.radius + 1)


def make_tables(volume_BCDhw: Tensor, pairs_Bhww: Tensor, channels: int, levels: int, radius: int) -> Tables:
    """Build the tables. Level 1 holds the means of neighbours along the disparity, or the right image's columns."""
    geometry, pairs = [volume_BCDhw.contiguous(memory_format=torch.channels_last_3d)], [pairs_Bhww]
    for _ in range(levels - 1):
        finer = geometry[-1][:, :, : geometry[-1].shape[2] // 2 * 2]
        coarser = (finer[:, :, 0::2] + finer[:, :, 1::2]) / 2
        geometry.append(coarser.contiguous(memory_format=torch.channels_last_3d))
        finer = pairs[-1][..., : pairs[-1].shape[-1] // 2 * 2]
        pairs.append((finer[..., 0::2] + finer[..., 1::2]) / 2)
    return Tables(tuple(geometry), tuple(pairs), channels, radius)


def look_up(disp_B1hw: Tensor, tables: Tables) -> Tensor:
    """Disparity in quarter-resolution px, float32 -> (N, rounded_up(tables.width)) in the tables' type.

    Channels: for each level the K offsets of the geometry, each with its C channels; then for each level the K offsets
    of the pairs; then zeros.
    """
    if triton is not None and disp_B1hw.is_cuda:
        return _look_up_triton(disp_B1hw, tables)
    return look_up_torch(disp_B1hw, tables)


def look_up_torch(disp_B1hw: Tensor, tables: Tables) -> Tensor:
    """The same as the kernel, in PyTorch."""
    B, _, h, w = disp_B1hw.shape
    disp_N = disp_B1hw.reshape(-1)
    match_N = (torch.arange(w, device=disp_N.device, dtype=disp_N.dtype).expand(B, 1, h, w) - disp_B1hw).reshape(-1)
    dtype = tables.geometry[0].dtype
    found = []
    for level, volume in enumerate(tables.geometry):
        C, D = tables.channels, volume.shape[2]
        rows_NDC = volume[:, :C].permute(0, 3, 4, 2, 1).reshape(B * h * w, D, C)
        near = read_around(at_least_float32(rows_NDC), disp_N / 2**level, tables.radius)
        found.append(near.reshape(B * h * w, C, -1).transpose(1, 2).flatten(1))
    for level, pairs in enumerate(tables.pairs):
        rows_NL1 = at_least_float32(pairs.reshape(B * h * w, -1, 1))
        found.append(read_around(rows_NL1, match_N / 2**level, tables.radius))
    found_NC = torch.cat(found, dim=1).to(dtype)
    return F.pad(found_NC, (0, rounded_up(tables.width) - tables.width))


def lookup_order(channels: int, levels: int, radius: int) -> Tensor:
    """The index in `GeometryLookup`'s channels of each channel of `look_up`."""
    K = 2 * radius + 1
    index = torch.arange(levels * (channels + 1) * K).reshape(levels, (channels + 1) * K)
    geometry = index[:, : channels * K].reshape(levels, channels, K).transpose(1, 2)
    return torch.cat([geometry.flatten(), index[:, channels * K :].flatten()])


def _look_up_triton(disp_B1hw: Tensor, tables: Tables) -> Tensor:
    B, _, h, w = disp_B1hw.shape
    levels, N = len(tables.geometry), B * h * w
    geometry, pairs = tables.geometry, tables.pairs
    out_NC = torch.empty(N, rounded_up(tables.width), device=disp_B1hw.device, dtype=geometry[0].dtype)
    lanes = geometry[0].shape[1]
    _look_up_kernel[(triton.cdiv(N, PIXELS),)](
        *(disp_B1hw.contiguous(), geometry[0], geometry[-1], pairs[0], pairs[-1], out_NC),
        *(N, h * w, w, geometry[0].shape[2], geometry[-1].shape[2], pairs[-1].shape[-1]),
        WIDTH=tables.width,
        STRIDE=out_NC.shape[1],
        CHANNELS=tables.channels,
        LANES=lanes,
        LANES_2=triton.next_power_of_2(lanes),
        RADIUS=tables.radius,
        OFFSETS_2=triton.next_power_of_2(2 * tables.radius + 1),
        PIXELS=PIXELS,
        LEVELS=levels,
        num_warps=4,
    )
    return out_NC


if triton is not None:

    @triton.jit
    def _look_up_kernel(
        disp, geometry_0, geometry_1, pairs_0, pairs_1, out,
        N, hw, w, bins_0, bins_1, columns_1,
        WIDTH: tl.constexpr, STRIDE: tl.constexpr, CHANNELS: tl.constexpr, LANES: tl.constexpr, LANES_2: tl.constexpr,
        RADIUS: tl.constexpr, OFFSETS_2: tl.constexpr, PIXELS: tl.constexpr, LEVELS: tl.constexpr,
    ):  # fmt: skip
        """PIXELS pixels; positions and interpolation in float32."""
        OFFSETS: tl.constexpr = 2 * RADIUS + 1
        pixel = tl.program_id(0) * PIXELS + tl.arange(0, PIXELS)
        real = pixel < N
        d = tl.load(disp + pixel, mask=real, other=0.0)
        pixel = pixel.to(tl.int64)
        row = (out + pixel * STRIDE)[:, None]
        lane = tl.arange(0, LANES_2)
        wanted_lane = real[:, None] & (lane < CHANNELS)[None, :]
        offset = tl.arange(0, OFFSETS_2)
        wanted_offset = real[:, None] & (offset < OFFSETS)[None, :]
        for level in tl.static_range(LEVELS):
            if level == 0:
                geometry = geometry_0
                pairs = pairs_0
                bins = bins_0
                columns = w
            else:
                geometry = geometry_1
                pairs = pairs_1
                bins = bins_1
                columns = columns_1

            centre = tl.minimum(tl.maximum(d / 2**level, -RADIUS - 2), bins + RADIUS + 1)
            base = tl.floor(centre)
            t = (centre - base)[:, None]
            first = base.to(tl.int32) - RADIUS
            start = (pixel // hw * bins * hw + pixel % hw)[:, None] * LANES + lane[None, :]
            to = row + (level * OFFSETS * CHANNELS + lane)[None, :]
            before = tl.zeros((PIXELS, LANES_2), tl.float32)
            for k in tl.static_range(OFFSETS + 1):
                tap = (first + k)[:, None]
                inside = wanted_lane & (tap >= 0) & (tap < bins)
                after = tl.load(geometry + start + tap.to(tl.int64) * hw * LANES, mask=inside, other=0.0).to(tl.float32)
                if k > 0:
                    mixed = before * (1 - t) + after * t
                    tl.store(to + (k - 1) * CHANNELS, mixed.to(out.dtype.element_ty), mask=wanted_lane)
                before = after

            centre = ((pixel % w).to(tl.float32) - d) / 2**level
            centre = tl.minimum(tl.maximum(centre, -RADIUS - 2), columns + RADIUS + 1)
            base = tl.floor(centre)
            t = (centre - base)[:, None]
            column = (base.to(tl.int32) - RADIUS)[:, None] + offset[None, :]
            at = pairs + (pixel * columns)[:, None] + column
            inside = wanted_offset & (column >= 0) & (column < columns)
            left = tl.load(at, mask=inside, other=0.0).to(tl.float32)
            inside = wanted_offset & (column >= -1) & (column < columns - 1)
            right = tl.load(at + 1, mask=inside, other=0.0).to(tl.float32)
            mixed = left * (1 - t) + right * t
            to = row + (LEVELS * OFFSETS * CHANNELS + level * OFFSETS + offset)[None, :]
            tl.store(to, mixed.to(out.dtype.element_ty), mask=wanted_offset)

        spare = WIDTH + tl.arange(0, 8)
        nothing = tl.zeros((PIXELS, 8), out.dtype.element_ty)
        tl.store(row + spare[None, :], nothing, mask=real[:, None] & (spare < STRIDE)[None, :])
