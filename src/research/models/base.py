"""The frozen base model: found, loaded once, and proven unchanged between cells."""

from __future__ import annotations

import math
import os
import urllib.error
import urllib.request
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING, Any

from research.config import ModelConfig
from research.errors import ConfigurationError, ModelUnavailableError
from research.models import quantization, sharding
from research.models.identity import model_directory

if TYPE_CHECKING:
    import torch
    from torch import nn
    from transformers import PreTrainedModel, PreTrainedTokenizerBase

_CONNECT_SECONDS = 5.0
_CHUNK = 1 << 24  # elements hashed at once: bounds the extra memory to a few hundred MB


@dataclass
class Base:
    """A base model that several cells share; its weights never change.

    weights_hash: SHA-256 over the weight files, and how they are quantised. sharded: each of several processes holds a
    share of the weights, and all must run the same forward passes. Adapters go on with `attach_lora` and come off with
    `detach`.
    """

    model: PreTrainedModel
    tokenizer: PreTrainedTokenizerBase
    device: torch.device
    weights_hash: str
    config: ModelConfig = field(default_factory=ModelConfig)
    sharded: bool = False
    loaded_fingerprint: str = ""

    def fingerprint(self) -> str:
        """Checksum of every weight's bits, of their order and of their names; computed on the device."""
        return fingerprint(self.model)

    def check_pristine(self) -> None:
        """Raise RuntimeError unless the weights are bit-identical to those that were loaded."""
        now = self.fingerprint()
        if now != self.loaded_fingerprint:
            raise RuntimeError(
                f"the base model {self.config.name!r} changed since it was loaded: its fingerprint is {now}, was "
                f"{self.loaded_fingerprint}. Something wrote into the frozen weights; restart the process."
            )


def load_base(model: ModelConfig, device: str | torch.device | None = None) -> Base:
    """Load model and tokenizer, frozen, in evaluation mode.

    device: null takes the process's own GPU, or the CPU; "auto" spreads the layers over all visible GPUs. With
    `model.shard` and several processes, each reads its share onto its own device, together with the others.
    Raises ModelUnavailableError, within seconds, when the weights are neither here nor reachable, and when the files
    lack a weight of the model; ConfigurationError when `model.quantization` needs a package that is not installed.
    """
    import torch
    from transformers import AutoModelForCausalLM, AutoTokenizer

    from research.cells.identity import hash_files

    quantization.require(model)
    directory = locate(model)
    sharded = sharding.wanted(model)
    assert not sharded or device is None, "a share lies on the process's own device"
    spread = device == "auto"
    place = torch.device(default_device() if device is None or spread else device)
    dtype = _dtype(model.dtype, place)
    loaded, report = AutoModelForCausalLM.from_pretrained(
        directory,
        dtype=dtype,
        attn_implementation=_attention(model.attention, place, dtype),
        local_files_only=True,
        output_loading_info=True,
        **(quantization.loading_arguments(model, dtype, place) | ({"device_map": "auto"} if spread else {})),
        **(sharding.loading_arguments() if sharded else {}),
    )
    if missing := sorted(report["missing_keys"]):  # they would be random numbers
        raise ModelUnavailableError(
            f"model.path={model.path!r}: the files in {directory} lack {len(missing)} weights of a "
            f"{loaded.config.model_type} model: {', '.join(missing[:3])}{', ...' if len(missing) > 3 else ''}. "
            f"They hold {len(report['unexpected_keys'])} others that it does not know; is config.json another model's?"
        )
    if not spread and not sharded:
        loaded.to(place)  # type: ignore[arg-type]
    loaded.eval().requires_grad_(False)
    torch.backends.cuda.enable_cudnn_sdp(False)  # it plans for each new shape of a batch, see docs/decisions.md
    quantization.keep_codes(loaded)
    tokenizer = AutoTokenizer.from_pretrained(directory, local_files_only=True)
    weights_hash = hash_files([*sorted(directory.glob("*.safetensors")), directory / "config.json"])
    if model.quantization != "none":
        weights_hash += f"-{model.quantization}"
    base = Base(loaded, tokenizer, place, weights_hash, model, sharded)
    base.loaded_fingerprint = base.fingerprint()
    return base


def locate(model: ModelConfig) -> Path:
    """The local directory with the model's files, downloading a hub name that is not cached yet."""
    directory = model_directory(model)
    if directory is not None:
        return _checked(directory, model)
    if model.path.count("/") != 1:
        raise ModelUnavailableError(f"model.path={model.path!r}: no such directory. {_how_to_point(model)}")
    return _from_hub(model)


def _checked(directory: Path, model: ModelConfig) -> Path:
    if not (directory / "config.json").exists() or not any(directory.glob("*.safetensors")):
        raise ModelUnavailableError(
            f"model.path={model.path!r}: {directory} holds no config.json with *.safetensors beside it. "
            f"{_how_to_point(model)}"
        )
    return directory


