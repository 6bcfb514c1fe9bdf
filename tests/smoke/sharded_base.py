"""What a process sees of a base that it shares with others: `torchrun ... sharded_base.py MODEL OUT`.

Every process also loads the whole model and compares. Writes OUT/RANK.json; test_sharding.py says what must hold.
"""

from __future__ import annotations

import json
import sys
from pathlib import Path
from typing import Any

import torch
from torch.distributed.tensor import DTensor

from research.cells import ranks
from research.config import AdapterConfig, ModelConfig
from research.models import sharding
from research.models.adapters import attach_lora, detach
from research.models.base import Base, load_base
from research.sampling.interface import SamplingParams
from research.sampling.transformers_sampler import TransformersSampler


def main(directory: str, out: Path) -> None:
    torch.set_num_threads(1)
    ranks.join()
    whole = load_base(ModelConfig("tiny", directory), device="cpu")
    shared = load_base(ModelConfig("tiny", directory, shard=True))
    found: dict[str, Any] = {"fingerprints": [whole.loaded_fingerprint, shared.loaded_fingerprint]}
    found["bytes"] = [held(whole), held(shared)]
    buffers = [dict(base.model.named_buffers()) for base in (whole, shared)]
    found["buffers_equal"] = all(torch.equal(buffers[1][name], value) for name, value in buffers[0].items())
    # Attached to the output matrix too: its group of weights is not resharded by the forward pass.
    adapter = AdapterConfig(
        dropout=0.0, targets=["q_proj", "down_proj", *(["lm_head"] if out.name == "untied" else [])]
    )
    policies = [attach_lora(base, adapter, seed=0) for base in (whole, shared)]
    for policy in policies:
        generator = torch.Generator().manual_seed(1)
        for name, parameter in policy.named_parameters():
            if "lora_B" in name:
                parameter.data = torch.randn(parameter.shape, generator=generator) * 0.05
    found["replies"] = [replies(policy, seed=0) for policy in policies]
    found["differences"] = [train_step(policies, seed) for seed in range(2)]
    found["bytes_after_training"] = held(shared)
    found["replies_after_training"] = [replies(policy, seed=0) for policy in policies]
    found["replies_to_own_seed"] = replies(policies[1], seed=ranks.rank())
    found["sync_gap"] = TransformersSampler(policies[1]).sync(policies[1]).probe_gap
    for base, policy in zip((whole, shared), policies, strict=True):
        detach(base, policy)  # raises unless the base is as it was
    if ranks.rank() == 1:
        rows, _ = sharding.own_rows(shared.model.get_decoder().layers[1].mlp.up_proj.weight)
        rows.view(torch.int32)[0, 0] ^= 1
    try:
        shared.check_pristine()
        found["noticed"] = False
    except RuntimeError:
        found["noticed"] = True
    (out / f"{ranks.rank()}.json").write_text(json.dumps(found))


def held(base: Base) -> int:
    """Bytes of the base's parameters in this process between two steps."""
    sharding.reshard(base.model)
    own = [p.to_local() if isinstance(p, DTensor) else p for p in base.model.parameters() if not p.requires_grad]
    return sum(tensor.numel() * tensor.element_size() for tensor in own)


def replies(policy: Any, seed: int) -> list[list[int]]:
    """Sampled tokens; some replies end early, so that a process that stopped first would leave the other waiting."""
    sampler = TransformersSampler(policy, max_batch_tokens=400)
    params = SamplingParams(1.0, 0.95, 24, seed, stop_token_ids=tuple(range(0, 512, 16)))
    drawn = sampler.generate([[5, 6, 7], [8, 9, 10, 11, 12], [13]], n=5, params=params)
    return [completion.token_ids for row in drawn for completion in row]


def train_step(policies: list[Any], seed: int) -> list[float]:
    """Largest difference of logits and of adapter gradients, relative to the largest; on tokens of the process's own."""
    generator = torch.Generator().manual_seed(100 * ranks.rank() + seed)
    ids_BT = torch.randint(512, (2, 9), generator=generator)
    found: list[list[torch.Tensor]] = []
    for policy in policies:
        logits = policy(input_ids=ids_BT, logits_to_keep=torch.tensor([2, 5])).logits
        logits.logsumexp(-1).sum().backward()
        gradients = torch.cat([p.grad.flatten() for p in policy.parameters() if p.requires_grad])
        found.append([logits.detach(), gradients])
        policy.zero_grad()
    return [float((a - b).abs().max() / a.abs().max()) for a, b in zip(*found, strict=True)]


if __name__ == "__main__":
    main(sys.argv[1], Path(sys.argv[2]))
