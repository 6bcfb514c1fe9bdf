"""The transformers sampler against transformers' own generate, and its draws against the distribution they claim."""

from __future__ import annotations

import numpy
import pytest
import torch
from scipy.stats import chisquare

from research.config import AdapterConfig, ModelConfig, RunConfig
from research.errors import StaleWeightsError
from research.models.adapters import attach_lora, detach
from research.models.base import load_base
from research.sampling.build import build_sampler
from research.sampling.draws import draw, uniforms
from research.sampling.interface import SamplingParams
from research.sampling.transformers_sampler import TransformersSampler


@pytest.fixture
def base(tiny_model_dir):
    return load_base(ModelConfig(name="tiny", path=str(tiny_model_dir)), device="cpu")


def make_prompts(count=7, seed=0, shortest=1, longest=30):
    generator = torch.Generator().manual_seed(seed)
    lengths = torch.randint(shortest, longest, (count,), generator=generator).tolist()
    return [torch.randint(5, 512, (length,), generator=generator).tolist() for length in lengths]


def fill_b(policy, seed=0, size=0.1):
    generator = torch.Generator().manual_seed(seed)
    for name, parameter in policy.named_parameters():
        if "lora_B" in name:
            parameter.data = torch.randn(parameter.shape, generator=generator) * size


def greedy_reference(model, prompt, max_tokens, stop):
    output = model.generate(
        torch.tensor([prompt]), attention_mask=torch.ones(1, len(prompt), dtype=torch.long), do_sample=False,
        max_new_tokens=max_tokens, eos_token_id=list(stop) or None, pad_token_id=0,
    )  # fmt: skip
    return output[0, len(prompt) :].tolist()


def scores(model, prompt, ids):
    logits = model(torch.tensor([prompt + ids])).logits[0].float().log_softmax(-1)
    return logits[range(len(prompt) - 1, len(prompt) + len(ids) - 1), ids].tolist()


@pytest.mark.parametrize("budget", [65536, 90, 1])
def test_greedy_equals_generate_and_logprobs_equal_the_models(base, budget):
    prompts = make_prompts()
    model = base.model
    ordinary = [greedy_reference(model, prompt, 24, ()) for prompt in prompts]
    stop = (ordinary[0][5], ordinary[3][11])  # tokens that do occur, so that some completions end early
    sampler = TransformersSampler(model, max_batch_tokens=budget)
    found = sampler.generate(prompts, 1, SamplingParams(temperature=0, max_tokens=24, stop_token_ids=stop))
    reasons = set()
    for prompt, (completion,) in zip(prompts, found, strict=True):
        expected = greedy_reference(model, prompt, 24, stop)
        assert completion.token_ids == expected
        assert completion.finish_reason == ("stop" if expected[-1] in stop else "length")
        reasons.add(completion.finish_reason)
        assert completion.logprobs == pytest.approx(scores(model, prompt, completion.token_ids), abs=1e-4)
    assert reasons == {"stop", "length"}


@pytest.mark.parametrize("family", ["llama", "mistral", "gemma2", "phi3", "olmo2"])
def test_other_families_attend_to_no_padding(family):
    """Prompts of several lengths share a batch; each family builds its masks in its own way."""
    from transformers import AutoConfig, AutoModelForCausalLM

    sizes = {
        "vocab_size": 64, "hidden_size": 32, "num_hidden_layers": 2, "num_attention_heads": 4, "intermediate_size": 48,
        "num_key_value_heads": 2, "initializer_range": 0.3, "pad_token_id": 0, "bos_token_id": 1, "eos_token_id": 2,
    }  # fmt: skip
    torch.manual_seed(0)
    model = AutoModelForCausalLM.from_config(AutoConfig.for_model(family, **sizes), attn_implementation="sdpa").eval()
    prompts = [[5, 6, 7, 8, 9], [10], [11, 12]]
    drawn = TransformersSampler(model, context=64).generate(prompts, 2, SamplingParams(max_tokens=6))
    for prompt, group in zip(prompts, drawn, strict=True):
        for completion in group:
            expected = scores(model, prompt, completion.token_ids)
            assert completion.logprobs == pytest.approx(expected, abs=1e-4)


