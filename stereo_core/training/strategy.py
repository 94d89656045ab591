"""pytorch-lightning's strategies for several processes, and the network's synchronisation among them."""

from __future__ import annotations

import contextlib
from collections.abc import Iterator
from typing import Any

import torch
from pytorch_lightning.plugins.environments import LightningEnvironment
from pytorch_lightning.strategies import DDPStrategy, Strategy
from torch import nn
from torch.distributed.device_mesh import init_device_mesh
from torch.distributed.fsdp import fully_shard
from torch.distributed.tensor import DTensor, distribute_tensor
from torch.nn.modules.batchnorm import _BatchNorm
from torch.optim import Optimizer
from torch.utils._pytree import tree_map

from stereo_core.training.distribution import Ranks, copy_from_first


class GivenRanks(LightningEnvironment):
    """The processes already exist; Lightning starts none and reads no environment variables."""

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
        """Nothing to do: the environment was not changed."""


def strategy(name: str, ranks: Ranks) -> Strategy | str:
    """The strategy by which the processes share the work.

    Each rank keeps its own buffers within an epoch (see `StereoModule.on_validation_start`): ranks may have different
    numbers of validation images, and a broadcast in every forward pass would wait for the missing ones.

    Args:
        name: ddp (every process has the whole network and optimizer), or fsdp (see ShardedStrategy).
    """
    if ranks.world == 1:
        return "auto"
    return DDPStrategy(broadcast_buffers=False) if name == "ddp" else ShardedStrategy()


class ShardedStrategy(DDPStrategy):
    """Weights, gradients and optimizer state are sharded over the ranks and gathered for a forward and backward pass
    (`fully_shard`). Checkpoints are unsharded, like those of ddp, so that either can resume the other's.

    The network is one group: it needs little memory compared with its activations, so smaller groups would only add
    communication. From `on_validation_start` to `on_validation_end` it stays gathered and communicates nothing, because
    ranks may have different numbers of validation images.
    """

    @property
    def network(self) -> nn.Module:
        return self.lightning_module.model

    def configure_ddp(self) -> None:
        copy_from_first([*self.network.parameters(), *self.network.buffers()])
        mesh = init_device_mesh(self.root_device.type, (self.world_size,))
        fully_shard(self.network, mesh=mesh, reshard_after_forward=False)

    @contextlib.contextmanager
    def block_backward_sync(self) -> Iterator[None]:
        self.network.set_requires_gradient_sync(False)
        yield
        self.network.set_requires_gradient_sync(True)

    def lightning_module_state_dict(self) -> dict[str, Any]:
        return tree_map(whole, super().lightning_module_state_dict())

    def optimizer_state(self, optimizer: Optimizer) -> dict[str, Any]:
        return tree_map(whole, super().optimizer_state(optimizer))

    def load_optimizer_state_dict(self, checkpoint: dict[str, Any]) -> None:
        for optimizer, saved in zip(self.optimizers, checkpoint["optimizer_states"], strict=True):
            weights = [weight for group in optimizer.param_groups for weight in group["params"]]
            parts = {number: {name: _part(value, weights[number]) for name, value in state.items()}
                     for number, state in saved["state"].items()}  # fmt: skip
            optimizer.load_state_dict(saved | {"state": parts})

    def teardown(self) -> None:
        """Leave the shards on their devices; the base class would move them."""
        self.cluster_environment.teardown()
        self.precision_plugin.teardown()
        self.accelerator.teardown()


def whole(value: Any) -> Any:
    """The full tensor of a sharded one, on every rank; any other value unchanged."""
    return value.full_tensor() if isinstance(value, DTensor) else value


def _part(value: Any, weight: DTensor) -> Any:
    """This rank's shard of an optimizer's state of a weight; counters are unchanged."""
    if not isinstance(value, torch.Tensor) or value.shape != weight.shape:
        return value
    return distribute_tensor(value.to(weight.device), weight.device_mesh, weight.placements)


def synchronise_batch_norm(network: nn.Module) -> None:
    """Let batch normalisation in training use the images of all ranks; needs GPUs.

    Each module gets exactly one replacement: a norm may have two names, and torch's own conversion would create two.
    """
    new: dict[nn.Module, nn.Module] = {}
    for parent in list(network.modules()):
        for name, child in list(parent._modules.items()):
            if isinstance(child, _BatchNorm):
                if child not in new:
                    new[child] = nn.SyncBatchNorm.convert_sync_batchnorm(child)
                setattr(parent, name, new[child])
