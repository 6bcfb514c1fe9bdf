"""Sampling with the trainer's own model: no engine, any device.

    sampler = TransformersSampler(policy, max_batch_tokens=65536)
    completions = sampler.generate(prompts, n=10, params=SamplingParams(temperature=1.0, top_p=0.95, max_tokens=128))

What makes it fast: adapters are merged for generation (and taken out again without touching a bit of the base), prompts
are read packed, once for all their samples, the cache is allocated once, and ended completions leave the batch. On a
base in 4 bits nothing can be merged: there the adapter's weights as of the last sync compute beside it.
It covers models whose layers all attend to the whole context; others need sampler=vllm. Of a sharded base each
process merges its own rows, and all generate the same completions, in step.
"""

from __future__ import annotations

import contextlib
import time
from collections import Counter
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any

import numpy
import torch

from research.errors import ConfigurationError
from research.models import sharding
from research.models.deltas import weight_deltas
from research.models.merge import unwrapped
from research.models.quantization import is_quantized
from research.sampling.draws import draw, uniforms
from research.sampling.interface import Completion, SamplingParams, SyncReceipt
from research.sampling.kv_cache import NAME, KeyValueCache
from research.sampling.proof import ProofState, prove
from research.training.attention import can_pack

if TYPE_CHECKING:
    from peft import PeftModel
    from transformers import PreTrainedModel

_DROP_SHARE = 1 / 16  # of the rows: copying the cache without them costs about two tokens' attention over it


@dataclass
class _Request:
    """Samples `first` to `first + count` of one prompt; `place` is its index in the caller's list."""

    place: int
    prompt: list[int]
    occurrence: int
    first: int
    count: int


@dataclass
class _Row:
    """One completion in the making."""

    place: int
    sample: int
    token_ids: list[int] = field(default_factory=list)
    logprobs: list[float] = field(default_factory=list)