def test_draws_do_not_depend_on_batching_or_order(base):
    prompts = [*make_prompts(9), [7, 8, 9], [7, 8, 9]]
    params = SamplingParams(temperature=1.0, top_p=0.95, max_tokens=16, seed=3, stop_token_ids=(9, 20, 33, 41))
    whole = TransformersSampler(base.model).generate(prompts, 4, params)
    assert TransformersSampler(base.model, max_batch_tokens=100).generate(prompts, 4, params) != []
    small = TransformersSampler(base.model, max_batch_tokens=100).generate(prompts, 4, params)
    assert [[c.token_ids for c in cs] for cs in small] == [[c.token_ids for c in cs] for cs in whole]
    backwards = TransformersSampler(base.model).generate(prompts[:9][::-1], 4, params)[::-1]
    assert [[c.token_ids for c in cs] for cs in backwards] == [[c.token_ids for c in cs] for cs in whole[:9]]
    fewer = TransformersSampler(base.model).generate(prompts, 2, params)
    assert [[c.token_ids for c in cs] for cs in fewer] == [[c.token_ids for c in cs[:2]] for cs in whole]
    assert whole[9] != whole[10]  # equal prompts are drawn independently
    assert len({tuple(c.token_ids) for cs in whole for c in cs}) > 30
    other = TransformersSampler(base.model).generate(prompts, 4, SamplingParams(**(vars(params) | {"seed": 4})))
    assert other != whole


def test_global_generators_are_left_alone(base):
    torch.manual_seed(1)
    numpy.random.seed(1)
    before, numpy_before = torch.random.get_rng_state(), numpy.random.get_state()[1].tolist()
    TransformersSampler(base.model).generate([[5, 6]], 3, SamplingParams(max_tokens=4))
    assert torch.equal(torch.random.get_rng_state(), before)
    assert numpy.random.get_state()[1].tolist() == numpy_before


def test_first_token_follows_the_models_distribution(base):
    prompt = make_prompts(1, shortest=10)[0]
    count = 4000
    params = SamplingParams(temperature=0.8, max_tokens=1, seed=11)
    drawn = TransformersSampler(base.model).generate([prompt], count, params)[0]
    wanted = (base.model(torch.tensor([prompt])).logits[0, -1].detach().double() / 0.8).softmax(-1).numpy()
    seen = numpy.bincount([c.token_ids[0] for c in drawn], minlength=512)
    common = wanted * count >= 5  # chi-square's rule of thumb; the rest is one class
    observed = [*seen[common], seen[~common].sum()]
    expected = numpy.array([*wanted[common], wanted[~common].sum()]) * count
    assert len(observed) > 20
    assert chisquare(observed, expected).pvalue > 1e-3


@pytest.mark.parametrize("top_p", [0.3, 0.7, 0.99])
def test_nucleus_by_a_plain_loop(top_p):
    logits = torch.randn(6, 300, generator=torch.Generator().manual_seed(0)) * 3
    logits[0] = 0.0  # flat: the nucleus is wider than the candidates looked at first
    for row in range(6):
        probabilities = logits[row].double().softmax(-1)
        order = probabilities.argsort(descending=True, stable=True).tolist()
        kept, mass = [], 0.0
        for token in order:
            if mass >= top_p:
                break
            kept.append(token)
            mass += float(probabilities[token])
        grid = (torch.arange(2000, dtype=torch.float64) + 0.5) / 2000
        ids, logprobs = draw(logits[row].expand(2000, -1), grid, 1.0, top_p)
        if row:  # among ties the order is free
            assert set(ids.tolist()) <= set(kept)
        frequency = torch.bincount(ids, minlength=300).double() / 2000
        if row:
            expected = torch.zeros(300, dtype=torch.float64)
            expected[kept] = probabilities[kept] / mass
            assert (frequency - expected).abs().max() <= 1 / 2000 + 1e-6
        else:
            assert int((frequency > 0).sum()) == pytest.approx(len(kept), abs=1)
        # the log-prob is that of the untruncated distribution
        torch.testing.assert_close(logprobs.double(), probabilities.log()[ids], rtol=0, atol=1e-5)


