"""Depth Anything V2 (Yang et al. 2024) as a feature extractor: DPT head (Ranftl et al. 2021) on a ViT.

FoundationStereo uses the head's last feature map; the depth prediction after it is not computed, but its weights are
kept because checkpoints contain them. B images, P = r * c patches, C channels, F fusion channels, H, W image size.
"""

from __future__ import annotations

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from stereo_core.models.foundation_stereo.config import VitWidths
from stereo_core.models.foundation_stereo.layers import resize
from stereo_core.models.foundation_stereo.vit import PATCH, VisionTransformer

MULTIPLE = 112  # least common multiple of the ViT's patch size 14 and the network's 16
LARGEST = 1344  # px; longer sides are scaled down


class ResidualConvUnit(nn.Module):
    def __init__(self, dim: int):
        super().__init__()
        self.conv1 = nn.Conv2d(dim, dim, 3, padding=1)
        self.conv2 = nn.Conv2d(dim, dim, 3, padding=1)

    def forward(self, x: Tensor) -> Tensor:
        return x + self.conv2(torch.relu(self.conv1(torch.relu(x))))


class FusionBlock(nn.Module):
    def __init__(self, dim: int):
        super().__init__()
        self.out_conv = nn.Conv2d(dim, dim, 1)
        self.resConfUnit1 = ResidualConvUnit(dim)
        self.resConfUnit2 = ResidualConvUnit(dim)

    def forward(self, path: Tensor | None, skip: Tensor, size: tuple[int, int]) -> Tensor:
        x = skip if path is None else path + self.resConfUnit1(skip)
        return self.out_conv(resize(self.resConfUnit2(x), size))


class DptHead(nn.Module):
    """Four maps of patch tokens (B, r c, C) -> feature (B, F/2, 14 r, 14 c)."""

    def __init__(self, widths: VitWidths):
        super().__init__()
        dim, F_ = widths.dim, widths.features
        d1, d2, d3, d4 = widths.reassemble
        self.projects = nn.ModuleList(nn.Conv2d(dim, d, 1) for d in widths.reassemble)
        self.resize_layers = nn.ModuleList()
        self.resize_layers.extend([nn.ConvTranspose2d(d1, d1, 4, 4), nn.ConvTranspose2d(d2, d2, 2, 2)])
        self.resize_layers.extend([nn.Identity(), nn.Conv2d(d4, d4, 3, 2, 1)])
        self.scratch = nn.Module()
        for i, d in enumerate((d1, d2, d3, d4), start=1):
            self.scratch.add_module(f"layer{i}_rn", nn.Conv2d(d, F_, 3, padding=1, bias=False))
            self.scratch.add_module(f"refinenet{i}", FusionBlock(F_))
        self.scratch.output_conv1 = nn.Conv2d(F_, F_ // 2, 3, padding=1)
        self.scratch.output_conv2 = nn.Sequential(
            nn.Conv2d(F_ // 2, 32, 3, padding=1), nn.ReLU(), nn.Conv2d(32, 1, 1), nn.ReLU(), nn.Identity()
        )

    def reassemble(self, tokens_BPC: Tensor, i: int, rows: int, cols: int) -> Tensor:
        """The map of scale i (0: finest) with F channels."""
        B, _, C = tokens_BPC.shape
        x_BCrc = tokens_BPC.transpose(1, 2).reshape(B, C, rows, cols)
        x_BCrc = self.resize_layers[i](self.projects[i](x_BCrc))
        return getattr(self.scratch, f"layer{i + 1}_rn")(x_BCrc)

    def forward(self, maps: list[Tensor], rows: int, cols: int) -> Tensor:
        sizes = [(8 * rows, 8 * cols), (4 * rows, 4 * cols), (2 * rows, 2 * cols), (rows, cols)]
        path = None
        for i in (3, 2, 1, 0):  # coarse to fine; each scale is computed only when it is needed
            skip = self.reassemble(maps[i], i, rows, cols)
            path = getattr(self.scratch, f"refinenet{i + 1}")(path, skip, sizes[i])
        return resize(self.scratch.output_conv1(path), (PATCH * rows, PATCH * cols))


def vit_input_size(height: int, width: int) -> tuple[int, int]:
    """Input size of the ViT: each side rounded up to a multiple of 112, the longer one at most 1344.

    Integer arithmetic without branches, because an exported graph with dynamic height and width computes it too.
    """
    h, w = (_divide_up(side, MULTIPLE) for side in (height, width))
    most = LARGEST // MULTIPLE
    longest = _larger(_larger(h, w), most)
    return MULTIPLE * _divide_up(h * most, longest), MULTIPLE * _divide_up(w * most, longest)


def _divide_up(a: int, b: int) -> int:
    return (a + b - 1) // b


def _larger(a: int, b: int) -> int:
    """max(a, b); the built-in max would fix the result when traced."""
    return a + (b - a) * (b > a)


class DepthAnything(nn.Module):
    """Depth Anything V2 as a feature extractor, always in eval mode. If trained, only its used part is.

    Image (B, 3, H, W), ImageNet-normalised -> feature (B, F/2, H/4, W/4).

    Attributes: open_size: whether a traced graph accepts images of any size, not only the traced one.
    """

    open_size = False

    def __init__(self, widths: VitWidths, trained: bool):
        super().__init__()
        vit, head = VisionTransformer(widths), DptHead(widths)
        self.depth_anything = nn.Module()
        self.depth_anything.pretrained, self.depth_anything.depth_head = vit, head
        self.requires_grad_(trained).eval()
        # Like FoundationStereo's own unused weights, it never gets a gradient.
        for unused in (vit.mask_token, head.scratch.output_conv2, head.scratch.refinenet4.resConfUnit1):
            unused.requires_grad_(False)

    def train(self, mode: bool = True) -> DepthAnything:
        return super().train(False)

    def forward(self, image_B3HW: Tensor) -> Tensor:
        H, W = image_B3HW.shape[-2:]
        # When tracing, sizes are tensors. Converted to numbers, they become constants of the graph.
        height, width = vit_input_size(H, W) if self.open_size else vit_input_size(int(H), int(W))
        image = F.interpolate(image_B3HW.detach(), size=(height, width), mode="bicubic", align_corners=False)
        maps = self.depth_anything.pretrained(image)
        feature = self.depth_anything.depth_head(maps, height // PATCH, width // PATCH)
        return resize(feature, (H // 4, W // 4))
