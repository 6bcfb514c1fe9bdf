"""Completions that share a prompt's computation score, and learn, as separate rows do."""

from __future__ import annotations

import pytest
import torch
from transformers import AutoConfig, AutoModelForCausalLM, Qwen2Config, Qwen2ForCausalLM, Qwen3Config, Qwen3ForCausalLM

from research.training import shared_prompts

# (prompt, completion): two groups, their rows mixed; a lone prompt of one token; a completion of one token.
ROWS = [
    ([5, 6, 7, 8], [9, 10, 11]), ([3, 4], [5]), ([5, 6, 7, 8], [12]), ([3, 4], [6, 7, 8, 9]), ([17], [1, 2]),
    ([5, 6, 7, 8], [9, 10, 11]),
]  # fmt: skip
WIDTH = 4


@pytest.fixture(params=["qwen2", "qwen3"])
def model(request):
    torch.manual_seed(0)
    sizes = {
        "vocab_size": 32, "hidden_size": 16, "num_hidden_layers": 2, "num_attention_heads": 4, "intermediate_size": 24,
        "num_key_value_heads": 2, "head_dim": 8, "initializer_range": 0.3,
    }  # fmt: skip
    kinds = {"qwen2": (Qwen2Config, Qwen2ForCausalLM), "qwen3": (Qwen3Config, Qwen3ForCausalLM)}
    config, kind = kinds[request.param]
    return kind(config(**sizes)).double()


def padded(rows):
    longest = max(len(prompt) for prompt, _ in rows)
    ids, seen = torch.zeros(len(rows), longest + WIDTH, dtype=torch.long), torch.zeros(len(rows), longest + WIDTH)
    for i, (prompt, completion) in enumerate(rows):
        ids[i, longest - len(prompt) : longest + len(completion)] = torch.tensor([*prompt, *completion])
        seen[i, longest - len(prompt) : longest + len(completion)] = 1
    return ids, seen.long()


def next_token_logps(logits, ids):
    return logits[:, :-1].log_softmax(-1).gather(2, ids[:, 1:, None])[..., 0]


def one_by_one(model, rows):
    scores = torch.zeros(len(rows), WIDTH, dtype=torch.float64)
    for i, (prompt, completion) in enumerate(rows):
        ids = torch.tensor([[*prompt, *completion]])
        scores[i, : len(completion)] = next_token_logps(model(input_ids=ids).logits, ids)[0, len(prompt) - 1 :]
    return scores


def together(model, rows):
    batch = shared_prompts.pack(*padded(rows), WIDTH)
    inputs = batch.model_inputs()
    labels = inputs.pop("labels")
    logits = model(**inputs, use_cache=False).logits
    wanted = labels[0] != -100
    assert int(wanted.sum()) == sum(len(completion) for _, completion in rows)
    assert torch.equal(labels[0][wanted], batch.input_ids[0][wanted])
    return batch, batch.unpacked(next_token_logps(logits, batch.input_ids))


IN_ORDER = [ROWS[0], ROWS[2], ROWS[1], ROWS[3]]  # groups of one size, one after the other


@pytest.mark.parametrize(
    "rows", [ROWS, ROWS[:1], ROWS[4:5], ROWS[::-1], IN_ORDER], ids=["mixed", "one", "one token", "reversed", "in order"]
)
@pytest.mark.parametrize("checkpointing", [False, True])
def test_scores_and_gradients_are_those_of_separate_rows(model, rows, checkpointing):
    weights = torch.arange(len(rows) * WIDTH, dtype=torch.float64).view(len(rows), WIDTH) - 5
    expected = one_by_one(model, rows)
    wanted = torch.autograd.grad((expected * weights).sum(), list(model.parameters()), allow_unused=True)
    model.set_attn_implementation(shared_prompts.NAME)
    if checkpointing:
        model.train()
        model.gradient_checkpointing_enable({"use_reentrant": False})
    _, found = together(model, rows)
    got = torch.autograd.grad((found * weights).sum(), list(model.parameters()), allow_unused=True)
    assert torch.allclose(found, expected, rtol=0, atol=1e-12)
    for mine, theirs in zip(got, wanted, strict=True):
        assert (mine - theirs).norm() <= 1e-6 * theirs.norm()  # norms compute in float32 inside the model


def test_a_prompt_is_computed_once(model):
    model.set_attn_implementation(shared_prompts.NAME)
    batch, _ = together(model, ROWS)
    prefixes = (4 - 1) + (2 - 1) + (1 - 1)
    assert batch.input_ids.shape == (1, prefixes + sum(1 + len(completion) for _, completion in ROWS))


def test_padded_batches_are_attended_to_as_before(model):
    """Between the steps the same model also reads plain, padded batches."""
    ids, seen = padded(ROWS)
    inputs = {"input_ids": ids, "attention_mask": seen, "position_ids": (seen.cumsum(1) - 1).clamp(min=0)}
    expected = model(**inputs).logits[seen.bool()]
    model.set_attn_implementation(shared_prompts.NAME)
    assert torch.equal(model(**inputs).logits[seen.bool()], expected)


def tiny(family, **changes):
    """A random model of a family that transformers knows."""
    sizes = {
        "vocab_size": 32, "hidden_size": 16, "num_hidden_layers": 2, "num_attention_heads": 4, "intermediate_size": 24,
        "num_key_value_heads": 2, "initializer_range": 0.3, "pad_token_id": 0, "bos_token_id": 1, "eos_token_id": 2,
    }  # fmt: skip
    torch.manual_seed(0)
    config = AutoConfig.for_model(family, **(sizes | changes))
    return AutoModelForCausalLM.from_config(config, attn_implementation="sdpa").eval()


@pytest.mark.parametrize("family", ["llama", "mistral", "gemma2", "phi3", "olmo2"])
def test_other_families_share_too(family):
    model = tiny(family)
    assert shared_prompts.obstacle(model, 20) is None
    expected = one_by_one(model, ROWS)
    model.set_attn_implementation(shared_prompts.NAME)
    assert torch.allclose(together(model, ROWS)[1].double(), expected.double(), rtol=0, atol=1e-5)


def test_a_model_that_drops_the_layout_is_found_out():
    assert "reached 0 of 2 layers" in shared_prompts.obstacle(tiny("stablelm"), 20)


def test_only_full_attention_is_shared(model):
    assert shared_prompts.obstacle(model, 100) is None and model.config._attn_implementation == "sdpa"
    model.set_attn_implementation("eager")
    assert "PyTorch's kernel" in shared_prompts.obstacle(model, 100)
    sliding = tiny("mistral", sliding_window=8)
    assert shared_prompts.obstacle(sliding, 8) is None and shared_prompts.obstacle(sliding, 9) is not None
