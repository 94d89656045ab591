"""Read rows of tables around a position, with one gradient buffer for all reads.

N rows, L length of a row, C channels, T = 2 * radius + 2 taps, K = 2 * radius + 1 offsets.
"""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor
from torch._subclasses.fake_tensor import FakeTensor

from stereo_core.models.compiler import tl, triton

VALUES = 512  # values of a tap that one kernel program handles


def read_around(rows_NLC: Tensor, centre_N: Tensor, radius: int) -> Tensor:
    """Row n at positions centre[n] - radius .. centre[n] + radius, interpolated, zero outside: (N, C * K)."""
    N, L, C = rows_NLC.shape
    t_N11, inside_NT1, index_NT = _taps(centre_N, N, L, radius)
    values_NTC = rows_NLC.reshape(N * L, C).index_select(0, index_NT.reshape(-1)).reshape(N, 2 * radius + 2, C)
    values_NTC = values_NTC * inside_NT1
    found_NKC = values_NTC[:, :-1] * (1 - t_N11) + values_NTC[:, 1:] * t_N11
    return found_NKC.transpose(1, 2).reshape(N, C * (2 * radius + 1))


class Rows:
    """Tables (N, L, C), float32 or wider, that are read many times.

    In training every read adds its gradient to one buffer per table. Autograd alone would create and sum a gradient as
    large as the table for each read, almost all zeros.
    """

    def __init__(self, tables: list[Tensor], radius: int):
        self.tables, self.radius = [table.contiguous() for table in tables], radius
        self.gradients: list[Tensor] | None = None
        trained = torch.is_grad_enabled() and any(table.requires_grad for table in tables)
        # All reads depend on this number, so autograd reaches the tables only after every read's backward pass.
        self.handle = _Collect.apply(self, *self.tables) if trained else None

    def read(self, centres: list[Tensor], dtype: torch.dtype) -> Tensor:
        """One position per row for each table -> the values read, concatenated: (N, sum of C * K) in `dtype`."""
        if self.handle is not None:
            return _Read.apply(self.handle, self, dtype, *centres)
        return self._find(centres).to(dtype)

    def add_gradient(self, centres: list[Tensor], gradient_NX: Tensor) -> None:
        if self.gradients is None:
            self.gradients = [table.new_zeros(table.shape) for table in self.tables]
        gradient_NX = gradient_NX.contiguous()
        for buffer, centre_N, column in zip(self.gradients, centres, self._columns(), strict=False):
            if _in_triton(buffer):
                _launch(_add_kernel, buffer, centre_N, gradient_NX, column, self.radius)
            else:
                width = buffer.shape[2] * (2 * self.radius + 1)
                add_around(buffer, centre_N, self.radius, gradient_NX[:, column : column + width])

    def take_gradients(self) -> list[Tensor]:
        gradients, self.gradients = self.gradients, None
        return gradients

    def find(self, centres: list[Tensor], dtype: torch.dtype) -> Tensor:
        """As `read`, without gradients."""
        if not _in_triton(self.tables[0]):
            return self._find(centres).to(dtype)
        found_NX = torch.empty(len(centres[0]), self._columns()[-1], device=centres[0].device, dtype=dtype)
        for table, centre_N, column in zip(self.tables, centres, self._columns(), strict=False):
            _launch(_read_kernel, table, centre_N, found_NX, column, self.radius)
        return found_NX

    def _find(self, centres: list[Tensor]) -> Tensor:
        pairs = zip(self.tables, centres, strict=True)
        return torch.cat([read_around(table, centre_N, self.radius) for table, centre_N in pairs], dim=1)

    def _columns(self) -> list[int]:
        """The first column of each table; the last number is the total."""
        begins = [0]
        for table in self.tables:
            begins.append(begins[-1] + table.shape[2] * (2 * self.radius + 1))
        return begins


def add_around(buffer_NLC: Tensor, centre_N: Tensor, radius: int, gradient_NX: Tensor) -> None:
    """Add the gradient of the rows, computed from `read_around`'s gradient (N, C * K)."""
    N, L, C = buffer_NLC.shape
    t_N11, inside_NT1, index_NT = _taps(centre_N, N, L, radius)
    gradient_NKC = gradient_NX.to(buffer_NLC.dtype).reshape(N, C, 2 * radius + 1).transpose(1, 2)
    taps_NTC = gradient_NKC.new_zeros(N, 2 * radius + 2, C)
    taps_NTC[:, :-1] += gradient_NKC * (1 - t_N11)
    taps_NTC[:, 1:] += gradient_NKC * t_N11
    buffer_NLC.view(N * L, C).index_add_(0, index_NT.reshape(-1), (taps_NTC * inside_NT1).reshape(-1, C))


def _taps(centre_N: Tensor, N: int, L: int, radius: int) -> tuple[Tensor, Tensor, Tensor]:
    """Weight of each right neighbour (N, 1, 1), which taps lie inside (N, T, 1), their indices in N * L (N, T)."""
    centre_N1 = centre_N.clamp(-radius - 2, L + radius + 1)[:, None]
    base_N1 = centre_N1.floor()
    t_N11 = (centre_N1 - base_N1)[..., None]
    taps_NT = base_N1.long() + torch.arange(-radius, radius + 2, device=centre_N.device)
    inside_NT1 = ((taps_NT >= 0) & (taps_NT < L))[..., None]
    index_NT = taps_NT.clamp(0, L - 1) + torch.arange(N, device=centre_N.device)[:, None] * L
    return t_N11, inside_NT1, index_NT


