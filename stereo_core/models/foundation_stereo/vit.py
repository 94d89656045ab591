"""DINOv2 vision transformer, patch 14 (Oquab et al. 2023), without registers.

B images, N tokens (class token first), P patches, C channels, r rows and c columns of patches.
"""

from __future__ import annotations

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from stereo_core.models.foundation_stereo.config import VitWidths
from stereo_core.models.foundation_stereo.layers import Mlp, full_precision

PATCH = 14
GRID = 37  # patches per side in the position table (image of 518 x 518 px)
INTERPOLATE_OFFSET = 0.1


def cubic_matrix(size: int, like: Tensor) -> Tensor:
    """(size, 37) matrix that resamples the position grid bicubically (a = -0.75, edges repeated).

    DINOv2 resizes with a scale factor of (size + 0.1) / 37, so sampling steps are 37 / (size + 0.1).
    """
    dtype = torch.promote_types(like.dtype, torch.float32)
    centre = (torch.arange(size, device=like.device, dtype=dtype) + 0.5) * (GRID / (size + INTERPOLATE_OFFSET)) - 0.5
    base = centre.floor()
    t = (centre - base)[:, None]
    a = -0.75
    distance = torch.cat([1 + t, t, 1 - t, 2 - t], 1)
    near = ((a + 2) * distance - (a + 3)) * distance * distance + 1
    far = ((distance - 5) * distance + 8) * distance * a - 4 * a
    weight = torch.where(distance <= 1, near, far)
    taps = (base[:, None] + torch.arange(-1, 3, device=like.device, dtype=dtype)).clamp(0, GRID - 1)
    columns = torch.arange(GRID, device=like.device, dtype=dtype)
    return (weight[..., None] * (taps[..., None] == columns)).sum(1)


class Attention(nn.Module):
    def __init__(self, dim: int, heads: int):
        super().__init__()
        self.heads = heads
        self.qkv = nn.Linear(dim, 3 * dim)
        self.proj = nn.Linear(dim, dim)

    def forward(self, x_BNC: Tensor) -> Tensor:
        B, N, C = x_BNC.shape
        q, k, v = self.qkv(x_BNC).reshape(B, N, 3, self.heads, C // self.heads).permute(2, 0, 3, 1, 4).unbind(0)
        return self.proj(F.scaled_dot_product_attention(q, k, v).transpose(1, 2).reshape(B, N, C))


class SwiGLU(nn.Module):
    """Gated feed-forward of the giant ViT."""

    def __init__(self, dim: int, hidden: int):
        super().__init__()
        self.w12 = nn.Linear(dim, 2 * hidden)
        self.w3 = nn.Linear(hidden, dim)

    def forward(self, x: Tensor) -> Tensor:
        gate, value = self.w12(x).chunk(2, dim=-1)
        return self.w3(F.silu(gate) * value)


class LayerScale(nn.Module):
    def __init__(self, dim: int):
        super().__init__()
        self.gamma = nn.Parameter(torch.ones(dim))

    def forward(self, x: Tensor) -> Tensor:
        return x * self.gamma


class Block(nn.Module):
    def __init__(self, widths: VitWidths):
        super().__init__()
        dim = widths.dim
        self.norm1 = nn.LayerNorm(dim, eps=1e-6)
        self.attn = Attention(dim, widths.heads)
        self.ls1 = LayerScale(dim)
        self.norm2 = nn.LayerNorm(dim, eps=1e-6)
        self.mlp = SwiGLU(dim, widths.swiglu_dim) if widths.swiglu_dim else Mlp(dim, 4 * dim)
        self.ls2 = LayerScale(dim)

    def forward(self, x_BNC: Tensor) -> Tensor:
        x_BNC = x_BNC + self.ls1(self.attn(self.norm1(x_BNC)))
        return x_BNC + self.ls2(self.mlp(self.norm2(x_BNC)))


class PatchEmbed(nn.Module):
    def __init__(self, dim: int):
        super().__init__()
        self.proj = nn.Conv2d(3, dim, PATCH, PATCH)

    def forward(self, image_B3HW: Tensor) -> Tensor:
        return self.proj(image_B3HW).flatten(2).transpose(1, 2)


class VisionTransformer(nn.Module):
    """Image (B, 3, 14 r, 14 c), ImageNet-normalised -> four maps of patch tokens (B, r c, C), each normalised."""

    def __init__(self, widths: VitWidths):
        super().__init__()
        self.taken = widths.taken
        self.cls_token = nn.Parameter(torch.zeros(1, 1, widths.dim))
        self.pos_embed = nn.Parameter(torch.zeros(1, GRID * GRID + 1, widths.dim))
        self.mask_token = nn.Parameter(torch.zeros(1, widths.dim))  # checkpoints contain it; not used here
        self.patch_embed = PatchEmbed(widths.dim)
        self.blocks = nn.ModuleList(Block(widths) for _ in range(widths.depth))
        self.norm = nn.LayerNorm(widths.dim, eps=1e-6)
        if not self.cls_token.is_meta:  # on meta tensors these have no effect, but import torch's compiler (5 s)
            nn.init.trunc_normal_(self.pos_embed, std=0.02)
            nn.init.normal_(self.cls_token, std=1e-6)

    def forward(self, image_B3HW: Tensor) -> list[Tensor]:
        B, _, H, W = image_B3HW.shape
        x_BNC = torch.cat([self.cls_token.expand(B, -1, -1), self.patch_embed(image_B3HW)], dim=1)
        x_BNC = x_BNC + self.positions(H // PATCH, W // PATCH)
        maps = []
        for i, block in enumerate(self.blocks):
            x_BNC = block(x_BNC)
            if i in self.taken:
                maps.append(self.norm(x_BNC)[:, 1:])
        return maps

    def positions(self, rows: int, cols: int) -> Tensor:
        """Position embedding of the class token and of a grid of patches: (1, 1 + rows * cols, C)."""
        if (rows, cols) == (GRID, GRID):
            return self.pos_embed
        C = self.pos_embed.shape[-1]
        with full_precision(self.pos_embed):
            grid_1PC = self.pos_embed[:, 1:]
            by_row = cubic_matrix(rows, grid_1PC).to(grid_1PC.dtype) @ grid_1PC.reshape(GRID, GRID * C)
            grid_rcC = cubic_matrix(cols, grid_1PC).to(grid_1PC.dtype) @ by_row.reshape(rows, GRID, C)
        return torch.cat([self.pos_embed[:, :1], grid_rcC.reshape(1, rows * cols, C)], dim=1)
