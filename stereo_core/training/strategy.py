"""pytorch-lightning's strategies for several processes, and what the network needs among them."""

from __future__ import annotations

from datetime import timedelta

from pytorch_lightning.plugins.environments import LightningEnvironment
from pytorch_lightning.strategies import DDPStrategy, Strategy
from torch import nn
from torch.nn.modules.batchnorm import _BatchNorm

from stereo_core.training.distribution import Ranks

_TIMEOUT = timedelta(minutes=30)  # for a process that waits for one that is gone without a word


class GivenRanks(LightningEnvironment):
    """The processes are there already; Lightning starts none and reads no variables."""

    def __init__(self, ranks: Ranks) -> None:
        super().__init__()
        self.ranks = ranks

    @property
    def creates_processes_externally(self) -> bool:
        return True

    @property
    def main_address(self) -> str:
        return self.ranks.address

    @property
    def main_port(self) -> int:
        return self.ranks.port

    def local_rank(self) -> int:
        return self.ranks.local or 0

    def node_rank(self) -> int:
        return self.ranks.node

    def teardown(self) -> None:
        """Nothing of the environment was touched."""


def strategy(ranks: Ranks) -> Strategy | str:
    """How the processes share the work: every one a copy of the network, gradients averaged.

    Buffers stay each rank's own within an epoch (see `StereoModule.on_validation_start`): ranks may have different
    numbers of images to validate, and a broadcast with every forward pass would wait for the missing ones.
    """
    if ranks.world == 1:
        return "auto"
    return DDPStrategy(broadcast_buffers=False, timeout=_TIMEOUT)


def synchronise_batch_norm(network: nn.Module) -> None:
    """Let batch normalisation in training count over the images of all ranks; needs GPUs.

    One new module for each old one: a norm may stand under two names, and torch's own conversion would make two of it.
    """
    new: dict[nn.Module, nn.Module] = {}
    for parent in list(network.modules()):
        for name, child in list(parent._modules.items()):
            if isinstance(child, _BatchNorm):
                if child not in new:
                    new[child] = nn.SyncBatchNorm.convert_sync_batchnorm(child)
                setattr(parent, name, new[child])
