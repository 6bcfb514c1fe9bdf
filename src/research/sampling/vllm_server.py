"""Sampling from a vLLM server that someone else runs, over HTTP."""

from __future__ import annotations

import functools
import time
from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

from research.errors import ConfigurationError, SamplerError
from research.sampling.interface import Completion, SamplingParams, SyncReceipt
from research.sampling.proof import ProofState, prove, still_holds
from research.sampling.requests import check_request, prompt_seeds
from research.sampling.server_client import HTTPStatusError, ServerClient
from research.sampling.server_sync import (
    AdapterSwap,
    InPlaceUpdate,
    MergeAndRestart,
    ServerSync,
    in_parallel,
    read_info,
)
from research.sampling.watch import SpeedWatch

if TYPE_CHECKING:
    from peft import PeftModel
    from transformers import PreTrainedModel

    from research.config import RunConfig

CONNECT_SECONDS = 10.0
IN_FLIGHT = 256  # requests that the server is given to batch


class VLLMServerSampler:
    """A client of vLLM's OpenAI server.

    models: names under which the server may know the base model; the first that it lists is used. sync: "adapter",
    "transfer" or "restart", see `server_sync` for what each needs and costs. timeout: seconds of silence that are an
    error. Raises ConfigurationError, before anything is trained, when the server does not answer, does not have the
    model, has a shorter context than `context`, or cannot do the chosen sync.
    """

    def __init__(
        self, url: str | None, models: Sequence[str], *, context: int = 1024, sync: str = "adapter",
        sync_dir: str | Path | None = None, restart_command: str | None = None, timeout: float = 120.0,
        check: bool = True, base: Path | None = None,
    ) -> None:  # fmt: skip
        import torch

        if not url:
            raise ConfigurationError("sampler=vllm_server needs sampler.url, e.g. sampler.url=http://127.0.0.1:8000")
        self.client = ServerClient(url, timeout)
        cards = self._cards()
        known = {
            name: card for card in cards for name in (card["id"], card.get("root")) if name and not card.get("parent")
        }
        found = next((name for name in models if name in known), None)
        if found is None:
            raise ConfigurationError(
                f"{url} does not have the model {' or '.join(map(repr, models))}; it has "
                f"{sorted(c['id'] for c in cards)}. Set model.path or model.name to one of these, or start the server "
                "with --served-model-name"
            )
        self.model = known[found]["id"]
        longest = known[found].get("max_model_len")
        if longest is not None and longest < context:
            raise ConfigurationError(
                f"model.context={context} is longer than the server's context of {longest}; lower it, or restart the "
                f"server with --max-model-len {context}"
            )
        info = read_info(self.client) or {}
        dtype = str((info.get("model_config") or {}).get("dtype", "bfloat16")).removeprefix("torch.")
        self.context, self.check, self.target = context, check, self.model
        self.proof = ProofState(context=context, dtype=getattr(torch, dtype, torch.bfloat16))
        self.how = self._choose(sync, Path(sync_dir) if sync_dir else None, restart_command, info, base)
        self.version = 0
        self.speed = SpeedWatch()

    def generate(self, prompts: Sequence[list[int]], n: int, params: SamplingParams) -> list[list[Completion]]:
        """See `Sampler.generate`. Afterwards a few probe tokens show that the server still holds the proven weights."""
        check_request(prompts, n, params, self.context)
        if not prompts:
            return []
        draws = 1 if params.temperature == 0 else n  # n equal draws, which vLLM refuses to make one by one
        bodies = [
            {
                "model": self.target, "prompt": list(prompt), "n": draws, "seed": seed, "top_p": params.top_p,
                "temperature": params.temperature, "max_tokens": min(params.max_tokens, self.context - len(prompt)),
                "stop_token_ids": list(params.stop_token_ids), "ignore_eos": True, "logprobs": 0, **NEUTRAL,
            }
            for prompt, seed in zip(prompts, prompt_seeds(prompts, params), strict=True)
        ]  # fmt: skip
        start = time.perf_counter()
        answers = self._complete(bodies)
        drawn = [[_completion(c) for c in sorted(a["choices"], key=lambda c: c["index"])] for a in answers]
        if draws != n:
            drawn = [group * n for group in drawn]
        if wrong := [len(group) for group in drawn if len(group) != n]:
            raise SamplerError(f"the server answered {wrong[0]} completions of {n}")
        tokens = sum(len(c.token_ids) for group in drawn for c in group)
        self.speed.generated(len(prompts) * n, tokens, time.perf_counter() - start)
        if self.check:
            still_holds(self.logprobs, self.proof)
        return drawn

    def logprobs(self, sequences: list[list[int]]) -> list[list[float]]:
        """Log-probs of each sequence's tokens after the first; the last as sampled tokens are, cache included."""
        common = {"model": self.target, "max_tokens": 1, "temperature": 0.0, "ignore_eos": True, **NEUTRAL}
        whole = [{**common, "prompt": ids, "prompt_logprobs": 0} for ids in sequences]
        last = [{**common, "prompt": ids[:-1], "logprobs": 0, "allowed_token_ids": [ids[-1]]} for ids in sequences]
        answers = self._complete(whole) + self._complete(last)
        found = []
        for ids, scored, end in zip(sequences, answers, answers[len(sequences) :], strict=False):
            positions = scored["choices"][0]["prompt_logprobs"][1:-1]
            inner = [position[str(token)]["logprob"] for token, position in zip(ids[1:-1], positions, strict=True)]
            found.append([*inner, end["choices"][0]["logprobs"]["token_logprobs"][0]])
        return found

    def sync(self, policy: PreTrainedModel | PeftModel) -> SyncReceipt:
        """See `Sampler.sync`."""
        start = time.perf_counter()
        self.target = self.how.push(policy, self.version + 1)
        seconds = time.perf_counter() - start
        self.version += 1
        gap, moved = prove(policy, self.logprobs, self.proof) if self.check else (float("nan"), float("nan"))
        self.how.accept()
        self.speed.synced()
        return SyncReceipt(seconds=seconds, version=self.version, probe_gap=gap, moved=moved)

    def close(self) -> None:
        """See `Sampler.close`; the server is left running, without our adapters."""
        self.how.close()

    def _cards(self) -> list[dict[str, Any]]:
        timeout = min(CONNECT_SECONDS, self.client.timeout)
        try:
            answer = self.client.get("/v1/models", timeout=timeout)
            return answer["data"]
        except (SamplerError, TypeError, KeyError) as error:
            raise ConfigurationError(
                f"sampler.url={self.client.url} does not answer as a vLLM server does: {error}. Is this its address?"
            ) from error

    def _choose(
        self, sync: str, directory: Path | None, command: str | None, info: dict[str, Any], base: Path | None
    ) -> ServerSync:
        if directory is not None:
            directory.mkdir(parents=True, exist_ok=True)
        if sync == "transfer":
            return InPlaceUpdate(self.client, self.model, info or None, directory)
        if directory is None:
            raise ConfigurationError(
                f"sampler.sync={sync} needs sampler.sync_dir, a directory that trainer and server both see"
            )
        if sync == "adapter":
            rank = (info.get("lora_config") or {}).get("max_lora_rank")
            return AdapterSwap(self.client, directory, int(rank) if rank is not None else None)
        if sync != "restart":
            raise ConfigurationError(f"sampler.sync={sync!r}; choose adapter, transfer or restart")
        if not command:
            raise ConfigurationError(
                "sampler.sync=restart needs sampler.restart_command, which starts the server on {model}"
            )
        return MergeAndRestart(self.client, self.model, directory, command, base)

    def _complete(self, bodies: list[dict[str, Any]]) -> list[dict[str, Any]]:
        calls = [functools.partial(self.client.post, "/v1/completions", body) for body in bodies]
        try:
            return in_parallel(calls, IN_FLIGHT)
        except HTTPStatusError as error:
            if error.status == 404:
                raise SamplerError(f"the server no longer has {self.target!r}: {error.body}") from error
            raise


