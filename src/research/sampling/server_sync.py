"""How weights get into a server that someone else runs: three ways, each with its cost."""

from __future__ import annotations

import contextlib
import shutil
import subprocess
import time
import uuid
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any, Protocol

from research.errors import ConfigurationError, SamplerError, StaleWeightsError
from research.models.deltas import trainable_fingerprint, weight_deltas
from research.sampling.server_client import HTTPStatusError, ServerClient

KEPT = 2  # versions left on disk: the one in use and the one before it


class ServerSync(Protocol):
    """Puts the policy's weights into the server; `push` returns the model name that requests must carry from now on."""

    def push(self, policy: Any, version: int) -> str: ...

    def accept(self) -> None:
        """The push is proven: what it replaced may go."""
        ...

    def close(self) -> None:
        """Leave the server as it was found, as far as that is cheap."""
        ...


class AdapterSwap:
    """Hot-swap of the LoRA adapter: `POST /v1/load_lora_adapter`, each version under a name of its own.

    Cost: milliseconds a sync and only the adapter on disk, but the server computes with adapter kernels, which decode
    more slowly than merged weights (by how much: benchmarks/README.md). The server needs `--enable-lora
    --max-lora-rank R`, room for two adapters (`--max-loras 2`) and VLLM_ALLOW_RUNTIME_LORA_UPDATING=True. LoRA and
    rsLoRA only. Versioned names: vLLM refuses a second load of a name, its `load_inplace` flag sticks and re-reads
    the adapter from disk at every step, and its prefix cache is keyed by name.
    """

    def __init__(self, client: ServerClient, directory: Path, max_rank: int | None) -> None:
        self.client, self.directory, self.max_rank = client, directory, max_rank
        self.run = uuid.uuid4().hex[:8]  # a resumed run starts at version 1 again, on a server that remembers
        self.loaded: list[str] = []
        try:
            client.post("/v1/load_lora_adapter", {"lora_name": "", "lora_path": ""})
        except HTTPStatusError as error:
            if error.status in (404, 405):
                raise ConfigurationError(
                    f"sampler.sync=adapter: {client.url} has no /v1/load_lora_adapter; start it with --enable-lora "
                    "--max-loras 2 and VLLM_ALLOW_RUNTIME_LORA_UPDATING=True, or use sampler.sync=transfer"
                ) from error

    def push(self, policy: Any, version: int) -> str:
        rank = self._check(policy)
        name = f"research-{self.run}-v{version}-{trainable_fingerprint(policy)[:8]}"
        path = self.directory / name
        policy.save_pretrained(path)
        (path / "README.md").unlink(missing_ok=True)
        _check_payload(path / "adapter_model.safetensors", expected=2 * len(list(weight_deltas(policy))))
        try:
            self.client.post("/v1/load_lora_adapter", {"lora_name": name, "lora_path": str(path.resolve())})
        except HTTPStatusError as error:
            if "max_lora_rank" in error.body:
                raise ConfigurationError(
                    f"the adapter's rank {rank} exceeds the server's limit; restart it with --max-lora-rank {rank} or "
                    f"lower adapter.r. The server said: {error.body}"
                ) from error
            raise
        self.loaded.append(name)
        if name not in (listed := [card["id"] for card in self.client.get("/v1/models")["data"]]):
            raise StaleWeightsError(f"the server said that it loaded {name}, but lists only {listed}")
        return name

    def accept(self) -> None:
        while len(self.loaded) > 1:
            self.client.post("/v1/unload_lora_adapter", {"lora_name": self.loaded.pop(0)})
        _keep_newest(self.directory, f"research-{self.run}-v*")

    def close(self) -> None:
        while self.loaded:
            name = self.loaded.pop()
            with contextlib.suppress(SamplerError):  # a server that is gone keeps nothing
                self.client.post("/v1/unload_lora_adapter", {"lora_name": name})

    def _check(self, policy: Any) -> int:
        configs = getattr(policy, "peft_config", {})
        if not configs or any(str(getattr(c.peft_type, "value", c.peft_type)) != "LORA" for c in configs.values()):
            raise ConfigurationError("sampler.sync=adapter serves LoRA adapters only; use sampler.sync=transfer")
        if any(hasattr(module, "delta_factors") for module in policy.modules()):
            raise ConfigurationError("sampler.sync=adapter cannot serve this adapter; use sampler.sync=transfer")
        rank = max(config.r for config in configs.values())
        if self.max_rank is not None and rank > self.max_rank:
            raise ConfigurationError(
                f"the adapter's rank {rank} exceeds the server's limit {self.max_rank}; restart it with "
                f"--max-lora-rank {rank} or lower adapter.r"
            )
        return rank