class _Collect(torch.autograd.Function):
    @staticmethod
    def forward(ctx: Any, rows: Rows, *tables: Tensor) -> Tensor:
        ctx.rows = rows
        return tables[0].new_zeros(())

    @staticmethod
    def backward(ctx: Any, _: Tensor) -> Any:
        return None, *ctx.rows.take_gradients()


class _Read(torch.autograd.Function):
    @staticmethod
    def forward(ctx: Any, handle: Tensor, rows: Rows, dtype: torch.dtype, *centres: Tensor) -> Tensor:
        ctx.rows = rows
        ctx.save_for_backward(*centres)
        return rows.find(centres, dtype)

    @staticmethod
    def backward(ctx: Any, gradient_NX: Tensor) -> Any:
        centres = ctx.saved_tensors  # read once: with recomputed activations, each access would recompute
        ctx.rows.add_gradient(centres, gradient_NX)
        return ctx.rows.tables[0].new_zeros(()), None, None, *(None for _ in centres)


def _in_triton(table: Tensor) -> bool:
    """Whether to use Triton. Fake tensors, used to predict memory, claim to be on a GPU but have no values."""
    return triton is not None and table.is_cuda and table.dtype == torch.float32 and not isinstance(table, FakeTensor)


def _launch(kernel: Any, rows_NLC: Tensor, centre_N: Tensor, beside_NX: Tensor, column: int, radius: int) -> None:
    N, L, C = rows_NLC.shape
    channels = triton.next_power_of_2(C)
    pixels = max(16, VALUES // channels)
    kernel[(triton.cdiv(N, pixels),)](
        *(rows_NLC, centre_N.contiguous(), beside_NX, N, L, beside_NX.shape[1], column),
        CHANNELS=C,
        CHANNELS_2=channels,
        RADIUS=radius,
        PIXELS=pixels,
    )


if triton is not None:

    @triton.jit
    def _place(
        centre, N, L, CHANNELS: tl.constexpr, CHANNELS_2: tl.constexpr, RADIUS: tl.constexpr, PIXELS: tl.constexpr
    ):
        """Row numbers, channels, the mask of valid ones, the first tap and the weight of each right neighbour."""
        row = tl.program_id(0) * PIXELS + tl.arange(0, PIXELS)
        channel = tl.arange(0, CHANNELS_2)[None, :]
        real = (row < N)[:, None] & (channel < CHANNELS)
        at = tl.load(centre + row, mask=row < N, other=0.0)
        at = tl.minimum(tl.maximum(at, -RADIUS - 2), L + RADIUS + 1)
        base = tl.floor(at)
        return row.to(tl.int64)[:, None], channel, real, (base.to(tl.int32) - RADIUS)[:, None], (at - base)[:, None]

    @triton.jit
    def _read_kernel(
        rows, centre, out, N, L, width, column,
        CHANNELS: tl.constexpr, CHANNELS_2: tl.constexpr, RADIUS: tl.constexpr, PIXELS: tl.constexpr,
    ):  # fmt: skip
        row, channel, real, first, t = _place(centre, N, L, CHANNELS, CHANNELS_2, RADIUS, PIXELS)
        to = out + row * width + column + channel * (2 * RADIUS + 1)
        before = tl.zeros((PIXELS, CHANNELS_2), tl.float32)
        for k in tl.static_range(2 * RADIUS + 2):
            tap = first + k
            inside = real & (tap >= 0) & (tap < L)
            after = tl.load(rows + (row * L + tap) * CHANNELS + channel, mask=inside, other=0.0)
            if k > 0:
                tl.store(to + k - 1, (before * (1 - t) + after * t).to(out.dtype.element_ty), mask=real)
            before = after

    @triton.jit
    def _add_kernel(
        rows, centre, gradient, N, L, width, column,
        CHANNELS: tl.constexpr, CHANNELS_2: tl.constexpr, RADIUS: tl.constexpr, PIXELS: tl.constexpr,
    ):  # fmt: skip
        """No other program writes these rows, so atomic additions are not needed."""
        row, channel, real, first, t = _place(centre, N, L, CHANNELS, CHANNELS_2, RADIUS, PIXELS)
        source = gradient + row * width + column + channel * (2 * RADIUS + 1)
        before = tl.zeros((PIXELS, CHANNELS_2), tl.float32)
        for k in tl.static_range(2 * RADIUS + 2):
            here = tl.zeros((PIXELS, CHANNELS_2), tl.float32)
            if k < 2 * RADIUS + 1:
                here = tl.load(source + k, mask=real, other=0.0).to(tl.float32)
            tap = first + k
            inside = real & (tap >= 0) & (tap < L)
            place = rows + (row * L + tap) * CHANNELS + channel
            tl.store(place, tl.load(place, mask=inside) + here * (1 - t) + before * t, mask=inside)
            before = here
