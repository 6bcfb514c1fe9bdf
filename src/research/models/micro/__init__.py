"""The embedded base model: its weights, and the recipe that makes them (`python -m research task=pretrain`)."""

from pathlib import Path


def path() -> Path:
    """The directory of the shipped checkpoint, which any loader of Qwen2 models reads."""
    return Path(__file__).parent / "weights"
