"""Content hashes of a base model, without loading it. Imports no torch."""

from __future__ import annotations

from pathlib import Path

from research.cells.identity import hash_files
from research.config import ModelConfig
from research.errors import ModelUnavailableError


def model_directory(model: ModelConfig) -> Path | None:
    """Where a local model lies; None for a hub name."""
    if model.path == "embedded":
        from research.models import micro

        return micro.path()
    path = Path(model.path).expanduser()
    if path.is_dir():
        return path
    if model.path.startswith((".", "/", "~")):
        raise ModelUnavailableError(f"model.path={model.path} is not a directory.")
    return None


def model_inputs(model: ModelConfig) -> dict[str, str]:
    """`{"weights": ..., "tokenizer": ...}`: SHA-256 over the files; the hub name where there are none here."""
    directory = model_directory(model)
    if directory is None:
        return {"weights": f"hub:{model.path}"}
    weights = [p for p in directory.iterdir() if p.suffix in (".safetensors", ".bin") or p.name == "config.json"]
    tokenizer = [
        p
        for p in directory.iterdir()
        if p.name.startswith(("tokenizer", "vocab", "merges", "chat_template", "special"))
    ]
    if not any(p.suffix in (".safetensors", ".bin") for p in weights):
        raise ModelUnavailableError(f"model.path={model.path}: no weights (*.safetensors) in {directory}.")
    return {"weights": hash_files(weights), "tokenizer": hash_files(tokenizer)}
