"""The embedded model's recipe: corpus, tokenizer, two phases of training, evaluation, model card.

    python -m research.models.micro.train OUT_DIR                        # both phases (one GPU, minutes)
    python -m research.models.micro.train OUT_DIR --anneal-from DIR      # the second phase only, on the first's checkpoint
    python -m research.models.micro.train OUT_DIR --preset smoke         # seconds on a CPU: it works, and learns little
    python -m research.models.micro.train OUT_DIR --measure prose        # measures again: all abilities, or those named

Needs torch, transformers, tokenizers, scikit-learn and PyYAML only. OUT_DIR receives a checkpoint that any loader of
Qwen2 models reads, `evaluation.json` (every ability, with N) and README.md (the model card, filled from that file).
The main phase teaches every ability, the annealing phase goes on from its checkpoint on another mixture; see `corpus`.
"""

from __future__ import annotations

import argparse
import functools
import hashlib
import json
import math
import shutil
import time
from collections.abc import Callable, Sequence
from dataclasses import asdict, dataclass, replace
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np

from research.models.micro import packing
from research.models.micro.corpus import MIXTURES, Document, generate

if TYPE_CHECKING:
    import torch
    from transformers import PreTrainedTokenizerFast, Qwen2ForCausalLM

Progress = Callable[[str], None]
TOKENIZER_FILES = ("tokenizer.json", "tokenizer_config.json", "chat_template.jinja")


@dataclass(frozen=True)
class Phase:
    """One pass of training: AdamW, linear warm-up, cosine to a twentieth of `lr`.

    mixture: what is read, by its name in `corpus.MIXTURES`. A step sees `rows` rows of `width` tokens packed with the
    documents that fit; as often as gives all documents the same number of visits, also `long_rows` rows of the whole
    context with the longer ones.
    """

    mixture: str
    steps: int
    lr: float
    warmup: int
    width: int
    rows: int
    long_rows: int


@dataclass(frozen=True)
class Recipe:
    """Everything that decides the weights. size: of corpus and evaluation, relative to the shipped model's."""

    hidden: int = 192
    layers: int = 5
    heads: int = 6
    kv_heads: int = 2
    mlp: int = 576
    vocabulary: int = 2048
    context: int = 1024
    size: float = 1.0
    weight_decay: float = 0.1
    compile: bool = True
    seed: int = 42
    data_seed: int = 42
    phases: tuple[Phase, ...] = (
        Phase("main", steps=12_000, lr=3e-3, warmup=200, width=512, rows=96, long_rows=16),
        Phase("anneal", steps=700, lr=8e-4, warmup=30, width=256, rows=32, long_rows=3),
    )


SMOKE = Recipe(
    hidden=32, layers=2, heads=2, kv_heads=1, mlp=64, vocabulary=512, size=0.001,
    phases=(
        Phase("main", steps=4, lr=3e-3, warmup=2, width=512, rows=4, long_rows=1),
        Phase("anneal", steps=2, lr=8e-4, warmup=1, width=256, rows=4, long_rows=1),
    ),
)  # fmt: skip
PRESETS = {"full": Recipe(), "smoke": SMOKE}


def run(out: Path, recipe: Recipe, progress: Progress = print, command: str = "", begun: Path | None = None) -> dict:
    """Make the model under `out`; returns what `evaluation.json` holds.

    begun: a directory that this recipe's first phase left; training goes on from there. Raises ValueError when it was
    left by another one.
    """
    made: list[dict[str, Any]] = []
    if begun is not None:
        made = _phases_of(begun, recipe)
    for number, phase in enumerate(recipe.phases):
        if number >= len(made):
            start = out if number and begun is None else begun
            made.append(_run_phase(out, recipe, number, start, progress) | {"command": command})
            (out / "evaluation.json").unlink(missing_ok=True)
            (out / "training.json").write_text(json.dumps({"recipe": asdict(recipe), "phases": made}, indent=1) + "\n")
        progress(f"phase {phase.mixture}: {made[number]['losses'][-1]}")
    return measure(out, progress)