class TransformersSampler:
    """Generates with the weights that the policy had when the sampler was made, or at the last `sync`."""

    def __init__(
        self,
        policy: PeftModel | PreTrainedModel,
        *,
        max_batch_tokens: int = 65536,
        context: int | None = None,
        check: bool = True,
    ) -> None:
        self.model = unwrapped(policy)
        limit = self.model.config.get_text_config().max_position_embeddings
        self.context = min(context or limit, limit)
        self.max_batch_tokens, self.check = max_batch_tokens, check
        if not can_pack(self.model, self.context):
            raise ConfigurationError(
                f"{type(self.model).__name__} has layers that do not attend to the whole context, which "
                "sampler=transformers does not cover; use sampler=vllm"
            )
        if not hasattr(self.model.get_decoder(), "layers"):
            raise ConfigurationError(
                f"{type(self.model).__name__} keeps its layers where sampler=transformers does not find them; use "
                "sampler=vllm"
            )
        self.sharded = sharding.is_sharded(self.model)
        self.merges = not is_quantized(self.model)
        self.version = 0
        self.proof = ProofState(context=self.context)
        self.weights = _snapshot(policy)

    @property
    def device(self) -> torch.device:
        return self.model.device

    def generate(self, prompts: Sequence[list[int]], n: int, params: SamplingParams) -> list[list[Completion]]:
        """See `Sampler.generate`. Reads and writes nothing of the global random generators."""
        self._check(prompts, n, params)
        done: list[list[Completion | None]] = [[None] * n for _ in prompts]
        with self._generating():
            for batch in self._batches(prompts, n, params.max_tokens):
                for row, finish_reason in self._complete(batch, params):
                    done[row.place][row.sample] = Completion(row.token_ids, row.logprobs, finish_reason)
        return done  # type: ignore[return-value]

    def sync(self, policy: PeftModel | PreTrainedModel) -> SyncReceipt:
        """Take the policy's current weights; raises StaleWeightsError when what generates scores unlike the policy."""
        start = time.perf_counter()
        self.model = unwrapped(policy)
        self.weights = _snapshot(policy)
        seconds = time.perf_counter() - start
        self.version += 1
        gap, moved = prove(policy, self.logprobs, self.proof) if self.check else (float("nan"), float("nan"))
        return SyncReceipt(seconds, self.version, gap, moved)

    def logprobs(self, sequences: list[list[int]]) -> list[list[float]]:
        """Natural log-probs of each sequence's tokens after the first, with the weights that generate."""
        scores = []
        with self._generating():
            for ids in sequences:  # the last token is scored as sampled ones are: from the cache
                tokens = torch.tensor(ids, device=self.device)
                cache = KeyValueCache(len(self._layers()), [len(ids) - 1], tokens.new_zeros(1), 1)
                logits_TV = self._read([ids[:-1]], cache, torch.arange(len(ids) - 1, device=self.device))
                log_probs = logits_TV.float().log_softmax(-1)
                scores.append(log_probs.gather(-1, tokens[1:, None])[:, 0].tolist())
        return scores

    def close(self) -> None:
        """Let go of the weights of the last sync."""
        self.weights = {}

    def _check(self, prompts: Sequence[list[int]], n: int, params: SamplingParams) -> None:
        if n < 1 or params.max_tokens < 1:
            raise ValueError(f"n={n} and max_tokens={params.max_tokens} must be at least 1")
        for place, prompt in enumerate(prompts):
            if not prompt:
                raise ValueError(f"prompt {place} is empty")
            if len(prompt) >= self.context:
                raise ValueError(
                    f"prompt {place} has {len(prompt)} tokens, which leaves no room in a context of {self.context}"
                )

    def _layers(self) -> Any:
        return self.model.get_decoder().layers

    def _batches(self, prompts: Sequence[list[int]], n: int, max_tokens: int) -> Iterator[list[_Request]]:
        """Requests of about one length that together fit the budget; a prompt's samples stay together if they can."""
        seen: Counter[tuple[int, ...]] = Counter()
        requests = []
        for place, prompt in enumerate(prompts):
            most = max(1, self.max_batch_tokens // min(len(prompt) + max_tokens, self.context))
            for first in range(0, n, most):
                requests.append(_Request(place, prompt, seen[tuple(prompt)], first, min(most, n - first)))
            seen[tuple(prompt)] += 1
        requests.sort(key=lambda request: (-len(request.prompt), request.place))
        batch: list[_Request] = []
        rows = 0
        for request in requests:
            longest = min(len(batch[0].prompt) + max_tokens, self.context) if batch else 0
            if batch and (rows + request.count) * longest > self.max_batch_tokens:
                yield batch
                batch, rows = [], 0
            batch.append(request)
            rows += request.count
        if batch:
            yield batch

    def _read(self, prompts: list[list[int]], cache: KeyValueCache, keep_K: torch.Tensor) -> torch.Tensor:
        """Run the packed prompts through the model into the cache; logits (K, V) at the packed positions `keep`."""
        lengths = [len(prompt) for prompt in prompts]
        bounds = torch.tensor([0, *lengths], dtype=torch.int32, device=self.device).cumsum(0, dtype=torch.int32)
        left_aligned = torch.arange(max(lengths), device=self.device) < bounds.diff()[:, None]
        output = self.model(
            input_ids=torch.tensor([token for prompt in prompts for token in prompt], device=self.device)[None],
            position_ids=torch.cat([torch.arange(length, device=self.device) for length in lengths])[None],
            past_key_values=cache,
            use_cache=True,
            logits_to_keep=keep_K,
            cu_seq_lens_q=bounds,
            cu_seq_lens_k=bounds,
            max_length_q=max(lengths),
            max_length_k=max(lengths),
            packed_slots=left_aligned.flatten().nonzero()[:, 0],
        )
        cache.filled_prompts()
        return output.logits[0]

    def _complete(self, batch: list[_Request], params: SamplingParams) -> Iterator[tuple[_Row, str]]:
        """Decode one batch; yields each completion as it ends, with its reason."""
        prompts = [request.prompt for request in batch]
        lengths = [len(prompt) for prompt in prompts]
        rows = [_Row(request.place, request.first + i) for request in batch for i in range(request.count)]
        counts = torch.tensor([request.count for request in batch])
        rows_of = torch.repeat_interleave(torch.arange(len(batch)), counts).to(self.device)
        limit_S = (self.context - torch.tensor(lengths)).clamp(max=params.max_tokens).to(self.device)[rows_of]
        new_tokens = int(limit_S.max())
        streams = [
            uniforms(params.seed, request.prompt, request.occurrence, request.first + i, new_tokens)
            for request in batch
            for i in range(request.count)
        ]
        uniform_SM = torch.from_numpy(numpy.stack(streams)).to(self.device)
        stops = torch.tensor(params.stop_token_ids, dtype=torch.long, device=self.device)
        cache = KeyValueCache(len(self._layers()), lengths, rows_of, new_tokens)
        last_T = torch.tensor(lengths, device=self.device).cumsum(0) - 1
        logits_SV = self._read(prompts, cache, last_T)[rows_of]
        position_S = torch.tensor(lengths, device=self.device)[rows_of]
        alive_S = torch.ones(len(rows), dtype=torch.bool, device=self.device)
        for step in range(new_tokens):
            ids_S, logprob_S = draw(logits_SV, uniform_SM[:, step], params.temperature, params.top_p)
            if self.sharded:
                sharding.first_decides(ids_S)
            stopped_S = torch.isin(ids_S, stops)
            ended_S = alive_S & (stopped_S | (limit_S == step + 1))
            ids, logprobs = ids_S.tolist(), logprob_S.tolist()
            alive, ended, stopped = alive_S.tolist(), ended_S.tolist(), stopped_S.tolist()
            for i, row in enumerate(rows):
                if alive[i]:
                    row.token_ids.append(ids[i])
                    row.logprobs.append(logprobs[i])
                    if ended[i]:
                        yield row, "stop" if stopped[i] else "length"
            alive_S = alive_S & ~ended_S
            left = sum(alive) - sum(ended)
            if left == 0:
                return
            if len(rows) - left >= max(1, _DROP_SHARE * len(rows)):
                kept = alive_S.nonzero()[:, 0]
                rows = [rows[i] for i in kept.tolist()]
                cache.keep(kept)
                ids_S, position_S, limit_S, uniform_SM, alive_S = (
                    tensor[kept] for tensor in (ids_S, position_S, limit_S, uniform_SM, alive_S)
                )
            output = self.model(
                input_ids=ids_S[:, None],
                position_ids=position_S[:, None],
                attention_mask=cache.mask(),  # of four dimensions, or none: the model takes it as finished
                past_key_values=cache,
                use_cache=True,
            )
            cache.next_column()
            logits_SV, position_S = output.logits[:, -1], position_S + 1

    @contextlib.contextmanager
    def _generating(self) -> Iterator[None]:
        """Inside: the weights of the last sync, cached attention, no dropout. Afterwards: all as before."""
        from peft.tuners.tuners_utils import BaseTunerLayer

        model = self.model
        attention = model.config._attn_implementation
        training = [module for module in model.modules() if module.training]
        layers = [m for m in model.modules() if isinstance(m, BaseTunerLayer) and not m.disable_adapters]
        bypassed = layers if self.merges else []
        model.eval()
        model.set_attn_implementation(NAME)
        try:
            # The flag itself: PEFT's own way of switching adapters off also changes which of their weights are
            # trainable.
            for layer in bypassed:
                layer._disable_adapters = True
            # Buffers that shares are gathered in outlive this block: as inference tensors they could not train.
            with self._synced(), torch.no_grad() if self.sharded else torch.inference_mode():
                yield
        finally:
            for layer in bypassed:
                layer._disable_adapters = False
            model.set_attn_implementation(attention)
            for module in training:
                module.training = True

    @contextlib.contextmanager
    def _synced(self) -> Iterator[None]:
        """Inside, the model's weights are those of the last sync."""
        originals = {parameter: parameter.data for parameter in self.weights}
        put = self._exchange_shares if self.sharded else self._point_at
        put(self.weights)
        try:
            yield
        finally:
            put(self.weights if self.sharded else originals)

    def _exchange_shares(self, weights: dict[torch.nn.Parameter, torch.Tensor]) -> None:
        sharding.reshard(self.model)
        for parameter, data in weights.items():
            sharding.exchange(sharding.own_rows(parameter)[0], data)

    def _point_at(self, weights: dict[torch.nn.Parameter, torch.Tensor]) -> None:
        for parameter, data in weights.items():
            parameter.data = data


def _snapshot(policy: PeftModel | PreTrainedModel) -> dict[torch.nn.Parameter, torch.Tensor]:
    """The weights that training changes, as they are now: merged for adapted layers, copies of other trainable ones.

    On a base in 4 bits, copies of the adapter's own.
    """
    sharding.reshard(policy)
    layers = {name: module for name, module in unwrapped(policy).named_modules()}
    deltas = [] if is_quantized(policy) else list(weight_deltas(policy))
    if deltas:
        return {layers[delta.module].get_base_layer().weight: delta.merged() for delta in deltas}
    return {p: p.detach().clone() for p in policy.parameters() if p.requires_grad}