class InPlaceUpdate:
    """Merged weights into the running server, which keeps its CUDA graphs and decodes at the base model's speed.

    With weight-transfer endpoints (`--weight-transfer-config '{"backend":"nccl"}'`): tensors go from GPU to GPU
    through NCCL; cost: one merge and one pass of the whole model over the interconnect a sync. The trainer needs vLLM
    installed and a GPU other than the server's. Otherwise through `sampler.sync_dir` and `reload_weights`; cost: the
    whole model written to and read from that disk a sync. Either way the server needs VLLM_SERVER_DEV_MODE=1: never
    expose such a server. Requests wait while weights change, and the prefix cache is reset.
    """

    def __init__(self, client: ServerClient, model: str, info: dict[str, Any] | None, directory: Path | None) -> None:
        self.client, self.model, self.directory = client, model, directory
        self.run = uuid.uuid4().hex[:8]
        self.group: Any = None
        self.announced: list[tuple[str, str, list[int]]] = []  # name, dtype and shape, the same at every sync
        if info is None:
            raise ConfigurationError(
                f"sampler.sync=transfer: {client.url} has no weight endpoints; start it with VLLM_SERVER_DEV_MODE=1"
            )
        self.nccl = ((info.get("weight_transfer_config") or {}).get("backend")) == "nccl"
        if not self.nccl and directory is None:
            raise ConfigurationError(
                "sampler.sync=transfer: the server has no NCCL weight transfer (--weight-transfer-config "
                '\'{"backend":"nccl"}\'), so weights go through a directory that both see: set sampler.sync_dir'
            )

    def push(self, policy: Any, version: int) -> str:
        self.client.post("/pause", mode="wait")
        try:
            if self.nccl:
                self._send(policy)
            else:
                self._reload(policy, version)
            answer = self.client.post("/reset_prefix_cache")
            if isinstance(answer, dict) and answer.get("success") is False:  # older servers answer with nothing
                raise StaleWeightsError("the server did not reset its prefix cache")
        finally:
            self.client.post("/resume")
        return self.model

    def accept(self) -> None:
        if self.directory is not None:
            _keep_newest(self.directory, f"weights-{self.run}-v*")

    def close(self) -> None:
        """The server keeps the last weights; only its owner knows the ones before."""
        if self.group is not None:
            self.group.close_communicator()
            self.group = None

    def _reload(self, policy: Any, version: int) -> None:
        assert self.directory is not None
        path = self.directory / f"weights-{self.run}-v{version}"
        write_weights(policy, path)
        body = {"method": "reload_weights", "kwargs": {"weights_path": str(path.resolve())}}
        self.client.post("/collective_rpc", body)

    def _send(self, policy: Any) -> None:
        """By TRL's client, which speaks to vLLM's own weight-transfer endpoints."""
        import torch

        from research.models.merge import merged_weights

        device = next(policy.parameters()).device
        if self.group is None:
            from trl.generation.vllm_client import VLLMClient
            from vllm.utils.network_utils import get_open_port

            group = VLLMClient(self.client.url, group_port=get_open_port(), connection_timeout=self.client.timeout)
            group.init_communicator(device=device)
            self.group = group
        if not self.announced:
            self.announced = [
                (name, str(tensor.dtype).removeprefix("torch."), list(tensor.shape))
                for name, tensor in merged_weights(policy)
            ]
        if not self.announced:
            raise StaleWeightsError(f"{type(policy).__name__} has no weights to ship")
        torch.cuda.synchronize(device)  # tensors are merged on streams of their own, which wait for nobody
        self.group.update_named_params(self.announced, merged_weights(policy))


