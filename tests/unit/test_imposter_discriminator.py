"""The discriminator: its inputs, its training on pairs, and its exact state."""

import math

import pytest
import torch
from transformers import AutoTokenizer

from research.errors import ConfigurationError
from research.tasks.imposter import discriminator as discriminators
from research.tasks.imposter import judging
from research.tasks.imposter.corpus import Span
from research.tasks.imposter.judging import Cotraining, Pair
from research.tasks.imposter.settings import CotrainConfig, DiscriminatorConfig

SMALL = {"hidden": 32, "layers": 1, "max_length": 64, "lr": 3e-3, "batch_size": 8}
SPAN = Span("doc", "The tide rises twice a day.", "The moon pulls at the sea.", "Sailors know the tide well.")


@pytest.fixture(scope="module")
def tokenizer(tiny_model_dir):
    return AutoTokenizer.from_pretrained(tiny_model_dir)


def make(tokenizer, seed=0, **settings):
    return discriminators.build(DiscriminatorConfig(**{**SMALL, **settings}), tokenizer, [SPAN], seed, "cpu")


def pairs(n, start=0):
    """Human sentences, and generated ones that are noise."""
    human = [
        Span(f"d{i}", SPAN.before, f"The {i}th boat sails out to sea.", SPAN.after) for i in range(start, start + n)
    ]
    return [Pair(span, f"qz {7 * i} xxk qz vvw {i}") for i, span in enumerate(human, start)]


def test_a_row_is_the_span_between_its_contexts(tokenizer):
    row = make(tokenizer, max_length=256).encode(SPAN)
    sep = tokenizer.eos_token_id
    inner = "".join(tokenizer.decode([i]) if i != sep else "|" for i in row.ids[1:])
    assert inner == f"{SPAN.before}|{SPAN.text}|{SPAN.after}|"
    assert tokenizer.decode(row.ids[row.start : row.start + row.parts[0]]) == SPAN.text


def test_shared_words_have_their_own_token_types(tokenizer):
    row = make(tokenizer, max_length=256).encode(Span("d", "All boats sail.", "Those boats sink.", "Nobody swims."))
    by_type = {
        t: "".join(tokenizer.decode([i]) for i, u in zip(row.ids, row.types, strict=True) if u == t) for t in (2, 3)
    }
    assert {t: text.strip() for t, text in by_type.items()} == {2: "boats", 3: "boats"}


def test_the_small_one_can_start_from_the_generators_embeddings(tokenizer):
    """Tokens that lie alike for the generator lie alike for it: the same angles, at the encoder's own scale."""
    given_VH = torch.randn(len(tokenizer), 16, generator=torch.Generator().manual_seed(0))
    config = DiscriminatorConfig(**SMALL, embeddings="generator")
    encoder = discriminators.build(config, tokenizer, [SPAN], 0, "cpu", given_VH).encoder
    own_VH, centred_VH = encoder.get_input_embeddings().weight.detach()[:, :16], given_VH - given_VH.mean(0)
    ours, theirs = own_VH @ own_VH.T, centred_VH @ centred_VH.T
    assert torch.allclose(ours / ours.norm(), theirs / theirs.norm(), atol=1e-5)
    assert own_VH.std().item() == pytest.approx(encoder.config.initializer_range, rel=1e-3)
    drawn_VH = make(tokenizer).encoder.get_input_embeddings().weight.detach()[:, :16]
    assert not torch.allclose(drawn_VH, own_VH)


def test_a_long_context_is_cut_far_from_the_span(tokenizer):
    long = Span("d", "start " * 200 + "near", SPAN.text, "close " + "end " * 200)
    row = make(tokenizer).encode(long)
    text = tokenizer.decode(row.ids)
    assert len(row.ids) == 64 and "near" in text and "close" in text
    assert tokenizer.decode(row.ids[row.start : row.start + row.parts[0]]) == SPAN.text


def test_the_reader_scores_each_sentence(tokenizer):
    judge = make(tokenizer, reward_from="sentences", max_length=256)
    two = Span("d", "Before it.", "One sentence here. And another one.", "After it.")
    (one_scored,), (two_scored,) = judge.score([SPAN]), judge.score([two])
    assert len(one_scored.sentences) == 1 and len(two_scored.sentences) == 2
    assert not make(tokenizer).score([two])[0].sentences


def test_an_empty_span_is_refused(tokenizer):
    with pytest.raises(ValueError, match="span from doc is empty"):
        make(tokenizer).score([Span("doc", "Before.", "  ", "After.")])


def test_padding_does_not_change_a_score(tokenizer):
    judge = make(tokenizer)
    other = Span("d", "", "A much longer sentence than the other one, so that it must be padded.", "")
    together = [s.span for s in judge.score([SPAN, other])]
    assert together == pytest.approx([judge.score([s])[0].span for s in (SPAN, other)], abs=1e-5)


def test_unfit_tokenizers_are_refused(tokenizer, tiny_model_dir):
    with pytest.raises(ConfigurationError, match=r"tokenizer does not fit.*cls=None"):
        discriminators._special_ids(tokenizer, strict=True)
    judge = make(tokenizer)
    judge.encoder.resize_token_embeddings(100)
    with pytest.raises(ConfigurationError, match="it has 512 entries, the model 100"):
        discriminators._check_tokenizer(judge, [SPAN])
    with pytest.raises(ConfigurationError, match="could not be loaded as a sequence classifier"):
        make(tokenizer, path=str(tiny_model_dir / "nothing"))


