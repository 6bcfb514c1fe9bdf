"""The sampler that the configuration names."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from peft import PeftModel
    from transformers import PreTrainedModel, PreTrainedTokenizerBase

    from research.config import RunConfig
    from research.sampling.interface import Sampler


def build_sampler(
    config: RunConfig, policy: PeftModel | PreTrainedModel, tokenizer: PreTrainedTokenizerBase, **options: Any
) -> Sampler:
    """Make `config.sampler.kind`, holding the policy's weights as they are now. Imports vLLM only when asked for it.

    options: passed on to the sampler's constructor.
    """
    kind = config.sampler.kind
    if kind == "transformers":
        from research.sampling.transformers_sampler import TransformersSampler

        return TransformersSampler(
            policy,
            max_batch_tokens=config.sampler.max_batch_tokens,
            context=config.model.context,
            check=config.sampler.check,
            **options,
        )
    if kind == "vllm":
        from research.sampling import vllm_engine

        return vllm_engine.from_config(config, policy, tokenizer, **options)
    from research.sampling import vllm_server

    return vllm_server.from_config(config, policy, tokenizer, **options)