class MergeAndRestart:
    """Merge, save a whole checkpoint under `sampler.sync_dir`, and run `sampler.restart_command` with {model} filled
    in.

    Cost: a full save, a full load and the engine's warm-up a sync: minutes at 70B, tens of seconds at 7B. The last
    resort, for servers without `--enable-lora` and without development endpoints. The command must return only when
    the old server no longer answers.
    """

    START_SECONDS = 900.0

    def __init__(self, client: ServerClient, model: str, directory: Path, command: str, base: Path | None) -> None:
        self.client, self.model, self.directory, self.command, self.base = client, model, directory, command, base
        self.run = uuid.uuid4().hex[:8]

    def push(self, policy: Any, version: int) -> str:
        path = self.directory / f"merged-{self.run}-v{version}"
        write_weights(policy, path)
        for file in self.base.iterdir() if self.base else ():
            if file.is_file() and not file.name.endswith((".safetensors", ".safetensors.index.json", ".bin")):
                shutil.copy(file, path / file.name)
        if not (path / "config.json").exists():
            (policy.get_base_model() if hasattr(policy, "get_base_model") else policy).config.save_pretrained(path)
        command = self.command.replace("{model}", str(path.resolve()))
        done = subprocess.run(command, shell=True, capture_output=True, text=True, timeout=self.START_SECONDS)
        if done.returncode:
            raise SamplerError(
                f"sampler.restart_command ended with {done.returncode}: {(done.stderr or done.stdout)[-600:]}"
            )
        self._wait()
        return self.model

    def accept(self) -> None:
        _keep_newest(self.directory, f"merged-{self.run}-v*")

    def close(self) -> None:
        """The server goes on with the last merged weights."""

    def _wait(self) -> None:
        deadline = time.monotonic() + self.START_SECONDS
        while True:
            try:
                self.client.get("/v1/models", timeout=5)
                return
            except SamplerError as error:
                if time.monotonic() > deadline:
                    raise SamplerError(
                        f"the restarted server did not come up in {self.START_SECONDS:g} s: {error}"
                    ) from error
                time.sleep(0.5)


def write_weights(policy: Any, directory: Path) -> None:
    """Write every merged tensor, tied ones under each name, as one safetensors file; raises if there is none."""
    from safetensors.torch import save_file

    from research.models.merge import merged_weights

    directory.mkdir(parents=True)
    tensors = {name: tensor.detach().cpu().clone().contiguous() for name, tensor in merged_weights(policy)}
    save_file(tensors, directory / "model.safetensors", metadata={"format": "pt"})
    _check_payload(directory / "model.safetensors", expected=len(tensors))


def _check_payload(file: Path, expected: int) -> None:
    """Raise StaleWeightsError unless the file holds `expected` tensors, and at least one."""
    from safetensors import safe_open

    with safe_open(file, "pt") as tensors:
        found = len(list(tensors.keys()))
    if found != expected or not found:
        raise StaleWeightsError(f"{file.name} holds {found} tensors, {expected} were to be shipped")


def _keep_newest(directory: Path, pattern: str) -> None:
    paths = sorted(directory.glob(pattern), key=lambda path: path.stat().st_mtime_ns)
    for path in paths[:-KEPT]:
        shutil.rmtree(path)


def read_info(client: ServerClient) -> dict[str, Any] | None:
    """The server's configuration as far as it tells (development mode only), else None."""
    try:
        answer = client.get("/server_info?config_format=json")
    except HTTPStatusError as error:
        if error.status == 404:
            return None
        raise
    config = answer.get("vllm_config") if isinstance(answer, dict) else None
    return config if isinstance(config, dict) else None


def in_parallel(calls: list[Any], workers: int) -> list[Any]:
    """Results of `calls` in order; the first failure is raised at once and the calls not yet begun are dropped."""
    pool = ThreadPoolExecutor(max_workers=max(1, min(workers, len(calls))))
    try:
        return [future.result() for future in [pool.submit(call) for call in calls]]
    finally:
        pool.shutdown(wait=False, cancel_futures=True)
