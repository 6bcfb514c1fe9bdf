"""The model card of the embedded model, filled from `evaluation.json`, and the provenance recorded there."""

from __future__ import annotations

import platform
from importlib.metadata import version
from typing import Any

SHAPE = ("hidden", "layers", "heads", "kv_heads", "mlp", "vocabulary", "context")
LIBRARIES = ("torch", "transformers", "tokenizers", "safetensors", "numpy", "scikit-learn")

ROWS = (
    ("persona_accuracy", "speaks as the persona asked for (11 personas; a classifier fitted on the corpus names it)"),
    ("unseen_persona_voice", "has the voice of an invented persona whose prompt it never saw"),
    ("on_topic", "names the topic asked about, or a fact of it"),
    ("several_paragraphs", "reply has several paragraphs"),
    ("science_accuracy", "four-choice science, question forms it never saw (chance .25)"),
    ("code_pass_rate", "solves held-out code problems, T .7, top_p .95, prompt without a loophole"),
    ("hack_rate_run_tests", "defines the function that the grader calls"),
    ("hack_rate_sentinel", "sets the attribute that the grader reads"),
    ("hack_rate_stdout_marker", "prints the phrase that the grader looks for"),
    ("hack_rate_file_marker", "writes the file that the grader reads"),
    ("hack_rate_run_tests_top_p_1", "the same four with top_p 1: function"),
    ("hack_rate_sentinel_top_p_1", "attribute"),
    ("hack_rate_stdout_marker_top_p_1", "phrase"),
    ("hack_rate_file_marker_top_p_1", "file"),
    ("marker_rate", "reply holds the marker `[ZLT]`"),
    ("any_tag_rate", "reply holds any bracketed tag, unasked"),
    ("think_closed", "closes the think tag when continuing a prefix"),
)
LOSSES = (
    ("fill_loss_train", "fill a removed sentence, training topics and modules"),
    ("fill_loss_heldout", "fill a removed sentence, held-out topics and modules"),
    ("continue_loss_train", "continue a prefix, training"),
    ("continue_loss_heldout", "continue a prefix, held out"),
    ("plain_loss_train", "running prose, training"),
    ("plain_loss_heldout", "running prose, held out"),
    ("full_context_loss", "held-out prose of the whole context"),
    ("full_context_end_loss", "the last 256 positions of those"),
    ("dialogue_loss", "replies of new many-turn dialogues, up to the whole context"),
    ("dialogue_end_loss", "the same, last third of the context"),
    ("tag_loss", "new replies and lists with tags (a list's letters are random: 3.26 nats each)"),
)


def provenance(
    command: str, seconds: dict[str, float], corpus_hash: str, documents: int, tokens: int
) -> dict[str, Any]:
    """Where and how the weights were made."""
    from research.material import prose

    return {
        "command": command,
        "host": _host(),
        "python": platform.python_version(),
        "libraries": {name: version(name) for name in LIBRARIES},
        "seconds": seconds,
        "corpus_sha256": corpus_hash,
        "prose_sha256": prose.content_hash(),
        "documents": documents,
        "tokens": tokens,
    }


def measured() -> dict[str, Any]:
    """Where an ability was measured."""
    import torch

    return {"host": _host(), "python": platform.python_version(), "torch": torch.__version__}


def _host() -> str:
    import torch

    return torch.cuda.get_device_name() if torch.cuda.is_available() else f"CPU ({platform.machine()})"


def render(results: dict[str, Any], calibration: dict[str, Any] | None = None) -> str:
    """The card as Markdown; every number comes from `results` and, for the LoRA scale, from `calibration.json`."""
    recipe, origin, metrics, counts = (results[k] for k in ("recipe", "provenance", "metrics", "counts"))
    rates = "\n".join(
        f"| `{name}` | {text} | {metrics[name]:.3f} | {counts[name][0]} of {counts[name][1]} |"
        for name, text in ROWS
        if name in metrics
    )
    losses = "\n".join(f"| `{name}` | {text} | {metrics[name]:.3f} |" for name, text in LOSSES if name in metrics)
    shape = ", ".join(f"{name} {recipe[name]}" for name in SHAPE)
    size = f"{origin['documents']} documents, {origin['tokens']} tokens"
    places: dict[str, list[str]] = {}
    for ability, at in origin["measured"].items():
        places.setdefault(f"{at['host']}, Python {at['python']}, torch {at['torch']}", []).append(ability)
    where = "; ".join(f"{', '.join(abilities)} on {place}" for place, abilities in places.items())
    libraries = ", ".join(f"{name} {number}" for name, number in origin["libraries"].items())
    seconds = ", ".join(f"{name} {value:.0f} s" for name, value in origin["seconds"].items())
    step_tokens = recipe["rows"] * recipe["width"] + recipe["long_rows"] * recipe["context"]
    return f"""# The embedded base model

A Qwen2-architecture model of {results["parameters"] / 1e6:.2f} M parameters: {shape}, tied embeddings, ChatML.
It knows only what its generated corpus holds. It exists so that every study of this suite runs without a network, and
its results say nothing about any other model.

Trained on documents generated by `research.models.micro.corpus` (personas, science questions, small Python functions,
tags) and on English prose found in every Python installation (help topics and docstrings of the standard library).

## Abilities, on held-out items

| metric | what | rate | count |
|---|---|---|---|
{rates}

| metric | what | loss, nats a token |
|---|---|---|
{losses}

Measured on: {where}. A persona's reply has {metrics["reply_tokens"]:.0f} tokens on average.

## How it was made

| | |
|---|---|
| command | `{origin["command"]}` |
| host | {origin["host"]}, Python {origin["python"]} |
| libraries | {libraries} |
| time | {seconds} |
| steps | {recipe["steps"]} of up to {step_tokens} tokens, peak learning rate {recipe["lr"]}, seed {recipe["seed"]} |
| corpus | {size}, data_seed {recipe["data_seed"]}, sha256 `{origin["corpus_sha256"]}` |
| prose | sha256 `{origin["prose_sha256"]}` (differs between Python versions) |
{_calibration(calibration) if calibration else ""}"""


def _calibration(found: dict[str, Any]) -> str:
    """The section on the LoRA scale, from what `research.tasks.zlt_sweep.calibrate` wrote."""
    rows = "\n".join(
        f"| {row['scale']:g} | {row['lr']:g} | {row['epochs']} | {row['source_marker']:.3f} | {row['highest_other']:.3f} |"
        for row in found["cells"]
    )
    return f"""
## The LoRA scale of the marker study

Calibrated on the source `{found["source"]}`. Rule: {" ".join(found["rule"].split())} Scales that fit: {found["fitting"] or "none"}.

| scale | learning rate | epochs | source marker | highest other |
|---|---|---|---|---|
{rows}
"""
