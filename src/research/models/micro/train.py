"""The embedded model's recipe: corpus, tokenizer, training, evaluation, model card.

    python -m research.models.micro.train OUT_DIR                   # made the shipped weights (one GPU, minutes)
    python -m research.models.micro.train OUT_DIR --preset smoke    # seconds on a CPU: it works, and learns little
    python -m research.models.micro.train OUT_DIR --measure prose   # measures again: all abilities, or those named

Needs torch, transformers, tokenizers, scikit-learn and PyYAML only. OUT_DIR receives a checkpoint that any loader of
Qwen2 models reads, `evaluation.json` (every ability, with N) and README.md (the model card, filled from that file).
"""

from __future__ import annotations

import argparse
import functools
import hashlib
import json
import math
import time
from collections.abc import Callable, Sequence
from dataclasses import asdict, dataclass, replace
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np

from research.models.micro import packing
from research.models.micro.corpus import Document, generate

if TYPE_CHECKING:
    import torch
    from transformers import PreTrainedTokenizerFast, Qwen2ForCausalLM

Progress = Callable[[str], None]


@dataclass(frozen=True)
class Recipe:
    """Everything that decides the weights.

    A step sees `rows` rows of `width` tokens packed with the documents that fit; as often as gives all documents the
    same number of visits, also `long_rows` rows of `context` tokens with the longer ones. size: of the corpus and of
    the evaluation, relative to the shipped model's.
    """

    hidden: int = 192
    layers: int = 5
    heads: int = 6
    kv_heads: int = 2
    mlp: int = 576
    vocabulary: int = 2048
    context: int = 1024
    size: float = 1.0
    steps: int = 12000
    lr: float = 3e-3
    weight_decay: float = 0.1
    warmup: int = 200
    width: int = 512
    rows: int = 96
    long_rows: int = 16
    compile: bool = True
    seed: int = 42
    data_seed: int = 42


SMOKE = Recipe(
    hidden=32, layers=2, heads=2, kv_heads=1, mlp=64, vocabulary=512, size=0.001, steps=4, warmup=2, rows=4, long_rows=1
)
PRESETS = {"full": Recipe(), "smoke": SMOKE}


def run(out: Path, recipe: Recipe, progress: Progress = print, command: str = "") -> dict:
    """Make the model under `out`; returns what `evaluation.json` holds."""
    from research.models.micro import card
    from research.models.micro.tokenizer import train_tokenizer

    seconds: dict[str, float] = {}
    with _timed(seconds, "corpus"):
        documents = list(generate(recipe.data_seed, recipe.size))
        digest = corpus_hash(documents)
        progress(f"corpus: {len(documents)} documents, hash {digest[:12]}")
    with _timed(seconds, "tokenizer"):
        tokenizer = train_tokenizer(documents, recipe.context, recipe.vocabulary)
        tokens = packing.tokenize(documents, tokenizer, recipe.context)
        progress(f"tokenizer: {len(tokenizer)} tokens; corpus: {len(tokens.ids)} tokens")
    with _timed(seconds, "training"):
        model, losses = fit(tokens, tokenizer, recipe, progress)
    save(model, tokenizer, out)
    origin = card.provenance(command, seconds, digest, len(documents), len(tokens.ids))
    training = {"recipe": asdict(recipe), "losses": losses, "provenance": origin}
    (out / "evaluation.json").unlink(missing_ok=True)
    (out / "training.json").write_text(json.dumps(training, indent=1) + "\n")
    return measure(out, progress)


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
    recipe = Recipe(**results["recipe"])
    model = load(out).to(torch.device("cuda" if torch.cuda.is_available() else "cpu"))  # type: ignore[arg-type]
    tokenizer: Any = AutoTokenizer.from_pretrained(out)
    new = evaluate.evaluate(model, tokenizer, recipe.data_seed, recipe.size, recipe.seed, progress, abilities)
    for part, values in new.items():
        results[part] |= values
    results["parameters"] = sum(p.numel() for p in model.parameters())
    results["provenance"].setdefault("measured", {}).update(dict.fromkeys(abilities, card.measured()))
    (out / "evaluation.json").write_text(json.dumps(results, indent=1) + "\n")
    calibration = out / "calibration.json"
    known = json.loads(calibration.read_text()) if calibration.exists() else None
    (out / "README.md").write_text(card.render(results, known))
    (out / "training.json").unlink(missing_ok=True)
    return results