def _from_hub(model: ModelConfig) -> Path:
    from huggingface_hub import constants, snapshot_download

    wanted = ["*.json", "*.safetensors", "*.txt", "*.jinja", "*.model"]
    try:
        return _checked(Path(snapshot_download(model.path, local_files_only=True, allow_patterns=wanted)), model)
    except OSError:
        pass  # not in the local cache: look further
    except ModelUnavailableError:
        pass  # cached without its weights
    if constants.HF_HUB_OFFLINE:
        raise ModelUnavailableError(
            f"model.path={model.path!r} is not in the local cache, and HF_HUB_OFFLINE forbids to fetch it. "
            f"{_how_to_point(model)}"
        )
    _reach(f"{constants.ENDPOINT}/api/models/{model.path}", model)
    try:
        return _checked(Path(snapshot_download(model.path, allow_patterns=wanted)), model)
    except OSError as error:
        raise ModelUnavailableError(
            f"model.path={model.path!r}: the download failed ({error}). {_how_to_point(model)}"
        ) from error


def _reach(url: str, model: ModelConfig) -> None:
    """Ask the hub once, so that a machine without a network fails in seconds instead of retrying."""
    request = urllib.request.Request(url, method="HEAD")
    if token := os.environ.get("HF_TOKEN"):
        request.add_header("Authorization", f"Bearer {token}")
    try:
        urllib.request.urlopen(request, timeout=_CONNECT_SECONDS).close()
    except urllib.error.HTTPError as error:
        if error.code in (401, 403, 404):
            raise ModelUnavailableError(
                f"model.path={model.path!r}: {url} answers {error.code}: there is no such model, or it needs an "
                f"accepted licence and HF_TOKEN. {_how_to_point(model)}"
            ) from error
    except (OSError, ValueError) as error:
        raise ModelUnavailableError(
            f"model.path={model.path!r} is not on this machine and {url} could not be reached ({error}). "
            f"{_how_to_point(model)}"
        ) from error


def _how_to_point(model: ModelConfig) -> str:
    return "Set model.path=/path/to/a/directory with config.json, tokenizer and *.safetensors, or use model=micro."


def default_device() -> str:
    """This process's own GPU where there is one, else the CPU."""
    import torch

    return f"cuda:{os.environ.get('LOCAL_RANK', '0')}" if torch.cuda.is_available() else "cpu"


def _dtype(name: str, device: torch.device) -> torch.dtype:
    import torch

    if name == "auto":
        return torch.float32 if device.type == "cpu" else torch.bfloat16
    return getattr(torch, name)


def _attention(name: str, device: torch.device, dtype: torch.dtype) -> str:
    import torch
    from transformers.utils import is_flash_attn_2_available

    possible = device.type == "cuda" and dtype != torch.float32 and is_flash_attn_2_available()
    if name == "flash_attention_2" and not possible:
        raise ConfigurationError(
            f"model.attention=flash_attention_2 needs the flash-attn package, a GPU and 16-bit weights; here: device "
            f"{device}, {dtype}. Use model.attention=auto."
        )
    return ("flash_attention_2" if possible else "sdpa") if name == "auto" else name


def fingerprint(module: nn.Module) -> str:
    """Hash of names, shapes and bits of all parameters and persistent buffers (hex); the same for a sharded model."""
    import hashlib

    import torch

    sharding.reshard(module)
    weights = module.state_dict()
    sums: list[Any] = []
    for tensor in weights.values():
        rows, place = sharding.own_rows(tensor)
        sums.append(_checksum(rows, place.start * math.prod(tensor.shape[1:])))
    if sharding.is_sharded(module):
        sums = list(sharding.sum_over_processes(torch.stack(sums)))
    total = hashlib.sha256()
    for name, value in zip(weights, sums, strict=True):
        total.update(f"{name}:{int(value)}\n".encode())
    return total.hexdigest()[:16]


def _checksum(tensor: torch.Tensor, first: int = 0) -> torch.Tensor:
    """Sum over i of mix(bits_i) * odd(first + i), modulo 2^64; sensitive to every bit and to the order.

    Parts of a tensor, each from its `first` element on, sum to the checksum of the whole.
    """
    import torch

    as_integer = {1: torch.uint8, 2: torch.int16, 4: torch.int32, 8: torch.int64}[tensor.element_size()]
    flat = tensor.detach().contiguous().view(-1).view(as_integer)
    total = torch.zeros((), dtype=torch.int64, device=flat.device)
    for start in range(0, flat.numel(), _CHUNK):
        part = flat[start : start + _CHUNK].to(torch.int64)
        place = torch.arange(first + start, first + start + part.numel(), device=flat.device)
        total += ((part + 0x1234567) * place.mul_(-0x61C8864680B583EB).bitwise_or_(1)).sum()
    return total
