"""Recurrent refinement of the disparity at quarter resolution, and its upsampling.

B images, C channels, H, W image size, h = H/4, w = W/4. States and contexts are lists: 1/4, 1/8, 1/16.
"""

from __future__ import annotations

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from stereo_core.models.foundation_stereo.config import FoundationStereoConfig
from stereo_core.models.foundation_stereo.layers import ConvNorm, at_least_float32, resize

LAYER_SCALE = 1e-6
SCALES = ("04", "08", "16")


class MotionEncoder(nn.Module):
    """Looked-up costs and disparity -> motion features; the last channel is the raw disparity."""

    def __init__(self, lookup: int, widths: tuple[int, int, int, int], dim: int, kernel: int = 3):
        """`widths`: two convolutions of the costs, two of the disparity. `dim`: motion features without disparity."""
        super().__init__()
        c1, c2, d1, d2 = widths
        self.convc1 = nn.Conv2d(lookup, c1, 1)
        self.convc2 = nn.Conv2d(c1, c2, 3, padding=1)
        self.convd1 = nn.Conv2d(1, d1, 7, padding=3)
        self.convd2 = nn.Conv2d(d1, d2, 3, padding=1)
        self.conv = nn.Conv2d(c2 + d2, dim, kernel, padding=kernel // 2)

    def forward(self, disp_B1hw: Tensor, lookup_BChw: Tensor) -> Tensor:
        disp_B1hw = disp_B1hw.to(lookup_BChw.dtype)
        costs = torch.relu(self.convc2(torch.relu(self.convc1(lookup_BChw))))
        shape = torch.relu(self.convd2(torch.relu(self.convd1(disp_B1hw))))
        motion = torch.relu(self.conv(torch.cat([costs, shape], dim=1)))
        return torch.cat([motion, disp_B1hw], dim=1)


class ConvGRU(nn.Module):
    def __init__(self, hidden: int, x_dim: int, hx_dim: int, kernel: int):
        super().__init__()
        self.convz, self.convr, self.convq = (
            nn.Conv2d(dim, hidden, kernel, padding=kernel // 2) for dim in (hx_dim, hx_dim, hidden + x_dim)
        )

    def forward(self, h: Tensor, x: Tensor, hx: Tensor) -> Tensor:
        z = self.convz(hx).sigmoid()
        r = self.convr(hx).sigmoid()
        q = self.convq(torch.cat([r * h, x], dim=1)).tanh()
        return (1 - z) * h + z * q


class SelectiveGRU(nn.Module):
    """Two GRUs with different kernel sizes, mixed by the context's attention (Selective-Stereo: Wang et al. 2024)."""

    def __init__(self, hidden: int, in_dim: int, gating: tuple[int, int] | None = None):
        """`gating`: widths of the two convolutions before the gates; None: the widths of their inputs."""
        super().__init__()
        x_dim, hx_dim = gating or (in_dim, in_dim + hidden)
        self.conv0 = nn.Sequential(nn.Conv2d(in_dim, x_dim, 3, padding=1), nn.ReLU())
        self.conv1 = nn.Sequential(nn.Conv2d(x_dim + hidden, hx_dim, 3, padding=1), nn.ReLU())
        self.small_gru = ConvGRU(hidden, x_dim, hx_dim, 1)
        self.large_gru = ConvGRU(hidden, x_dim, hx_dim, 3)

    def forward(self, attention_B1hw: Tensor, h: Tensor, *inputs: Tensor) -> Tensor:
        x = self.conv0(torch.cat(inputs, dim=1))
        hx = self.conv1(torch.cat([x, h], dim=1))
        small, large = self.small_gru(h, x, hx), self.large_gru(h, x, hx)
        return attention_B1hw * small + (1 - attention_B1hw) * large


class HeadBlock(nn.Module):
    """ConvNeXt block without its norm."""

    def __init__(self, dim: int, hidden: int):
        super().__init__()
        self.gamma = nn.Parameter(torch.full((dim,), LAYER_SCALE))
        self.dwconv = nn.Conv2d(dim, dim, 7, padding=3, groups=dim)
        self.pwconv1 = nn.Linear(dim, hidden)
        self.pwconv2 = nn.Linear(hidden, dim)

    def forward(self, x_BChw: Tensor) -> Tensor:
        y_BhwC = self.dwconv(x_BChw).permute(0, 2, 3, 1)
        y_BhwC = self.gamma * self.pwconv2(F.gelu(self.pwconv1(y_BhwC)))
        return x_BChw + y_BhwC.permute(0, 3, 1, 2)


class DisparityHead(nn.Module):
    def __init__(self, in_dim: int, dim: int, hidden: tuple[int, int]):
        """`hidden`: hidden widths of the two blocks."""
        super().__init__()
        first, last = nn.Conv2d(in_dim, dim, 3, padding=1), nn.Conv2d(dim, 1, 3, padding=1)
        self.conv = nn.Sequential(first, nn.ReLU(), HeadBlock(dim, hidden[0]), HeadBlock(dim, hidden[1]), last)

    def forward(self, x_BChw: Tensor) -> Tensor:
        return self.conv(x_BChw)


class UpdateBlock(nn.Module):
    """One iteration: new states and the disparity update in quarter-resolution px. `mask` computes the upsampling
    feature from the finest state, if needed."""

    def __init__(
        self, encoder: MotionEncoder, grus: list[SelectiveGRU], disp_head: DisparityHead, mask: tuple[int, int, int]
    ):
        """`grus`: at 1/4, 1/8, 1/16. `mask`: widths of the finest state, the hidden layer and the upsampling
        feature."""
        super().__init__()
        self.levels = len(grus)
        self.encoder = encoder
        for scale, gru in zip(SCALES, grus, strict=False):
            setattr(self, f"gru{scale}", gru)
        self.disp_head = disp_head
        self.mask = nn.Sequential(
            nn.Conv2d(mask[0], mask[1], 3, padding=1), nn.ReLU(),
            nn.Conv2d(mask[1], mask[2], 3, padding=1), nn.ReLU(),
        )  # fmt: skip

    def forward(
        self, states: list[Tensor], contexts: list[Tensor], attentions: list[Tensor], lookup: Tensor, disp: Tensor
    ) -> tuple[list[Tensor], Tensor]:
        states = list(states)
        for i in reversed(range(self.levels)):  # coarse to fine; each level uses the current states of its neighbours
            inputs = [contexts[i]]
            inputs.append(self.encoder(disp, lookup) if i == 0 else halve(states[i - 1]))
            if i + 1 < self.levels:
                inputs.append(resize(states[i + 1], contexts[i].shape[-2:]))
            gru = getattr(self, f"gru{SCALES[i]}")
            states[i] = gru(attentions[i], states[i], *inputs)
        return states, at_least_float32(self.disp_head(states[0]))


def make_update_block(config: FoundationStereoConfig) -> UpdateBlock:
    widths = config.widths
    hidden, levels = widths.hidden, config.n_gru_layers
    lookup = config.corr_levels * (2 * config.corr_radius + 1) * (widths.volume + 1)
    c, d = widths.motion_lookup, widths.motion_disparity
    encoder = MotionEncoder(lookup, (c, c, d, d), hidden - 1)
    # Inputs of a level: its context, the next finer state (1/4: the motion features) and the next coarser one, if any.
    grus = [SelectiveGRU(hidden, hidden * (2 + (i + 1 < levels))) for i in range(levels)]
    head = DisparityHead(hidden, hidden, (4 * hidden, 4 * hidden))
    return UpdateBlock(encoder, grus, head, (hidden, widths.mask, widths.stem))


def halve(x: Tensor) -> Tensor:
    return F.avg_pool2d(x, 3, stride=2, padding=1)  # padded zeros are part of the mean


def make_upsampling(dim: int, tao: bool) -> tuple[nn.Module, nn.Module]:
    """(`spx_2_gru`, `spx_gru`): upsampling feature and half-resolution stem -> 9 logits per pixel."""
    return UpsamplingFuse(dim, dim, dim, 2 * dim, tao), make_logits(2 * dim)


def make_logits(dim: int) -> nn.Sequential:
    """Upsampling feature at half resolution -> 9 logits per pixel."""
    return nn.Sequential(nn.ConvTranspose2d(dim, 9, 4, 2, 1))


class UpsamplingFuse(nn.Module):
    def __init__(self, in_dim: int, mid_dim: int, stem_dim: int, dim: int, tao: bool = False):
        super().__init__()
        self.conv1 = ConvNorm(nn.ConvTranspose2d(in_dim, mid_dim, 4, 2, 1, bias=False))
        both = mid_dim + stem_dim
        if tao:
            self.conv2 = ConvNorm(nn.ConvTranspose2d(both, dim, 3, 1, 1, bias=False), activation=False)
        else:
            self.conv2 = ConvNorm(nn.Conv2d(both, dim, 3, padding=1, bias=False))

    def forward(self, x: Tensor, stem: Tensor) -> Tensor:
        return self.conv2(torch.cat([self.conv1(x), stem], dim=1))


def convex_upsample(disp_B1hw: Tensor, logits_B9HW: Tensor) -> Tensor:
    """Quarter-resolution disparity -> (B, 1, H, W) in px: each pixel is a convex combination of its 3 x 3 neighbours,
    in row order; neighbours outside the image are zero."""
    B, _, h, w = disp_B1hw.shape
    weight_B9h4w4 = at_least_float32(logits_B9HW).softmax(dim=1).reshape(B, 9, h, 4, w, 4)
    padded = F.pad(4 * disp_B1hw, (1, 1, 1, 1))
    neighbours = [padded[:, :, y : y + h, x : x + w] for y in range(3) for x in range(3)]
    neighbours_B9h1w1 = torch.cat(neighbours, dim=1)[:, :, :, None, :, None]
    return (weight_B9h4w4 * neighbours_B9h1w1).sum(1).reshape(B, 1, 4 * h, 4 * w)