def _run_phase(out: Path, recipe: Recipe, number: int, start: Path | None, progress: Progress) -> dict[str, Any]:
    """Train one phase from the checkpoint under `start`, or from nothing, and save it; what is worth recording."""
    from transformers import AutoTokenizer

    from research.cells.identity import hash_files
    from research.models.micro import card
    from research.models.micro.tokenizer import train_tokenizer

    phase, seconds = recipe.phases[number], dict[str, float]()
    with _timed(seconds, "corpus"):
        documents = list(generate(recipe.data_seed + number, recipe.size, MIXTURES[phase.mixture]))
        digest = corpus_hash(documents)
        progress(f"corpus {phase.mixture}: {len(documents)} documents, hash {digest[:12]}")
    with _timed(seconds, "tokenizer"):
        tokenizer: Any = (
            AutoTokenizer.from_pretrained(start)
            if start is not None
            else train_tokenizer(documents, recipe.context, recipe.vocabulary)
        )
        tokens = packing.tokenize(documents, tokenizer, recipe.context)
        progress(f"tokenizer: {len(tokenizer)} tokens; corpus: {len(tokens.ids)} tokens")
    origin = {"started_from": hash_files([start / "model.safetensors"]) if start is not None else None}
    model = load(start) if start is not None else None
    with _timed(seconds, "training"):
        model, losses = fit(tokens, tokenizer, recipe, number, model, progress)
    save(model, tokenizer, out)
    if start is None:
        tokenizer.save_pretrained(out)
    elif start != out:
        for name in TOKENIZER_FILES:  # as they are: another version of the library would write them otherwise
            shutil.copyfile(start / name, out / name)
    return {**origin, "losses": losses, **card.provenance(seconds, digest, len(documents), len(tokens.ids))}


def _phases_of(directory: Path, recipe: Recipe) -> list[dict[str, Any]]:
    """What is recorded of the first phase of a recipe whose checkpoint lies in a directory."""
    found = next(
        (directory / name for name in ("training.json", "evaluation.json") if (directory / name).exists()), None
    )
    if found is None:
        raise ValueError(
            f"{directory} holds neither training.json nor evaluation.json: no phase of the recipe ended there"
        )
    recorded = json.loads(found.read_text())
    wanted = json.loads(json.dumps(asdict(recipe)))
    ours, theirs = ({**r, "phases": r["phases"][:1]} for r in (wanted, recorded["recipe"]))
    if ours != theirs or len(recorded["phases"]) != 1:
        raise ValueError(
            f"{found} was left by {len(recorded['phases'])} phases of {theirs}, not by the first of {ours}"
        )
    return recorded["phases"]


def measure(out: Path, progress: Progress = print, abilities: Sequence[str] | None = None) -> dict:
    """Evaluate the checkpoint under `out` and write `evaluation.json` and the model card.

    abilities: measure only these again, and keep the others of an `evaluation.json` that is there.
    """
    import torch
    from transformers import AutoTokenizer

    from research.models.micro import card, evaluate

    abilities = tuple(abilities or evaluate.ABILITIES)
    found = out / ("evaluation.json" if (out / "evaluation.json").exists() else "training.json")
    results = {"metrics": {}, "counts": {}, "samples": {}, **json.loads(found.read_text())}
    recipe = results["recipe"]
    model = load(out).to(torch.device("cuda" if torch.cuda.is_available() else "cpu"))  # type: ignore[arg-type]
    tokenizer: Any = AutoTokenizer.from_pretrained(out)
    new = evaluate.evaluate(model, tokenizer, recipe["data_seed"], recipe["size"], recipe["seed"], progress, abilities)
    for part, values in new.items():
        results[part] |= values
    results["parameters"] = sum(p.numel() for p in model.parameters())
    results.setdefault("measured", {}).update(dict.fromkeys(abilities, card.measured()))
    (out / "evaluation.json").write_text(json.dumps(results, indent=1) + "\n")
    calibration = out / "calibration.json"
    known = json.loads(calibration.read_text()) if calibration.exists() else None
    (out / "README.md").write_text(card.render(results, known))
    (out / "training.json").unlink(missing_ok=True)
    return results


