"""A real vLLM API server on loopback: three ways of syncing, and every failure known to have passed unseen."""

from __future__ import annotations

import contextlib
import json
import os
import signal
import sys
import threading
import time

import pytest
import torch
from invariant import policy_setup as setup

from research.errors import ConfigurationError, SamplerError, StaleWeightsError
from research.sampling.interface import SamplingParams
from research.sampling.proof import ProofState, prove, trainer_logprobs
from research.sampling.server_client import HTTPStatusError, ServerClient
from services.vllm_policy import make_policy, merged_logprobs, move, worst
from services.vllm_process import VLLMProcess, free_port

pytest.importorskip("vllm", reason="needs vLLM")
pytestmark = pytest.mark.services

PROMPTS = [[5, 6, 7, 8], [9, 10], [11] * 40]
LORA = ("--enable-lora", "--max-loras", "2", "--max-lora-rank", "8")


@pytest.fixture(scope="module")
def model_dir(tiny_model_dir):
    """The tiny model with a generation_config.json that would change every draw of a client that leaves things out."""
    recommended = {"temperature": 0.1, "top_k": 1, "top_p": 0.1, "repetition_penalty": 5.0}
    (tiny_model_dir / "generation_config.json").write_text(json.dumps(recommended))
    return tiny_model_dir


@pytest.fixture(scope="module")
def server(model_dir, tmp_path_factory):
    process = VLLMProcess(model_dir, tmp_path_factory.mktemp("server") / "log.txt", *LORA)
    yield process
    process.stop()


@pytest.fixture
def make(server, model_dir, tmp_path):
    """A sampler by way of sync; the server is given its base weights back first."""
    from research.sampling.vllm_server import VLLMServerSampler

    client = ServerClient(server.url, 60)
    client.post(
        "/collective_rpc", {"method": "reload_weights", "kwargs": {"weights_path": str(with_head(model_dir, tmp_path))}}
    )
    client.post("/reset_prefix_cache")

    def build(sync="adapter", **options):
        options = {"context": 512, "sync_dir": tmp_path / "sync", "timeout": 60.0, "base": model_dir} | options
        made.append(VLLMServerSampler(server.url, ["tiny"], sync=sync, **options))
        return made[-1]

    made = []
    yield build
    for sampler in made:
        sampler.close()
    assert [card["id"] for card in client.get("/v1/models")["data"]] == ["tiny"]


def with_head(model_dir, tmp_path):
    """The base model with its tied head named, which the CPU build needs for a reload."""
    from transformers import AutoModelForCausalLM

    from research.sampling.server_sync import write_weights

    path = tmp_path / "base"
    write_weights(AutoModelForCausalLM.from_pretrained(model_dir), path)
    return path


@pytest.mark.parametrize("sync", ["adapter", "transfer"])
def test_syncs_are_proven_and_move(make, model_dir, sync):
    sampler, policy = make(sync), make_policy(model_dir)
    assert sampler.sync(policy).probe_gap < 1e-3
    first = sampler.generate(PROMPTS, 2, SamplingParams(max_tokens=8, seed=1))
    for prompt, group in zip(PROMPTS, first, strict=True):
        for completion in group:
            (expected,) = trainer_logprobs(policy, [prompt + completion.token_ids])
            assert worst([completion.logprobs], [expected[len(prompt) - 1 :]]) < 1e-3
    for seed in (2, 3):
        move(policy, seed)
        receipt = sampler.sync(policy)
        assert receipt.probe_gap < 1e-3 and receipt.moved > 0.1
    assert receipt.version == 3
    assert worst(sampler.logprobs(sampler.proof.probe), merged_logprobs(policy, sampler.proof.probe)) < 1e-3


