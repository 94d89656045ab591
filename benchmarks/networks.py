"""The networks that benchmarks measure, by their --network name; random weights."""

from __future__ import annotations

# Refinement as wide as the starter's. Features and volume of this network exist only in published widths.
NARROW = {
    "motion_encoder_widths": (64, 64, 16, 16),
    "motion_encoder_final": 31,
    "gru_hidden": 32,
    "gru_gating_conv_widths": (64, 96),
    "disp_head_intermediate": 32,
    "disp_head_pwconv1_widths": (128, 128),
    "mask_widths": (16, 8),
    "stem_2_widths": (8, 8),
    "spx_2_gru_widths": (8, 8, 8, 16),
    "cnet_conv04_widths": (32, 32),
}
NETWORKS = {
    "tiny": {"preset": "tiny"},
    "small": {"preset": "small"},  # the starter
    **{encoder: {"encoder": encoder} for encoder in ("vits", "vitb", "vitl", "vitg")},
    "fast": {"name": "FastFoundationStereo"},  # the published widths, bp2
    "fast_narrow": {"name": "FastFoundationStereo", "encoder": "vits", "widths": NARROW},
    "unpruned": {"name": "FastFoundationStereo", "topology": "unpruned"},
}


def made(name: str, max_disparity: int | None = None):
    """The network of a name; max_disparity None: its default."""
    import torch

    from stereo_core.models import create_model

    torch.manual_seed(0)
    return create_model(**NETWORKS[name], max_disparity=max_disparity)


def gflop(name: str, height: int = 480, width: int = 640, iters: int = 8) -> float:
    """GFLOP of convolutions and matrix products for one pair, counted without computing them."""
    import torch
    from torch.utils.flop_counter import FlopCounterMode

    with torch.device("meta"), torch.inference_mode(), FlopCounterMode(display=False) as counted:
        pair = torch.zeros(2, 1, 3, height, width)
        made(name).eval()(*pair, iters)
    return counted.get_total_flops() / 1e9