def from_config(config: RunConfig, policy: Any, tokenizer: Any = None, **options: Any) -> VLLMServerSampler:
    """A cell's client of a server, which holds the policy's weights as they are now, proven."""
    from research.models.base import locate

    sampler, model = config.sampler, config.model
    directory = locate(model)
    names = [name for name in (model.path, model.name, str(directory)) if name != "embedded"]
    client = VLLMServerSampler(
        sampler.url, names, context=model.context, sync=sampler.sync, sync_dir=sampler.sync_dir,
        restart_command=sampler.restart_command, timeout=sampler.timeout, check=sampler.check, base=directory,
        **options,
    )  # fmt: skip
    client.sync(policy)
    return client


# Said aloud, since a server fills in what its model's generation_config.json recommends for anything left out.
NEUTRAL = {
    "top_k": 0, "min_p": 0.0, "repetition_penalty": 1.0, "presence_penalty": 0.0, "frequency_penalty": 0.0,
    "min_tokens": 0, "stop": [], "return_token_ids": True,
}  # fmt: skip


def _completion(choice: dict[str, Any]) -> Completion:
    token_ids, logprobs = choice["token_ids"], choice["logprobs"]["token_logprobs"]
    if len(token_ids) != len(logprobs):
        raise SamplerError(f"the server gave {len(logprobs)} log-probs for {len(token_ids)} tokens")
    if choice["finish_reason"] not in ("stop", "length"):
        raise SamplerError(f"the server ended a completion with {choice['finish_reason']!r}")
    return Completion(token_ids, logprobs, choice["finish_reason"])
