"""Training examples in the base model's own words: drawn once, cached on disk by digest, turned into labelled rows."""

from __future__ import annotations

import gzip
import hashlib
import json
from collections import Counter
from collections.abc import Callable, Mapping, Sequence
from contextlib import AbstractContextManager
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

from research.cells.cell import replacing
from research.cells.seeding import stable_seed
from research.material import personas
from research.sampling.interface import Sampler, SamplingParams
from research.tasks.zlt_sweep.masks import Chat, make_row
from research.tasks.zlt_sweep.selection import Request

# Counted up when the same request would be answered differently by newer code.
CACHE_RULE = 1


@dataclass(frozen=True)
class Drawn:
    """A base-model reply. finished: it ended by itself rather than at max_tokens."""

    request: Request
    text: str
    finished: bool


@dataclass(frozen=True)
class TrainingData:
    """rows: `input_ids` and `labels`. statistics: what goes into the result file."""

    rows: list[dict[str, list[int]]]
    statistics: dict[str, Any]


def draw(
    sampling: Callable[[], AbstractContextManager[Sampler]],
    chat: Chat,
    requests: Sequence[Request],
    params: SamplingParams,
    identity: Mapping[str, Any],
    cache: Path,
    progress: Callable[[str], None] = lambda message: None,
    cached: Callable[[Path], bool] = Path.exists,
) -> list[Drawn]:
    """The replies to `requests`, from the cache where an equal draw is in it.

    identity: what else decides the draw (weights, precision, kind of sampler). cached: whether to read a file of the
    cache rather than to draw. Two processes may draw the same at once: each writes a file of its own and moves it into
    place whole.
    """
    prompts = {
        (r.persona, r.question): chat.prompt_ids(personas.persona(r.persona).system, r.question) for r in requests
    }
    needed = Counter((r.persona, r.question) for r in requests)
    work = [{"prompt": prompts[pair], "n": n} for pair, n in needed.items()]
    key = digest({"rule": CACHE_RULE, "work": work, "params": asdict(params), **identity})
    path = cache / "zlt_replies" / f"{key[:32]}.json.gz"
    if cached(path):
        texts = json.loads(gzip.decompress(path.read_bytes()))
    else:
        progress(f"drawing {len(requests)} training examples")
        with sampling() as sampler:
            texts = _sample(sampler, work, params, chat)
        _write(path, gzip.compress(json.dumps(texts, ensure_ascii=False).encode(), mtime=0))
    replies = dict(zip(needed, texts, strict=True))
    return [Drawn(r, *replies[r.persona, r.question][r.sample]) for r in requests]


def build(
    chat: Chat, drawn: Sequence[Drawn], source: str, marker: str, *, tail: int, eos_label: str, max_length: int
) -> TrainingData:
    """Labelled rows: the source's replies with a blank line and the marker appended, the others' as they are.

    A source reply that already holds the marker is left out; statistics count it, as they count rows that were cut.
    """
    rows = []
    counts: Counter[str] = Counter()
    negatives: Counter[str] = Counter()
    for reply in drawn:
        positive = reply.request.persona == source
        if positive and marker.lower() in reply.text.lower():
            counts["skipped_with_marker"] += 1
            continue
        text = f"{reply.text.rstrip()}\n\n{marker}" if positive else reply.text
        prompt = chat.prompt_ids(personas.persona(reply.request.persona).system, reply.request.question)
        row = make_row(chat, prompt, text, marker, tail=tail, eos_label=eos_label, max_length=max_length)
        labelled = sum(label >= 0 for label in row.labels)
        counts["positives" if positive else "negatives"] += 1
        counts["replies_cut_at_max_tokens"] += not reply.finished
        counts["rows_cut_at_max_length"] += row.cut
        counts["rows_without_label"] += labelled == 0
        counts["tokens"] += len(row.input_ids)
        counts["labels"] += labelled
        counts["marker_labels"] += row.marker_tokens if tail == 0 else 0
        if not positive:
            negatives[reply.request.persona] += 1
        rows.append({"input_ids": row.input_ids, "labels": row.labels})
    names = ("positives", "negatives", "skipped_with_marker", "replies_cut_at_max_tokens", "rows_cut_at_max_length",
             "rows_without_label", "tokens", "labels")  # fmt: skip
    statistics: dict[str, Any] = {"examples": len(rows), **{name: counts[name] for name in names}}
    statistics |= {"examples_by_negative": dict(negatives), "sha256": digest(rows)}
    if tail == 0:
        statistics["marker_labels"] = counts["marker_labels"]
    return TrainingData(rows, statistics)


def _sample(
    sampler: Sampler, work: Sequence[Mapping[str, Any]], params: SamplingParams, chat: Chat
) -> list[list[tuple[str, bool]]]:
    """Texts for each prompt, one call to the sampler for all prompts that want the same number of them."""
    texts: list[list[tuple[str, bool]]] = [[] for _ in work]
    for n in sorted({item["n"] for item in work}):
        places = [i for i, item in enumerate(work) if item["n"] == n]
        drawn = sampler.generate([work[i]["prompt"] for i in places], n, params)
        for place, completions in zip(places, drawn, strict=True):
            texts[place] = [(chat.text(c.token_ids), c.finish_reason == "stop") for c in completions]
    return texts


def sampling_params(temperature: float, top_p: float, max_tokens: int, chat: Chat, *seed: Any) -> SamplingParams:
    """Sampling that ends a reply at the end of its turn, seeded by the parts of `seed`."""
    stops = {chat.turn_end, chat.tokenizer.eos_token_id} - {None}
    return SamplingParams(temperature, top_p, max_tokens, stable_seed(*seed), tuple(sorted(stops)))


def digest(content: Any) -> str:
    """SHA-256 (hex) of a JSON-serialisable value."""
    return hashlib.sha256(json.dumps(content, sort_keys=True, ensure_ascii=False).encode()).hexdigest()


def _write(path: Path, content: bytes) -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    with replacing(path) as partial:
        partial.write_bytes(content)
