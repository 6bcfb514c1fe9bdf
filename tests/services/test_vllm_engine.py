"""vLLM in process, against the real engine: draws, syncs, drift, and every way a sync has been known to fail."""

from __future__ import annotations

import pytest
import torch

from research.errors import ConfigurationError, SamplerError, StaleWeightsError
from research.sampling.interface import SamplingParams
from research.sampling.proof import prove, trainer_logprobs
from services.vllm_policy import make_policy, merged_logprobs, move, worst

pytest.importorskip("vllm", reason="needs vLLM")
pytestmark = pytest.mark.services

PROMPTS = [[5, 6, 7, 8], [9, 10], [11] * 40]


@pytest.fixture(scope="module")
def engine(tiny_model_dir):
    """An engine as the configuration makes it, on a CPU build: weights packed, the tied head copied."""
    from transformers import AutoTokenizer

    from research.config import ModelConfig, RunConfig, SamplerConfig
    from research.sampling.build import build_sampler

    config = RunConfig(
        model=ModelConfig(name="tiny", path=str(tiny_model_dir), context=512), sampler=SamplerConfig(kind="vllm")
    )
    policy = make_policy(tiny_model_dir)
    sampler = build_sampler(config, policy, AutoTokenizer.from_pretrained(tiny_model_dir))
    assert sampler.version == 1 and sampler.proof.dtype == torch.float32  # it holds the policy already, proven
    yield sampler
    sampler.close()


@pytest.fixture
def sampler(engine, tiny_model_dir):
    """The engine with the checkpoint's weights and nothing proven."""
    from research.sampling.proof import ProofState

    engine.llm.collective_rpc("reload_weights", kwargs={"weights_iterator": iter(base_weights(tiny_model_dir))})
    engine.llm.reset_prefix_cache()
    engine.version, engine.path, engine.check = 0, "", True
    engine.proof = ProofState(context=512, dtype=torch.float32)
    return engine


def base_weights(directory):
    from transformers import AutoModelForCausalLM

    return [
        (name, tensor.clone()) for name, tensor in AutoModelForCausalLM.from_pretrained(directory).state_dict().items()
    ]


def test_draws_have_the_models_own_logprobs(sampler, tiny_model_dir):
    """Untempered and untruncated, whatever the draw was made with."""
    from transformers import AutoModelForCausalLM

    model = AutoModelForCausalLM.from_pretrained(tiny_model_dir)
    drawn = sampler.generate(PROMPTS, 3, SamplingParams(temperature=0.5, top_p=0.6, max_tokens=12, seed=3))
    assert [len(group) for group in drawn] == [3, 3, 3]
    for prompt, group in zip(PROMPTS, drawn, strict=True):
        for completion in group:
            assert len(completion.token_ids) == 12 and completion.finish_reason == "length"
            (expected,) = trainer_logprobs(model, [prompt + completion.token_ids])
            assert worst([completion.logprobs], [expected[len(prompt) - 1 :]]) < 1e-3


def test_draws_depend_on_seed_and_prompt_only(sampler):
    params = SamplingParams(max_tokens=8, seed=1)
    together = sampler.generate(PROMPTS, 2, params)
    apart = [sampler.generate([prompt], 2, params)[0] for prompt in reversed(PROMPTS)][::-1]
    assert [[c.token_ids for c in g] for g in together] == [[c.token_ids for c in g] for g in apart]
    assert together[0][0].token_ids != together[0][1].token_ids
    other = sampler.generate(PROMPTS, 2, SamplingParams(max_tokens=8, seed=2))
    assert together[0][0].token_ids != other[0][0].token_ids
    first, second = sampler.generate([PROMPTS[0]] * 2, 1, params)
    assert first[0].token_ids != second[0].token_ids  # a repeated prompt is another draw


def test_prompts_that_no_one_batch_holds(sampler):
    """Twelve thousand prompt tokens: a seeded prompt must not be split over two batches on a CPU."""
    prompts = [[(7 * i + j) % 60 for j in range(200)] for i in range(60)]
    params = SamplingParams(max_tokens=4, seed=1)
    drawn = sampler.generate(prompts, 1, params)
    assert [len(group) for group in drawn] == [1] * 60
    assert sampler.generate(prompts[40:41], 1, params)[0][0].token_ids == drawn[40][0].token_ids


def test_greedy_and_stop_tokens(sampler):
    (greedy,) = sampler.generate(PROMPTS[:1], 2, SamplingParams(temperature=0, max_tokens=6))
    assert greedy[0] == greedy[1]
    stop = greedy[0].token_ids[2]
    (stopped,) = sampler.generate(PROMPTS[:1], 1, SamplingParams(temperature=0, max_tokens=6, stop_token_ids=(stop,)))
    first = greedy[0].token_ids.index(stop)
    assert stopped[0].token_ids == greedy[0].token_ids[: first + 1] and stopped[0].finish_reason == "stop"


def test_completions_end_at_the_context(sampler):
    (group,) = sampler.generate([[7] * 508], 1, SamplingParams(max_tokens=100))
    assert len(group[0].token_ids) == 4 and group[0].finish_reason == "length"


@pytest.mark.parametrize(("prompt", "message"), [([], "empty"), ([7] * 512, "no room")])
def test_impossible_prompts_are_refused(sampler, prompt, message):
    with pytest.raises(ValueError, match=message):
        sampler.generate([[5, 6], prompt], 1, SamplingParams(max_tokens=4))