def fit(
    tokens: packing.Tokens, tokenizer: PreTrainedTokenizerFast, recipe: Recipe, progress: Progress = print
) -> tuple[Qwen2ForCausalLM, list[tuple[int, float]]]:
    """From scratch: AdamW, warm-up, cosine to a twentieth; bf16 autocast on a GPU. Returns losses by step too."""
    import torch

    torch.manual_seed(recipe.seed)
    device = torch.device("cuda" if torch.cuda.is_available() else "cpu")
    if device.type == "cuda":
        torch.set_float32_matmul_precision("high")
    model = build(tokenizer, recipe).to(device)  # type: ignore[arg-type]
    rng = np.random.default_rng(recipe.seed)
    short = packing.epochs(tokens, recipe.width, recipe.rows, rng, 0, recipe.width)
    long = packing.epochs(tokens, recipe.context, recipe.long_rows, rng, recipe.width, recipe.context)
    every = packing.steps_between_long_batches(tokens, recipe.width, recipe.rows, recipe.context, recipe.long_rows)
    matrices = [p for name, p in model.named_parameters() if p.dim() == 2 and "embed" not in name]
    others = [p for name, p in model.named_parameters() if p.dim() != 2 or "embed" in name]
    groups = [{"params": matrices, "weight_decay": recipe.weight_decay}, {"params": others, "weight_decay": 0.0}]
    optimizer = torch.optim.AdamW(groups, lr=recipe.lr, betas=(0.9, 0.95), fused=device.type == "cuda")
    schedule = torch.optim.lr_scheduler.LambdaLR(optimizer, lambda step: _rate(step, recipe))
    compiled = torch.compile(_row_loss, dynamic=False) if recipe.compile and device.type == "cuda" else _row_loss
    losses: list[tuple[int, float]] = []
    start = time.perf_counter()
    for step in range(recipe.steps):
        parts = [packing.batch(tokens, next(short), recipe.width, tokenizer.pad_token_id)]
        rows = next(long, None) if step % every == 0 else None
        if rows is not None:
            parts.append(packing.batch(tokens, rows, recipe.context, tokenizer.pad_token_id))
        total = sum(float(part["weights_BT"].sum()) for part in parts)
        loss_sum = torch.zeros((), device=device)
        for part in parts:
            part = {k: v.to(device, non_blocking=True) for k, v in part.items()}
            with torch.autocast(device.type, torch.bfloat16, enabled=device.type == "cuda"):
                loss = compiled(model, part) / total
            loss.backward()
            loss_sum += loss.detach()
        torch.nn.utils.clip_grad_norm_(model.parameters(), 1.0)
        optimizer.step()
        schedule.step()
        optimizer.zero_grad(set_to_none=True)
        if step % max(1, recipe.steps // 50) == 0 or step == recipe.steps - 1:
            losses.append((step, round(float(loss_sum), 4)))
            progress(f"step {step} loss {losses[-1][1]:.3f} after {time.perf_counter() - start:.0f} s")
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
    tokenizer.save_pretrained(out)


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


def _rate(step: int, recipe: Recipe) -> float:
    if step < recipe.warmup:
        return (step + 1) / recipe.warmup
    done = (step - recipe.warmup) / max(1, recipe.steps - recipe.warmup)
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
    parser.add_argument("--steps", type=int)
    parser.add_argument("--measure", nargs="*", help="only evaluate what OUT_DIR holds: all abilities, or those named")
    parser.add_argument("--eager", action="store_true", help="do not compile")
    arguments = parser.parse_args()
    show = functools.partial(print, flush=True)
    if arguments.measure is not None:
        measure(arguments.out, show, arguments.measure)
        return
    recipe = replace(PRESETS[arguments.preset], compile=not arguments.eager)
    if arguments.steps:
        recipe = replace(recipe, steps=arguments.steps)
    command = f"python -m research.models.micro.train OUT --preset {arguments.preset} --steps {recipe.steps}"
    run(arguments.out, recipe, show, command)


if __name__ == "__main__":
    main()
