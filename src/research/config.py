"""Every key of a cell's configuration, typed, with one line each. Imports no torch.

The root keys mean the same in every task; what only one task has is a field of its own class (see `research.task`).
"""

from __future__ import annotations

import difflib
import math
from collections.abc import Iterable, Mapping
from dataclasses import MISSING, Field, dataclass, field, fields, is_dataclass
from functools import lru_cache
from typing import Any

from research.errors import ConfigurationError

# Root keys that a task may or may not use. One that it does not use stays null and is refused when set.
OPTIONAL_ROOT_KEYS = ("lr", "epochs", "steps", "batch_size", "advantages", "constraint")


def key(default: Any, doc: str, **limits: Any) -> Any:
    """A configuration field with its help line and limits.

    Limits: `min`, `max` (inclusive), `above` (exclusive lower bound), `choices`. `identity=False` marks a key that
    cannot change the numbers: it stays out of a cell's digest. `identity="if set"` stays out at its default: for a key
    that is younger than results which are kept. Lists and other mutable defaults are copied.
    """
    metadata = {"doc": doc, **limits}
    if isinstance(default, list | dict):
        return field(default_factory=lambda: default.copy(), metadata=metadata)
    if isinstance(default, type):
        return field(default_factory=default, metadata=metadata)
    return field(default=default, metadata=metadata)


@dataclass
class ModelConfig:
    """The base model."""

    name: str = key("micro", "short name, used in tables and figures")
    path: str = key("embedded", "`embedded`, a directory, or a model hub name", identity=False)
    dtype: str = key("auto", "precision of the frozen weights", choices=("auto", "float32", "bfloat16", "float16"))
    quantization: str = key(
        "none", "4-bit codes for the frozen weights (QLoRA)", choices=("none", "nf4"), identity="if set"
    )
    attention: str = key("auto", "attention kernel", choices=("auto", "eager", "sdpa", "flash_attention_2"))
    lora_scale: float | None = key(None, "LoRA scale calibrated for this model; null: from alpha and r", above=0)
    thinking: bool | None = key(None, "passed to chat templates that know `enable_thinking`; null: not passed")
    context: int = key(1024, "longest sequence, in tokens", min=16)
    shard: bool = key(False, "several processes: each holds a share of the weights, not all of them", identity=False)


@dataclass
class AdapterConfig:
    """What is trained on top of the frozen base."""

    kind: str = key("lora", "adapter method", choices=("lora", "antipasto", "none"))
    r: int | None = key(32, "rank; null: full rank (antipasto)", min=1)
    alpha: float = key(64.0, "LoRA alpha; the scale is alpha / r, or alpha / sqrt(r) with rslora", above=0)
    scale: float | None = key(None, "LoRA scale itself; when set, alpha is derived from it", above=0)
    rslora: bool = key(True, "rank-stabilised scale, alpha / sqrt(r)")
    dropout: float = key(0.05, "dropout on the adapter's input", min=0, max=0.99)
    targets: list[str] = key(
        ["q_proj", "k_proj", "v_proj", "o_proj", "gate_proj", "up_proj", "down_proj"],
        "leaf names of the adapted modules",
    )
    freeze_a: bool = key(False, "LoRA: keep A fixed, so that B's gradient basis does not move")


@dataclass
class SamplerConfig:
    """Who generates."""

    kind: str = key("transformers", "sampler", choices=("transformers", "vllm", "vllm_server"))
    max_batch_tokens: int = key(65536, "tokens held in the KV cache at once (transformers)", min=1)
    gpu_memory_utilization: float = key(0.4, "share of the GPU that vLLM takes", above=0, max=1, identity=False)
    tensor_parallel_size: int = key(1, "GPUs a vLLM engine spans", min=1)
    enforce_eager: bool = key(False, "vLLM: no CUDA graphs")
    url: str | None = key(None, "vllm_server: where it answers, e.g. http://127.0.0.1:8000", identity=False)
    sync: str = key("adapter", "vllm_server: how weights get there", choices=("adapter", "transfer", "restart"))
    sync_dir: str | None = key(None, "vllm_server: directory that trainer and server both see", identity=False)
    restart_command: str | None = key(
        None, "vllm_server, sync=restart: shell command that stops the server and starts it on {model}", identity=False
    )
    timeout: float = key(120.0, "vllm_server: seconds before a silent server is an error", above=0, identity=False)
    check: bool = key(True, "prove after each sync that the sampler holds the trainer's weights")


@dataclass
class TrackerConfig:
    """Where runs are logged besides the files."""

    kind: str = key("none", "tracker", choices=("none", "wandb"))
    project: str = key("research", "wandb project; wins over WANDB_PROJECT")
    mode: str = key("online", "wandb mode", choices=("online", "offline"))


@dataclass
class Optimization:
    """Optimizer, schedule and memory of a training run; a task nests it as `task.optim`."""

    betas: list[float] = key([0.9, 0.999], "AdamW betas")
    eps: float = key(1e-8, "AdamW epsilon", above=0)
    weight_decay: float = key(0.0, "AdamW weight decay", min=0)
    schedule: str = key("cosine", "learning-rate schedule", choices=("cosine", "linear", "constant"))
    warmup_ratio: float = key(0.05, "share of the steps that warm up", min=0, max=1)
    max_grad_norm: float = key(1.0, "gradient clipping by global norm", above=0)
    micro_batch_size: int | None = key(None, "examples a forward pass; null: the whole batch", min=1)
    gradient_checkpointing: bool = key(False, "recompute activations: less memory, more time")
    bf16: str = key(
        "auto",
        "bf16 autocast; auto: where the hardware has it, in GRPO only of a model in bfloat16",
        choices=("auto", "true", "false"),
    )
    checkpoint_seconds: float = key(60.0, "at least this long between checkpoints; 0: every step", min=0)