def fit(
    tokens: packing.Tokens,
    tokenizer: PreTrainedTokenizerFast,
    recipe: Recipe,
    number: int = 0,
    model: Qwen2ForCausalLM | None = None,
    progress: Progress = print,
) -> tuple[Qwen2ForCausalLM, list[tuple[int, float]]]:
    """Train phase `number` of a recipe, from scratch or on `model`; bf16 autocast where the hardware has it.

    Returns the model in evaluation mode, and (step, loss) pairs.
    """
    import torch

    phase = recipe.phases[number]
    torch.manual_seed(recipe.seed + number)
    device = torch.device("cuda" if torch.cuda.is_available() else "cpu")
    low = device.type == "cuda" or torch.ops.mkldnn._is_mkldnn_bf16_supported()
    if device.type == "cuda":
        torch.set_float32_matmul_precision("high")
    model = (build(tokenizer, recipe) if model is None else model).to(device).train()  # type: ignore[arg-type]
    rng = np.random.default_rng(recipe.seed + number)
    short = packing.epochs(tokens, phase.width, phase.rows, rng, 0, phase.width)
    long = packing.epochs(tokens, recipe.context, phase.long_rows, rng, phase.width, recipe.context)
    every = packing.steps_between_long_batches(tokens, phase.width, phase.rows, recipe.context, phase.long_rows)
    matrices = [p for name, p in model.named_parameters() if p.dim() == 2 and "embed" not in name]
    others = [p for name, p in model.named_parameters() if p.dim() != 2 or "embed" in name]
    groups = [{"params": matrices, "weight_decay": recipe.weight_decay}, {"params": others, "weight_decay": 0.0}]
    optimizer = torch.optim.AdamW(groups, lr=phase.lr, betas=(0.9, 0.95), fused=True)
    schedule = torch.optim.lr_scheduler.LambdaLR(optimizer, lambda step: _rate(step, phase))
    compiled = torch.compile(_row_loss, dynamic=False) if recipe.compile and device.type == "cuda" else _row_loss
    losses: list[tuple[int, float]] = []
    start = time.perf_counter()
    for step in range(phase.steps):
        parts = [packing.batch(tokens, next(short), phase.width, tokenizer.pad_token_id)]
        rows = next(long, None) if step % every == 0 else None
        if rows is not None:
            parts.append(packing.batch(tokens, rows, recipe.context, tokenizer.pad_token_id))
        total = sum(float(part["weights_BT"].sum()) for part in parts)
        loss_sum = torch.zeros((), device=device)
        for part in parts:
            part = {k: v.to(device, non_blocking=True) for k, v in part.items()}
            with torch.autocast(device.type, torch.bfloat16, enabled=low):
                loss = compiled(model, part) / total
            loss.backward()
            loss_sum += loss.detach()
        torch.nn.utils.clip_grad_norm_(model.parameters(), 1.0)
        optimizer.step()
        schedule.step()
        optimizer.zero_grad(set_to_none=True)
        if step % max(1, phase.steps // 50) == 0 or step == phase.steps - 1:
            losses.append((step, round(float(loss_sum), 4)))
            progress(f"{phase.mixture} step {step} loss {losses[-1][1]:.3f} after {time.perf_counter() - start:.0f} s")
    return model.eval(), losses


def build(tokenizer: PreTrainedTokenizerFast, recipe: Recipe) -> Qwen2ForCausalLM:
    """An untrained model; every linear layer and the tied embedding start from N(0, 0.02)."""
    from transformers import Qwen2Config, Qwen2ForCausalLM

    config = Qwen2Config(
        vocab_size=len(tokenizer),
        hidden_size=recipe.hidden,
        num_hidden_layers=recipe.layers,
        num_attention_heads=recipe.heads,
        num_key_value_heads=recipe.kv_heads,
        intermediate_size=recipe.mlp,
        max_position_embeddings=recipe.context,
        tie_word_embeddings=True,
        bos_token_id=None,
        eos_token_id=tokenizer.eos_token_id,
        pad_token_id=tokenizer.pad_token_id,
    )
    return Qwen2ForCausalLM(config)


def save(model: Qwen2ForCausalLM, tokenizer: PreTrainedTokenizerFast, out: Path) -> None:
    """Write the checkpoint in bf16; generation stops at the end of a turn or of a text."""
    import copy

    import torch
    from transformers import GenerationConfig

    out.mkdir(parents=True, exist_ok=True)
    model.generation_config = GenerationConfig(
        eos_token_id=[tokenizer.eos_token_id, tokenizer.pad_token_id], pad_token_id=tokenizer.pad_token_id
    )
    rounded = copy.deepcopy(model).to(torch.bfloat16)  # type: ignore[arg-type]
    rounded.config.dtype = torch.bfloat16
    rounded.save_pretrained(out)


def load(out: Path) -> Qwen2ForCausalLM:
    """The saved checkpoint in float32: what is evaluated is what was written, rounding included."""
    import torch
    from transformers import Qwen2ForCausalLM

    return Qwen2ForCausalLM.from_pretrained(out, dtype=torch.float32).eval()


def corpus_hash(documents: list[Document]) -> str:
    """sha256 over every document's text, in order."""
    digest = hashlib.sha256()
    for document in documents:
        digest.update(document.text.encode())
        digest.update(b"\0")
    return digest.hexdigest()


def _row_loss(model: Qwen2ForCausalLM, part: dict[str, torch.Tensor]) -> torch.Tensor:
    """Weighted sum of the next-token cross-entropy over packed rows."""
    import torch

    hidden_BTD = model.model(
        input_ids=part["input_ids_BT"],
        position_ids=part["position_ids_BT"],
        attention_mask=packing.attention_mask(part["document_BT"]),
        use_cache=False,
    ).last_hidden_state
    logits_BTV = model.lm_head(hidden_BTD)
    loss = torch.nn.functional.cross_entropy(
        logits_BTV.flatten(0, 1).float(), part["labels_BT"].flatten(), reduction="none"
    )
    return (loss * part["weights_BT"].flatten()).sum()


def _rate(step: int, phase: Phase) -> float:
    if step < phase.warmup:
        return (step + 1) / phase.warmup
    done = (step - phase.warmup) / max(1, phase.steps - phase.warmup)
    return 0.05 + 0.95 * 0.5 * (1 + math.cos(math.pi * done))


class _timed:
    """Add a block's seconds to a dictionary."""

    def __init__(self, seconds: dict[str, float], name: str) -> None:
        self.seconds, self.name = seconds, name

    def __enter__(self) -> None:
        self.start = time.perf_counter()

    def __exit__(self, *exc: object) -> None:
        self.seconds[self.name] = round(time.perf_counter() - self.start, 1)


def main() -> None:
    parser = argparse.ArgumentParser(description="Make the embedded model.")
    parser.add_argument("out", type=Path)
    parser.add_argument("--preset", choices=PRESETS, default="full")
    parser.add_argument("--anneal-from", type=Path, help="a directory that the preset's main phase left")
    parser.add_argument("--measure", nargs="*", help="only evaluate what OUT_DIR holds: all abilities, or those named")
    parser.add_argument("--eager", action="store_true", help="do not compile")
    arguments = parser.parse_args()
    show = functools.partial(print, flush=True)
    if arguments.measure is not None:
        measure(arguments.out, show, arguments.measure)
        return
    recipe = replace(PRESETS[arguments.preset], compile=not arguments.eager)
    later = " --anneal-from DIR" if arguments.anneal_from else ""
    command = f"python -m research.models.micro.train OUT --preset {arguments.preset}{later}"
    run(arguments.out, recipe, show, command, arguments.anneal_from)


if __name__ == "__main__":
    main()
