"""The imposter corpus: pools that never overlap, and documents that cannot be used."""

import gzip
import itertools
import json

import pytest
from transformers import AutoTokenizer

from research.errors import ConfigurationError
from research.models import micro
from research.sweep.grid import expand
from research.tasks.imposter import corpus
from research.tasks.imposter.corpus import CorpusConfig

NEED = {"stage1": 200, "train": 100, "cotrain": 50, "evaluation": 100}


def write_documents(path, count=200):
    texts = [
        f"Report {n} begins with a long enough sentence. The {n}th town lies by the river {n % 7}. "
        f"Nobody there has counted more than {n} boats. It ends with a remark on number {n}."
        for n in range(count)
    ]
    path.write_text("".join(json.dumps({"text": text}) + "\n" for text in texts))
    return path


def test_pools_of_the_embedded_prose_never_overlap():
    built = corpus.build(CorpusConfig(), NEED, data_seed=1)
    assert {pool: len(spans) for pool, spans in built.spans.items()} == NEED
    for one, other in itertools.combinations(built.spans.values(), 2):
        assert not corpus.documents_of(one) & corpus.documents_of(other)
        assert not {s.text for s in one} & {s.text for s in other}
    assert len(corpus.documents_of(built.spans["evaluation"])) == 100  # one sentence a document


@pytest.mark.parametrize("shipped", ["task=imposter_shared", "+experiment=imposter_ascent"])
def test_the_embedded_prose_has_the_windows_that_are_asked_for(shipped):
    config = expand([shipped], multirun="experiment" in shipped).cells[0].config
    tokenizer = AutoTokenizer.from_pretrained(micro.path())
    built = corpus.build(config.task.corpus, {"train": config.task.prompts}, config.data_seed, tokenizer)
    assert len(built.spans["train"]) == config.task.prompts


def test_the_embedded_model_read_none_of_it():
    from research.material import prose

    built = corpus.build(CorpusConfig(), NEED, data_seed=1)
    sources = {pool: {":".join(s.document.split(":")[:2]) for s in spans} for pool, spans in built.spans.items()}
    assert all(prose.split_of(source) != "train" for pool in sources.values() for source in pool)
    assert not sources["evaluation"] & (sources["stage1"] | sources["train"] | sources["cotrain"])


def test_a_span_is_the_removed_text_between_its_neighbours():
    for span in corpus.build(CorpusConfig(), NEED, data_seed=1).spans["train"]:
        assert span.text not in f"{span.before} {span.after}" and 8 <= len(span.text.split()) <= 40
        assert span.before or span.after


def test_the_draw_is_a_function_of_the_data_seed():
    one, again, other = (corpus.build(CorpusConfig(), NEED, data_seed=seed).spans for seed in (1, 1, 2))
    assert one == again and one["train"] != other["train"]
    smaller = corpus.build(CorpusConfig(), {"evaluation": 10}, data_seed=1).spans["evaluation"]
    assert smaller == one["evaluation"][:10]


@pytest.mark.parametrize("compressed", [False, True])
def test_jsonl(tmp_path, compressed):
    path = write_documents(tmp_path / "texts.jsonl")
    if compressed:
        target = tmp_path / "texts.jsonl.gz"
        target.write_bytes(gzip.compress(path.read_bytes()))
        path = target
    need = {"stage1": 20, "train": 20, "cotrain": 10, "evaluation": 10}
    built = corpus.build(CorpusConfig(source=str(path)), need, data_seed=0)
    for one, other in itertools.combinations(built.spans.values(), 2):
        assert not corpus.documents_of(one) & corpus.documents_of(other)
    assert not built.skipped


def test_a_document_stays_in_its_pool_when_others_are_added(tmp_path):
    few, many = write_documents(tmp_path / "few.jsonl", 100), write_documents(tmp_path / "many.jsonl", 200)
    for pool, spans in corpus.build(CorpusConfig(source=str(few)), {"train": 10, "stage1": 10}, 0).spans.items():
        pools = {t.name: t.pool for t in corpus._texts(CorpusConfig(source=str(many)), corpus.Counter())}
        assert {pools[s.document] for s in spans} == {pool}


def test_useless_documents_are_counted(tmp_path):
    path = write_documents(tmp_path / "texts.jsonl")
    with path.open("a") as file:
        for text in ("", "   ", *["One sentence without neighbours, and nothing else."] * 2, "Hm. No. So?"):
            file.write(json.dumps({"text": text}) + "\n")
    built = corpus.build(CorpusConfig(source=str(path)), dict.fromkeys(corpus.POOLS, 5), data_seed=0)
    assert built.skipped["empty document"] == 2 and built.skipped["repeated document"] == 1
    assert sum(n for reason, n in built.skipped.items() if "no removable sentence" in reason) == 2