@dataclass
class RunConfig:
    """One cell's configuration."""

    model: ModelConfig = key(ModelConfig, "the base model")
    adapter: AdapterConfig = key(AdapterConfig, "what is trained")
    sampler: SamplerConfig = key(SamplerConfig, "who generates")
    tracker: TrackerConfig = key(TrackerConfig, "where runs are logged besides the files", identity=False)
    advantages: Any = key(None, "how rewards become advantages (reinforcement learning)")
    constraint: Any = key(None, "which part of a gradient may pass (reinforcement learning)")
    task: Any = key(None, "the study; its keys are `task.<key>`")
    name: str = key("default", "name of the sweep", identity=False)
    lr: float | None = key(None, "learning rate of the policy, or the only one", above=0, max=10)
    epochs: int | None = key(None, "passes over the data (supervised)", min=1)
    steps: int | None = key(None, "optimizer steps (reinforcement learning)", min=1)
    batch_size: int | None = key(None, "examples an optimizer step", min=1)
    seed: int = key(42, "training and sampling", min=0)
    data_seed: int = key(42, "data generation and splits", min=0)
    results_root: str = key(".", "where eval_results/, figures/ and runs/ go", identity=False)


def docs(schema: type, prefix: str = "") -> dict[str, tuple[Field, Any]]:
    """Dotted key -> (field, default) for a dataclass and the dataclasses it nests."""
    found: dict[str, tuple[Field, Any]] = {}
    for f in fields(schema):
        default = f.default_factory() if f.default_factory is not MISSING else f.default
        if is_dataclass(default) and not isinstance(default, type):
            found |= docs(type(default), f"{prefix}{f.name}.")
        else:
            found[prefix + f.name] = (f, default)
    return found


def check(config: Any, prefix: str = "") -> None:
    """Raise ConfigurationError for the first value outside its field's limits, through nested dataclasses."""
    for field_name, limits in _limits(type(config)):  # type: ignore[arg-type]
        value, name = getattr(config, field_name), prefix + field_name
        if value in ("True", "False") and value.lower() in limits.get("choices", ()):
            setattr(config, field_name, value := value.lower())  # typed without quotes, true is a boolean to YAML
        if hasattr(type(value), "__dataclass_fields__"):
            check(value, f"{name}.")
        elif value is not None and not isinstance(value, list | dict):
            _check_value(name, value, limits)


def check_combinations(config: RunConfig) -> None:
    """Raise ConfigurationError for settings of different groups that exclude each other, whatever the task."""
    model, sampler = config.model, config.sampler.kind
    if model.quantization == "none":
        return
    quantized = f"model.quantization={model.quantization}"
    if sampler != "transformers":
        raise ConfigurationError(
            f"sampler={sampler} takes weights with the adapter merged in, which {quantized} does not have; use "
            "sampler=transformers."
        )
    if model.shard:
        raise ConfigurationError(f"model.shard=true shares out plain weights, not those of {quantized}; set one only.")
    if config.adapter.kind == "antipasto":
        raise ConfigurationError(
            f"adapter=antipasto decomposes plain weights, which {quantized} does not have; use adapter=lora."
        )


def check_grpo_dtype(dtype: str, bf16: str) -> None:
    """Raise ConfigurationError for autocast under which the trainer could not agree with the sampler.

    dtype: model.dtype, of which `auto` is known only once the model is loaded.
    """
    if bf16 == "true" and dtype not in ("auto", "bfloat16"):
        raise ConfigurationError(
            f"task.optim.bf16=true would train in bfloat16 what is sampled in {dtype}; set model.dtype=bfloat16 "
            "too, or leave task.optim.bf16=auto."
        )


@lru_cache(maxsize=256)
def _limits(schema: type) -> list[tuple[str, Mapping[str, Any]]]:
    return [(f.name, f.metadata) for f in fields(schema)]


def nearest(name: str, candidates: Iterable[str]) -> str:
    """` Did you mean X?` for the candidate most like `name`, or an empty string when none is."""
    found = difflib.get_close_matches(name, list(candidates), n=1, cutoff=0.5)
    return f" Did you mean {found[0]!r}?" if found else ""


def _check_value(name: str, value: Any, limits: Mapping[str, Any]) -> None:
    if isinstance(value, float) and not math.isfinite(value):
        raise ConfigurationError(f"{name}={value!r} is not a finite number.")
    if "min" in limits and value < limits["min"]:
        raise ConfigurationError(f"{name}={value!r} is too small; it must be at least {limits['min']}.")
    if "above" in limits and value <= limits["above"]:
        raise ConfigurationError(f"{name}={value!r} is too small; it must be more than {limits['above']}.")
    if "max" in limits and value > limits["max"]:
        raise ConfigurationError(f"{name}={value!r} is too large; it must be at most {limits['max']}.")
    if "choices" in limits and value not in limits["choices"]:
        names = [str(choice) for choice in limits["choices"]]
        raise ConfigurationError(f"{name}={value!r} is not one of {', '.join(names)}.{nearest(str(value), names)}")