def test_draws_equal_those_of_the_engine_in_process_and_ignore_recommended_settings(make, model_dir):
    sampler = make()
    params = SamplingParams(max_tokens=8, seed=1)
    together = sampler.generate(PROMPTS, 2, params)
    assert together == [sampler.generate([prompt], 2, params)[0] for prompt in PROMPTS]
    assert together[0][0].token_ids != together[0][1].token_ids  # top_k=1 would have made them equal
    (greedy,) = sampler.generate(PROMPTS[:1], 2, SamplingParams(temperature=0, max_tokens=6))
    assert greedy[0] == greedy[1]
    stop = greedy[0].token_ids[0]
    (stopped,) = sampler.generate(PROMPTS[:1], 1, SamplingParams(temperature=0, max_tokens=6, stop_token_ids=(stop,)))
    assert stopped[0].token_ids == [stop] and stopped[0].finish_reason == "stop"


def test_built_from_the_configuration_it_holds_the_policy(make, model_dir, tmp_path):
    from research.config import ModelConfig, RunConfig, SamplerConfig
    from research.sampling.build import build_sampler

    url = make().client.url
    config = RunConfig(
        model=ModelConfig(name="tiny", path=str(model_dir), context=512),
        sampler=SamplerConfig(kind="vllm_server", url=url, sync="transfer", sync_dir=str(tmp_path / "shared")),
    )
    policy = make_policy(model_dir)
    sampler = build_sampler(config, policy, None)
    assert sampler.version == 1 and sampler.proof.dtype == torch.float32
    assert worst(sampler.logprobs(sampler.proof.probe), merged_logprobs(policy, sampler.proof.probe)) < 1e-3


def test_old_adapters_are_taken_off_the_server_and_the_disk(make, model_dir, tmp_path):
    sampler, policy = make(), make_policy(model_dir)
    for seed in range(4):
        move(policy, seed)
        sampler.sync(policy)
    names = [card["id"] for card in sampler.client.get("/v1/models")["data"] if "research-" in card["id"]]
    assert names == [sampler.target]
    assert len(list((tmp_path / "sync").iterdir())) == 2


def test_failure_same_name_again_is_an_error_with_its_body(make, model_dir, tmp_path):
    """The five-day bug: HTTP 400, of which only the status was logged."""
    client, policy = make().client, make_policy(model_dir)
    policy.save_pretrained(tmp_path / "fixed")
    body = {"lora_name": "fixed", "lora_path": str(tmp_path / "fixed")}
    client.post("/v1/load_lora_adapter", body)
    with pytest.raises(HTTPStatusError, match=r"400.*already been loaded.*load_inplace") as caught:
        client.post("/v1/load_lora_adapter", body)
    assert caught.value.status == 400
    client.post("/v1/unload_lora_adapter", {"lora_name": "fixed"})


def test_failure_swallowed_400_is_caught_by_the_proof(make, model_dir, tmp_path):
    """Somebody catches the error and goes on: the sampler still answers with the adapter of the first load."""
    sampler, policy = make(), make_policy(model_dir)
    state = ProofState(context=512, dtype=torch.float32)
    policy.save_pretrained(tmp_path / "fixed")
    body = {"lora_name": "swallowed", "lora_path": str(tmp_path / "fixed")}
    sampler.client.post("/v1/load_lora_adapter", body)
    sampler.target = "swallowed"
    prove(policy, sampler.logprobs, state)
    move(policy, seed=7)
    policy.save_pretrained(tmp_path / "fixed")
    with pytest.raises(HTTPStatusError):
        sampler.client.post("/v1/load_lora_adapter", body)
    with pytest.raises(StaleWeightsError, match="did not change at all"):
        prove(policy, sampler.logprobs, state)
    sampler.client.post("/v1/unload_lora_adapter", {"lora_name": "swallowed"})


def test_failure_adapter_loaded_but_never_named_by_requests(make, model_dir):
    sampler, policy = make(), make_policy(model_dir)
    sampler.how.push(policy, 1)  # loaded, while requests go on naming the base model
    with pytest.raises(StaleWeightsError, match="as the base model does"):
        prove(policy, sampler.logprobs, sampler.proof)