def test_one_and_a_thousand_syncs_give_the_same_logprobs(sampler, tiny_model_dir):
    """Live-synced vLLM, merged transformers and unmerged transformers agree; nothing drifts."""
    policy = make_policy(tiny_model_dir)
    receipt = sampler.sync(policy)
    assert receipt.version == 1 and receipt.probe_gap < 1e-4 and receipt.seconds > 0
    probe = sampler.proof.probe
    first = sampler.logprobs(probe)
    assert worst(first, trainer_logprobs(policy, probe)) < 1e-4
    assert worst(first, merged_logprobs(policy, probe)) < 1e-4
    for _ in range(249):
        sampler._write(policy)
    for seed in range(249):  # and with other weights in between
        move(policy, seed)
        sampler._write(policy)
    move(policy, seed=1)
    for _ in range(500):
        sampler._write(policy)
    assert sampler.sync(policy).probe_gap < 1e-4
    assert sampler.logprobs(probe) == first


def test_each_sync_moves_the_sampler(sampler, tiny_model_dir):
    policy = make_policy(tiny_model_dir)
    sampler.sync(policy)
    before = sampler.generate(PROMPTS, 1, SamplingParams(max_tokens=8))
    move(policy, seed=2)
    assert sampler.sync(policy).moved > 0.1
    assert sampler.generate(PROMPTS, 1, SamplingParams(max_tokens=8)) != before


def test_policy_without_adapter_ships_all_its_weights(sampler, tiny_model_dir):
    model = make_policy(tiny_model_dir).merge_and_unload()
    assert sampler.sync(model).probe_gap < 1e-4


def test_failure_only_base_weights_are_shipped(sampler, tiny_model_dir):
    policy = make_policy(tiny_model_dir)
    sampler.llm.collective_rpc("reload_weights", kwargs={"weights_iterator": iter(base_weights(tiny_model_dir))})
    with pytest.raises(StaleWeightsError, match="as the base model does"):
        prove(policy, sampler.logprobs, sampler.proof)


def test_failure_weights_undone_by_a_reload(sampler, tiny_model_dir):
    policy = make_policy(tiny_model_dir)
    sampler.sync(policy)
    sampler.llm.collective_rpc("reload_weights", kwargs={"weights_iterator": iter(base_weights(tiny_model_dir))})
    sampler.llm.reset_prefix_cache()
    with pytest.raises(StaleWeightsError, match="as the base model does"):
        prove(policy, sampler.logprobs, sampler.proof)


def test_failure_prefix_cache_not_reset(sampler, tiny_model_dir):
    policy = make_policy(tiny_model_dir)
    sampler.sync(policy)  # fills the cache with the probe
    move(policy, seed=2)
    sampler._write(policy)
    with pytest.raises(StaleWeightsError, match="cache was not reset"):
        prove(policy, sampler.logprobs, sampler.proof)
    sampler._reset_cache()
    prove(policy, sampler.logprobs, sampler.proof)


def test_failure_tied_head_left_behind(sampler, tiny_model_dir):
    """A checkpoint without lm_head.weight: vLLM's CPU build says nothing and keeps the old head."""
    policy = make_policy(tiny_model_dir)
    sampler.sync(policy)
    trained = policy.get_base_model()
    with torch.no_grad():
        trained.get_input_embeddings().weight.mul_(0.5)
    policy.get_base_model().lm_head.weight = trained.get_input_embeddings().weight
    weights = [(n, t.clone()) for n, t in policy.merge_and_unload().state_dict().items() if n != "lm_head.weight"]
    sampler.llm.collective_rpc("reload_weights", kwargs={"weights_iterator": iter(weights)})
    sampler.llm.reset_prefix_cache()
    with pytest.raises(StaleWeightsError):
        prove(trained, sampler.logprobs, sampler.proof)


def test_engine_that_was_closed_says_so(engine):
    """Stands after all that use it: the engine is gone afterwards."""
    engine.close()
    engine.close()
    with pytest.raises(SamplerError, match="closed"):
        engine.generate([[5]], 1, SamplingParams())


def test_several_saved_adapters_in_one_batch(tiny_model_dir, tmp_path):
    """Each prompt is drawn with its own adapter; new weights under an old path are a new adapter."""
    from research.sampling.vllm_engine import VLLMSampler

    sampler = VLLMSampler(tiny_model_dir, context=512, adapters=2, adapter_rank=4)
    policies = [make_policy(tiny_model_dir, seed=s) for s in (1, 2)]
    for index, policy in enumerate(policies):
        policy.save_pretrained(tmp_path / str(index))
    prompt = [7] * 140  # longer than a cache block
    params = SamplingParams(max_tokens=6, seed=5)
    paths = [tmp_path / "0", tmp_path / "1"]

    def check(drawn, owners):
        for (completion,), policy in zip(drawn, owners, strict=True):
            (expected,) = trainer_logprobs(policy, [prompt + completion.token_ids])
            assert worst([completion.logprobs], [expected[len(prompt) - 1 :]]) < 1e-3

    check(sampler.generate_with(paths, [prompt, prompt], 1, params), policies)
    move(policies[0], seed=3)
    policies[0].save_pretrained(tmp_path / "0")
    check(sampler.generate_with(paths, [prompt, prompt], 1, params), policies)
    with pytest.raises(ConfigurationError, match="no saved LoRA adapter"):
        sampler.generate_with([tmp_path], [prompt], 1, params)
    with pytest.raises(SamplerError, match="serves saved adapters"):
        sampler.sync(policies[0])
    sampler.close()