def test_losses_by_hand(tokenizer):
    judge = make(tokenizer)
    human, generated = torch.tensor([2.0, -1.0]), torch.tensor([0.5, -3.0])
    expected = (
        math.log1p(math.exp(-2)) + math.log1p(math.exp(1)) + math.log1p(math.exp(0.5)) + math.log1p(math.exp(-3))
    ) / 4
    assert judging._loss(judge, human, generated).item() == pytest.approx(expected)
    assert judging._loss(judge, torch.zeros(3), torch.zeros(3)).item() == pytest.approx(math.log(2))
    margin = make(tokenizer, loss="margin", margin=2.0)
    assert judging._loss(margin, human, generated).item() == pytest.approx((0.5 + 0.0) / 2)  # differences 1.5 and 2


@pytest.mark.parametrize("loss", ["logistic", "margin"])
@pytest.mark.parametrize("reward_from", ["span", "sentences"])
def test_chance_is_the_loss_of_a_judge_that_cannot_tell(tokenizer, loss, reward_from):
    judge = make(tokenizer, loss=loss, margin=1.5, reward_from=reward_from)
    with torch.no_grad():
        for parameter in judge.head_parameters():
            parameter.zero_()
    assert judging.pair_loss(judge, pairs(4)).item() == pytest.approx(judging.chance_loss(judge.config))


@pytest.mark.parametrize("settings", [{}, {"loss": "margin"}, {"reward_from": "sentences"}])
def test_stage1_learns_what_is_easy(tokenizer, settings):
    judge = make(tokenizer, epochs=4, **settings)
    losses = judging.stage1(judge, pairs(64), seed=1)
    right, judged = judging.accuracy(judge, pairs(20, start=100))
    assert right >= 0.9 * judged and losses[-1] < losses[0]


def test_training_is_a_function_of_its_seed_and_leaves_the_global_generator_alone(tokenizer):
    ends = []
    for global_seed in (1, 2):
        judge = make(tokenizer, epochs=1)
        torch.manual_seed(global_seed)
        expected = torch.random.get_rng_state()
        judging.stage1(judge, pairs(16), seed=5)
        assert torch.equal(torch.random.get_rng_state(), expected)
        ends.append(judge.state_dict())
    assert all(torch.equal(ends[0][name], ends[1][name]) for name in ends[0])


def test_a_saved_discriminator_judges_as_before(tokenizer, tmp_path):
    from transformers import AutoModelForSequenceClassification

    for settings in ({}, {"reward_from": "sentences"}):
        judge = make(tokenizer, **settings)
        judge.save(tmp_path)
        assert discriminators.load(tmp_path, judge.config, "cpu").score([SPAN]) == judge.score([SPAN])
    assert AutoModelForSequenceClassification.from_pretrained(tmp_path).config.num_labels == 1


def test_head_only_cotraining_leaves_the_body_alone(tokenizer):
    for part, moved in (("head", False), ("whole", True)):
        judge = make(tokenizer)
        body = {n: p.clone() for n, p in judge.encoder.base_model.named_parameters()}
        head = [p.clone() for p in judge.head_parameters()]
        Cotraining(judge, CotrainConfig(part=part), 8, seed=0).round(pairs(8))
        changed = [not torch.equal(p, body[n]) for n, p in judge.encoder.base_model.named_parameters()]
        assert any(changed) == moved
        assert any(not torch.equal(p, q) for p, q in zip(judge.head_parameters(), head, strict=True))


def test_the_replay_buffer_keeps_the_newest(tokenizer):
    judge = Cotraining(make(tokenizer), CotrainConfig(buffer=10, replay=4, every=1), 8, seed=0)
    judge.remember(pairs(8))
    metrics = judge.round(pairs(6, start=50))
    assert metrics["cotrain/replayed"] == 4 and metrics["cotrain/fresh"] == 6
    assert [p.human.document for p in judge.buffer] == [f"d{i}" for i in (4, 5, 6, 7, 50, 51, 52, 53, 54, 55)]


def test_cotraining_makes_fresh_pairs_less_surprising(tokenizer):
    judge = Cotraining(make(tokenizer), CotrainConfig(lr=3e-3, epochs=4), 8, seed=0)
    first = judge.round(pairs(24))
    assert first["cotrain/loss_before"] == pytest.approx(math.log(2), abs=0.05)
    assert first["cotrain/loss_after"] < first["cotrain/loss_before"]


def test_a_resumed_cotraining_is_bit_identical(tokenizer):
    def fresh():
        return Cotraining(make(tokenizer), CotrainConfig(buffer=32, replay=8), 8, seed=3)

    whole = fresh()
    for i in range(3):
        whole.round(pairs(8, start=8 * i))
    first = fresh()
    first.round(pairs(8))
    first.round(pairs(8, start=8))
    resumed = fresh()
    resumed.load_state_dict(first.state_dict())
    resumed.round(pairs(8, start=16))
    states = [c.state_dict() for c in (whole, resumed)]
    assert states[0]["buffer"] == states[1]["buffer"] and states[0]["rounds"] == states[1]["rounds"] == 3
    assert all(torch.equal(states[0]["discriminator"][n], t) for n, t in states[1]["discriminator"].items())


def test_a_loss_that_is_not_finite_stops_the_run(tokenizer):
    judge = make(tokenizer)
    with torch.no_grad():
        judge.encoder.classifier.bias.fill_(math.nan)
    with pytest.raises(RuntimeError, match="the discriminator's loss is nan at step 1 of 1"):
        judging.train(judge, torch.optim.AdamW(judge.parameters()), pairs(8), epochs=1, batch_size=8, seed=0)
