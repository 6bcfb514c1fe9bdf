"""A frozen base of which each process holds a share: for models that do not fit on one GPU.

    torchrun --nproc-per-node 8 -m research task=zlt_sweep model=qwen2_5_72b_instruct

Fully sharded data parallelism (torch's FSDP2), put on by transformers while it reads the files: each process reads its
own rows of every weight, and a layer is whole only while it computes. Adapters go on afterwards as ordinary replicated
parameters, so that training, checkpoints and adapter files are those of data parallelism. Every forward pass of a
sharded model is a collective operation: all processes must make the same ones in the same order.

Legend: O = rows of a weight.
"""

from __future__ import annotations

import warnings
from typing import TYPE_CHECKING, Any

from research.cells import ranks
from research.config import ModelConfig
from research.errors import ConfigurationError

if TYPE_CHECKING:
    import torch
    from torch import nn

# Before it, the Trainer left the gradients of replicated adapters on a sharded base as each process computed them.
_OLDEST_TRANSFORMERS = (5, 19)


def wanted(model: ModelConfig) -> bool:
    """Whether the processes of this cell are to share the base; warns where one process has nobody to share with."""
    if model.shard and ranks.world_size() == 1:
        warnings.warn(
            f"model.shard=true is ignored: one process holds all of {model.name}. Start several with torchrun, "
            "accelerate launch or hydra.launcher.tasks_per_node; see docs/cluster.md.",
            RuntimeWarning,
            stacklevel=3,
        )
    return model.shard and ranks.world_size() > 1


def loading_arguments() -> dict[str, Any]:
    """What makes `from_pretrained` read one share in each process. Raises ConfigurationError for old transformers."""
    import transformers

    if tuple(map(int, transformers.__version__.split(".")[:2])) < _OLDEST_TRANSFORMERS:
        oldest = ".".join(map(str, _OLDEST_TRANSFORMERS))
        raise ConfigurationError(f"model.shard=true needs transformers {oldest}; here is {transformers.__version__}")
    from transformers.distributed import DistributedConfig

    return {"distributed_config": DistributedConfig(fsdp_size=ranks.world_size())}


def is_sharded(module: nn.Module) -> bool:
    """Whether any part of a model is held in shares."""
    from torch.distributed.fsdp import FSDPModule

    return any(isinstance(part, FSDPModule) for part in module.modules())


def reshard(module: nn.Module) -> None:
    """Let go of whole weights that the last forward pass left standing; without effect on a model that is not sharded."""
    from torch.distributed.fsdp import FSDPModule

    for part in module.modules():
        if isinstance(part, FSDPModule):
            part.reshard()


def own_rows(weight: torch.Tensor) -> tuple[torch.Tensor, slice]:
    """This process's rows of a weight, sharing its memory, and which of the O rows they are; all of an unsharded one."""
    from torch.distributed.tensor import DTensor, Shard

    if not isinstance(weight, DTensor):
        return weight, slice(0, weight.shape[0] if weight.dim() else 1)
    (placement,) = [p for p, size in zip(weight.placements, weight.device_mesh.shape, strict=True) if size > 1]
    assert isinstance(placement, Shard) and placement.dim == 0, f"rows are shared out, not {placement}"
    _, first = Shard.local_shard_size_and_offset(weight.shape[0], ranks.world_size(), ranks.rank())
    rows = weight.to_local()
    return rows, slice(first, first + rows.shape[0])


def exchange(share: torch.Tensor, other: torch.Tensor) -> None:
    """Swap the contents of two tensors, bit for bit. A share is gathered from where it lies, so it cannot be replaced."""
    import torch

    with torch.no_grad():
        kept = share.clone()
        share.copy_(other)
        other.copy_(kept)


def sum_over_processes(total: torch.Tensor) -> torch.Tensor:
    """The elementwise sum, in every process."""
    import torch

    torch.distributed.all_reduce(total)
    return total


def first_decides(tensor: torch.Tensor) -> torch.Tensor:
    """Overwrite with the first process's values: what steers the next forward pass must not differ by a rounding."""
    import torch

    torch.distributed.broadcast(tensor, 0)
    return tensor