def test_failure_stale_prefix_cache(make, model_dir):
    """New weights without a reset: blocks of the old ones answer for the probe's long sequence."""
    sampler, policy = make("transfer"), make_policy(model_dir)
    sampler.sync(policy)
    move(policy, seed=2)
    sampler.how._reload(policy, 99)
    with pytest.raises(StaleWeightsError, match="cache was not reset"):
        prove(policy, sampler.logprobs, sampler.proof)


def test_failure_base_weights_shipped_instead_of_merged_ones(make, model_dir, tmp_path):
    sampler, policy = make("transfer"), make_policy(model_dir)
    body = {"method": "reload_weights", "kwargs": {"weights_path": str(tmp_path / "base")}}
    sampler.client.post("/collective_rpc", body)
    with pytest.raises(StaleWeightsError, match="as the base model does"):
        prove(policy, sampler.logprobs, sampler.proof)


def test_failure_weights_undone_by_a_reload_between_sync_and_use(make, model_dir, tmp_path):
    """Everything was proven; then somebody reloads. The tokens are refused, not used."""
    sampler, policy = make("transfer"), make_policy(model_dir)
    sampler.sync(policy)
    sampler.generate(PROMPTS, 1, SamplingParams(max_tokens=4))
    body = {"method": "reload_weights", "kwargs": {"weights_path": str(tmp_path / "base")}}
    sampler.client.post("/collective_rpc", body)
    sampler.client.post("/reset_prefix_cache")
    with pytest.raises(StaleWeightsError, match="changed after they were proven"):
        sampler.generate(PROMPTS, 1, SamplingParams(max_tokens=4))


def test_failure_empty_payload(make, model_dir, monkeypatch, tmp_path):
    from safetensors.torch import save_file

    from research.sampling.server_sync import _check_payload

    save_file({}, tmp_path / "adapter_model.safetensors")
    with pytest.raises(StaleWeightsError, match="holds 0 tensors"):
        _check_payload(tmp_path / "adapter_model.safetensors", expected=28)


def test_bad_input_before_anything_is_trained(make, model_dir, tmp_path):
    from research.sampling.vllm_server import VLLMServerSampler

    start = time.monotonic()
    with pytest.raises(ConfigurationError, match="does not answer"):
        VLLMServerSampler(f"http://127.0.0.1:{free_port()}", ["tiny"])
    with pytest.raises(ConfigurationError, match=r"sampler\.url"):
        VLLMServerSampler(None, ["tiny"])
    sampler = make()
    with pytest.raises(ConfigurationError, match=r"does not have the model 'huge'; it has \['tiny'\]"):
        VLLMServerSampler(sampler.client.url, ["huge"])
    with pytest.raises(ConfigurationError, match="longer than the server's context of 512"):
        make(context=1024)
    with pytest.raises(ConfigurationError, match="sync_dir"):
        make(sync_dir=None)
    with pytest.raises(ConfigurationError, match="sync_dir"):
        make("transfer", sync_dir=None)
    with pytest.raises(ConfigurationError, match="restart_command"):
        make("restart")
    with pytest.raises(ConfigurationError, match=r"rank 16 exceeds the server's limit 8"):
        sampler.sync(make_policy(model_dir, r=16))
    sampler.how.max_rank = None  # a server that does not tell: its own refusal is passed on
    with pytest.raises(ConfigurationError, match=r"rank 16 exceeds the server's limit; .*--max-lora-rank 16"):
        sampler.sync(make_policy(model_dir, r=16))
    with pytest.raises(ValueError, match="no room"):
        sampler.generate([[7] * 512], 1, SamplingParams())
    assert time.monotonic() - start < 60