def test_streams_are_uniform_and_apart():
    first = uniforms(0, [1, 2], 0, 0, 10_000)
    assert chisquare(numpy.histogram(first, bins=50, range=(0, 1))[0]).pvalue > 1e-3
    for other in (
        uniforms(1, [1, 2], 0, 0, 5),
        uniforms(0, [1, 3], 0, 0, 5),
        uniforms(0, [1, 2], 1, 0, 5),
        uniforms(0, [1, 2], 0, 1, 5),
    ):
        assert not numpy.isin(other, first).any()
    assert (uniforms(0, [1, 2], 0, 0, 5) == first[:5]).all()


def test_policy_generates_merged_and_the_base_stays_pristine(base):
    policy = attach_lora(base, AdapterConfig(freeze_a=True), seed=0).train()
    fill_b(policy)
    trainable = {n for n, p in policy.named_parameters() if p.requires_grad}
    prompts = make_prompts(4)
    sampler = TransformersSampler(policy)
    found = sampler.generate(prompts, 1, SamplingParams(temperature=0, max_tokens=12))
    assert policy.training
    assert {n for n, p in policy.named_parameters() if p.requires_grad} == trainable
    policy.eval()
    changed = 0
    for prompt, (completion,) in zip(prompts, found, strict=True):
        assert completion.token_ids == greedy_reference(policy, prompt, 12, ())
        assert completion.logprobs == pytest.approx(scores(policy, prompt, completion.token_ids), abs=1e-4)
        with policy.disable_adapter():
            changed += completion.token_ids != greedy_reference(policy, prompt, 12, ())
    assert changed, "the adapter does nothing here, so the comparison shows nothing"
    detach(base, policy)


def test_weights_change_at_sync_and_only_then(base):
    policy = attach_lora(base, AdapterConfig(), seed=0)
    fill_b(policy, seed=1)
    sampler = TransformersSampler(policy)
    params = SamplingParams(temperature=0, max_tokens=10)
    before = sampler.generate([[5, 6, 7]], 1, params)
    first = sampler.sync(policy)
    assert (first.version, first.moved) == (1, 0.0)
    assert first.probe_gap < 1e-3
    fill_b(policy, seed=2)
    assert sampler.generate([[5, 6, 7]], 1, params) == before
    second = sampler.sync(policy)
    assert second.version == 2
    assert second.moved > 0.01
    assert second.probe_gap < 1e-3
    assert sampler.generate([[5, 6, 7]], 1, params) != before


def test_stale_weights_are_noticed(base, monkeypatch):
    policy = attach_lora(base, AdapterConfig(), seed=0)
    sampler = TransformersSampler(policy)
    sampler.sync(policy)
    fill_b(policy)
    stale = dict(sampler.weights)
    monkeypatch.setattr("research.sampling.transformers_sampler._snapshot", lambda policy: stale)
    with pytest.raises(StaleWeightsError, match="does not hold the trainer's weights"):
        sampler.sync(policy)


def test_impossible_requests_are_refused(base):
    sampler = TransformersSampler(base.model, context=32)
    with pytest.raises(ValueError, match="prompt 1 is empty"):
        sampler.generate([[5], []], 1, SamplingParams())
    with pytest.raises(ValueError, match="leaves no room"):
        sampler.generate([[5] * 32], 1, SamplingParams())
    (completion,) = sampler.generate([[5] * 30], 1, SamplingParams(max_tokens=10))[0]
    assert (len(completion.token_ids), completion.finish_reason) == (2, "length")


def test_factory_builds_what_the_configuration_names(base, tiny_model_dir):
    config = RunConfig(model=ModelConfig(path=str(tiny_model_dir), context=64))
    sampler = build_sampler(config, base.model, base.tokenizer)
    assert isinstance(sampler, TransformersSampler)
    assert (sampler.context, sampler.max_batch_tokens) == (64, config.sampler.max_batch_tokens)
    sampler.close()
    sampler.close()