def test_spans_that_cannot_be_asked_for_are_left_out_and_counted(tmp_path):
    config = CorpusConfig(source=str(write_documents(tmp_path / "texts.jsonl")), spans_per_document=2)
    every = corpus.build(config, {"train": 5}, data_seed=0, all_of=["train"])
    limit = sorted(len(span.before) for span in every.spans["train"])[len(every.spans["train"]) // 2]
    built = corpus.build(config, {"train": 5}, 0, all_of=["train"], fits=lambda span: len(span.before) <= limit)
    assert built.spans["train"] and all(len(span.before) <= limit for span in built.spans["train"])
    assert built.skipped["train: prompt longer than the context"] > 0


def test_too_small_a_corpus_says_which_pool_lacks_what(tmp_path):
    path = write_documents(tmp_path / "texts.jsonl", 5)
    with pytest.raises(ConfigurationError, match=r"pool 'train' needs 50 spans and has \d+, from \d+ documents"):
        corpus.build(CorpusConfig(source=str(path)), {"train": 50}, data_seed=0)


@pytest.mark.parametrize(
    ("line", "message"),
    [("{not json", "bad.jsonl:1 is not JSON"), ('{"body": "x"}', "no text in field 'text'; its fields are body"),
     ("3", "it is a int")],
)  # fmt: skip
def test_bad_lines_are_named(tmp_path, line, message):
    (tmp_path / "bad.jsonl").write_text(line + "\n")
    with pytest.raises(ConfigurationError, match=message):
        corpus.build(CorpusConfig(source=str(tmp_path / "bad.jsonl")), {"train": 1}, data_seed=0)
    with pytest.raises(ConfigurationError, match="does not exist"):
        corpus.build(CorpusConfig(source="nowhere.jsonl"), {"train": 1}, data_seed=0)


def test_a_local_datasets_name(tmp_path):
    import datasets

    write_documents(tmp_path / "texts.jsonl")
    rows = [json.loads(line)["text"] for line in (tmp_path / "texts.jsonl").read_text().splitlines()]
    (tmp_path / "set").mkdir()
    datasets.Dataset.from_dict({"body": rows}).to_parquet(tmp_path / "set/train.parquet")
    config = CorpusConfig(source=str(tmp_path / "set"), field="body")
    plain = CorpusConfig(source=str(tmp_path / "texts.jsonl"))
    need = {"train": 10, "evaluation": 10}
    assert corpus.build(config, need, 0).spans == corpus.build(plain, need, 0).spans


def test_windows_end_in_the_span(tiny_model_dir):
    from transformers import AutoTokenizer

    tokenizer = AutoTokenizer.from_pretrained(tiny_model_dir)
    config = CorpusConfig(form="window", span_tokens=24, prefix_tokens=24)
    built = corpus.build(config, {"train": 20, "evaluation": 20}, data_seed=0, tokenizer=tokenizer)
    texts = {t.name: " ".join(t.sentences) for t in corpus._texts(config, corpus.Counter())}
    for span in built.spans["train"] + built.spans["evaluation"]:
        assert span.before + span.text in texts[span.document] and not span.after
        assert len(tokenizer(span.text)["input_ids"]) == pytest.approx(24, abs=3)
    assert not corpus.documents_of(built.spans["train"]) & corpus.documents_of(built.spans["evaluation"])


def test_windows_need_texts_longer_than_twice_the_span(tmp_path, tiny_model_dir):
    from transformers import AutoTokenizer

    path = write_documents(tmp_path / "texts.jsonl", 20)
    config = CorpusConfig(source=str(path), form="window", span_tokens=4000, prefix_tokens=10)
    with pytest.raises(ConfigurationError, match="no removable window"):
        corpus.build(config, {"train": 1}, 0, AutoTokenizer.from_pretrained(tiny_model_dir))


def test_content_enters_the_identity(tmp_path):
    path = write_documents(tmp_path / "texts.jsonl")
    before = corpus.content_hashes(CorpusConfig(source=str(path)))
    write_documents(path, 201)
    assert corpus.content_hashes(CorpusConfig(source=str(path))) != before
    assert len(corpus.content_hashes(CorpusConfig())["corpus"]) == 64
