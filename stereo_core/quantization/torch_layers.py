"""The layers of a network that PyTorch's quantisation libraries support."""

from __future__ import annotations

from torch import nn

from stereo_core.quantization.rules import Layer, is_sensitive

CONVOLUTIONS = (nn.Conv2d, nn.Conv3d, nn.ConvTranspose2d, nn.ConvTranspose3d)
TRANSPOSED = (nn.ConvTranspose2d, nn.ConvTranspose3d)
# Checkpoints contain these layers, but the network does not use them, so they are never calibrated.
UNUSED = ("context_zqr_convs", "stem_4")


def layers_of(model: nn.Module) -> list[Layer]:
    """Linear layers and convolutions that the network uses, in its order."""
    found = []
    for name, module in model.named_modules():
        words = name.split(".")
        if isinstance(module, (nn.Linear, *CONVOLUTIONS)) and words[0] not in UNUSED:
            found.append(Layer(name, type(module).__name__, module.weight.numel(), words[0], not is_sensitive(words)))
    return found