def test_merge_and_restart_then_a_server_that_hangs_and_one_that_dies(model_dir, tmp_path):
    """One server: restarted on merged weights, frozen in mid-generation, thawed, killed in mid-generation."""
    from research.sampling.vllm_server import VLLMServerSampler

    started = [VLLMProcess(model_dir, tmp_path / "log.txt")]
    try:
        script = tmp_path / "restart.py"
        script.write_text(RESTART.format(paths=[p for p in sys.path if p], log=str(tmp_path / "log2.txt")))
        url = started[0].url
        port, pid = started[0].port, started[0].process.pid
        sampler = VLLMServerSampler(
            url, ["tiny"], context=512, sync="restart", sync_dir=tmp_path / "sync", timeout=60.0, base=model_dir,
            restart_command=f"{sys.executable} {script} {pid} {port} {{model}}",
        )  # fmt: skip
        policy = make_policy(model_dir)
        receipt = sampler.sync(policy)
        assert receipt.probe_gap < 1e-3
        new_pid = int((tmp_path / "log2.txt.pid").read_text())
        done = sampler.generate(PROMPTS, 1, SamplingParams(max_tokens=4))

        for number, message in ((signal.SIGSTOP, "hangs"), (signal.SIGKILL, "die|broke off")):
            sampler.client.timeout = 8.0
            timer = threading.Timer(0.3, os.killpg, (new_pid, number))
            timer.start()
            start = time.monotonic()
            with pytest.raises(SamplerError, match=message):
                while True:
                    sampler.generate([[i, 5, 6] for i in range(32)], 2, SamplingParams(max_tokens=400))
            assert time.monotonic() - start < 30
            sampler.client.timeout = 60.0
            if number == signal.SIGSTOP:
                os.killpg(new_pid, signal.SIGCONT)
                assert sampler.generate(PROMPTS, 1, SamplingParams(max_tokens=4)) == done  # nothing was lost
    finally:
        started[0].stop()
        if (tmp_path / "log2.txt.pid").exists():
            with contextlib.suppress(ProcessLookupError):
                os.killpg(int((tmp_path / "log2.txt.pid").read_text()), signal.SIGKILL)


def test_a_run_whose_server_dies_goes_on_with_another_server(model_dir, tmp_path):
    """Killed while it generates for step 3: a clear error; the same training again ends with every step, once."""
    from research.sampling.vllm_server import VLLMServerSampler

    settings = setup.config(steps=4, max_tokens=200)

    def attempt(server, reward):
        sampler = VLLMServerSampler(
            server.url, ["tiny"], context=512, sync="adapter", sync_dir=tmp_path / "sync", timeout=30.0, base=model_dir
        )
        policy, tokenizer = setup.lora(model_dir)
        try:
            return setup.train(policy, tokenizer, tmp_path / "run", settings, reward, sampler=sampler, into=rows)
        finally:
            with contextlib.suppress(SamplerError):
                sampler.close()

    def deadly(groups, step):
        if step == 2:
            threading.Timer(0.3, servers[0].signal, (signal.SIGKILL,)).start()
        return setup.low_ids(groups, step)

    rows, servers = [], []
    try:
        servers.append(VLLMProcess(model_dir, tmp_path / "log.txt", *LORA))
        with pytest.raises(SamplerError, match=r"die|broke off"):
            attempt(servers[0], deadly)
        before = list(rows)
        servers.append(VLLMProcess(model_dir, tmp_path / "log2.txt", *LORA))
        result, _ = attempt(servers[1], setup.low_ids)
    finally:
        for server in servers:
            server.stop()
    assert [row["step"] for row in before] == [1, 2] and result.resumed_from == 2
    assert rows[:2] == before and [row["step"] for row in rows] == [1, 2, 3, 4]


RESTART = """
import os, signal, subprocess, sys, time
from pathlib import Path
sys.path[:0] = {paths!r}
from services.vllm_process import SERVER_ENVIRONMENT, server_command
pid, port, model = int(sys.argv[1]), int(sys.argv[2]), Path(sys.argv[3])
os.killpg(pid, signal.SIGKILL)
time.sleep(0.5)
environment = {{k: v for k, v in os.environ.items() if not k.startswith("VLLM_")}} | SERVER_ENVIRONMENT
with open({log!r}, "w") as output:
    new = subprocess.Popen(
        server_command(model, port), stdout=output, stderr=output, env=environment, start_new_session=True
    )
Path({log!r} + ".pid").write_text(str(new.pid))
"""
