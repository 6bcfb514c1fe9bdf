"""Weights from the trainer's GPU into a real server on another one, through vLLM's NCCL weight transfer."""

from __future__ import annotations

import os

import pytest
import torch
from conftest import make_tiny_model
from services.vllm_process import VLLMProcess

from gpu.policies import load_base, make_policy, mean, move, save_model
from research.errors import StaleWeightsError
from research.sampling.interface import SamplingParams
from research.sampling.proof import TOLERANCES, prove, trainer_logprobs

pytest.importorskip("vllm", reason="needs vLLM")
pytestmark = [
    pytest.mark.gpu,
    pytest.mark.skipif(torch.cuda.device_count() < 2, reason="needs two GPUs"),
]

PROMPTS = [[5, 6, 7, 8], [9, 10], [11] * 40]
GREEDY = SamplingParams(temperature=0, max_tokens=16)


def save(path, seed):
    """With a tokenizer, which a server wants."""
    make_tiny_model(path)
    return save_model(path, seed, vocabulary=512)


@pytest.fixture(scope="module")
def directory(tmp_path_factory):
    return save(tmp_path_factory.mktemp("model"), seed=0)


@pytest.fixture(scope="module")
def server(directory, tmp_path_factory):
    variables = {key: value for key, value in os.environ.items() if key.startswith("VLLM_")}  # what this machine needs
    second = os.environ.get("CUDA_VISIBLE_DEVICES", "0,1").split(",")[1]
    variables |= {"CUDA_VISIBLE_DEVICES": second, "VLLM_LOGGING_LEVEL": "WARNING"}
    process = VLLMProcess(
        directory, tmp_path_factory.mktemp("server") / "log.txt", "--dtype", "bfloat16",
        "--gpu-memory-utilization", "0.1", "--weight-transfer-config", '{"backend": "nccl"}',
        **variables,
    )  # fmt: skip
    yield process
    process.stop()


@pytest.fixture(scope="module")
def sampler(server):
    """One client for all tests: each joins the server's workers in a group of its own."""
    from research.sampling.vllm_server import VLLMServerSampler

    client = VLLMServerSampler(server.url, ["tiny"], context=512, sync="transfer", timeout=120.0)
    assert client.how.nccl
    yield client
    client.close()


def test_syncs_are_proven_and_what_is_drawn_moves(sampler, directory):
    untrained = sampler.generate(PROMPTS, 1, GREEDY)
    policy = make_policy(directory)
    receipt = sampler.sync(policy)
    drawn = {1: sampler.generate(PROMPTS, 1, GREEDY)}
    for seed in (2, 3, 1):
        move(policy, seed)
        receipt = sampler.sync(policy)
        assert receipt.moved > 0.1
        again = sampler.generate(PROMPTS, 1, SamplingParams(max_tokens=16, seed=seed))
        scored = trainer_logprobs(policy, [p + g[0].token_ids for p, g in zip(PROMPTS, again, strict=True)])
        ends = [row[len(prompt) - 1 :] for row, prompt in zip(scored, PROMPTS, strict=True)]
        assert mean(ends, [g[0].logprobs for g in again]) < TOLERANCES[torch.bfloat16].mean / 2
        drawn.setdefault(seed, sampler.generate(PROMPTS, 1, GREEDY))
    print(f"{receipt.seconds:.3f} s a sync, worst gap {receipt.probe_gap:.4f} nats")

    def tokens(groups):
        return [g[0].token_ids for g in groups]

    assert len({str(tokens(groups)) for groups in (untrained, *drawn.values())}) == 4


def test_every_weight_travels_so_that_the_servers_own_base_does_not_matter(sampler, directory, tmp_path):
    """A trainer with other base weights than the server was started with; then one of the first base without a delta."""
    other = make_policy(save(tmp_path / "other", seed=1))
    sampler.sync(other)
    with pytest.raises(StaleWeightsError):
        prove(make_policy(directory), sampler.logprobs, sampler.proof)
    back = make_policy(directory)
    move(back, 1, size=0.0)
    assert sampler.sync(back).moved > 0.1
    probe = sampler.proof.probe
    assert (
        mean(sampler.logprobs(probe), trainer_logprobs(load_base(directory), probe))
        < TOLERANCES[torch.bfloat16].mean / 2
    )


def test_weights_that_were_not_sent_are_noticed(sampler, directory):
    policy = make_policy(directory)
    sampler.sync(policy)
    move(policy, 7)
    with pytest.raises(StaleWeightsError, match="does not hold the trainer's weights"):
        prove(policy, sampler.logprobs, sampler.proof)


def test_another_client_joins_after_the_first_has_left(server, sampler, directory):
    """It stands last, for the first one's group is closed."""
    from research.sampling.vllm_server import VLLMServerSampler

    sampler.close()
    second = VLLMServerSampler(server.url, ["tiny"], context=512, sync="transfer", timeout=120.0)
    policy = make_policy(directory, seed=9)
    assert second.sync(policy).version == 1
    second.close()
