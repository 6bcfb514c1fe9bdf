"""MAUVE of written spans: measured with the base model's features, whatever training has made of the adapter it carries."""

import gzip
import json

import pytest
import torch

from research.config import AdapterConfig, ModelConfig
from research.errors import ConfigurationError
from research.models.adapters import attach_lora
from research.models.base import load_base
from research.tasks.imposter.evaluate import mauve_of
from research.tasks.imposter.remeasure import main, remeasure

HUMAN = [
    f"The {noun} goes to the {place}." for noun in ("cat", "dog", "bird", "fox") for place in ("sea", "hill", "inn")
]
WRITTEN = [
    f"A {noun} of the {place} and of the {noun}" for noun in ("sun", "moon", "star") for place in ("sea", "hill", "inn")
]


@pytest.fixture
def base(tiny_model_dir):
    return load_base(ModelConfig(path=str(tiny_model_dir), dtype="float32"))


def test_a_trained_adapter_does_not_turn_what_is_measured_with(base):
    before = mauve_of(base, HUMAN, WRITTEN, 3)
    policy = attach_lora(base, AdapterConfig(r=4, scale=1.0), seed=0)
    with torch.no_grad():
        for name, parameter in policy.named_parameters():
            if "lora_B" in name:
                parameter.normal_()
    assert mauve_of(base, HUMAN, WRITTEN, 3) == before
    assert all(p.requires_grad == ("lora_" in name) for name, p in policy.named_parameters())


def finished(root, base, human=HUMAN, written=WRITTEN):
    """A cell as a run leaves it, of which nobody has measured MAUVE."""
    cell = root / "cell"
    cell.mkdir()
    with gzip.open(cell / "completions.jsonl.gz", "wt") as file:
        for phase, texts in (("before", human), ("after", written)):
            for i, text in enumerate(texts):
                row = {"phase": phase, "text": text, "human": human[i % len(human)], "document": i % len(human)}
                file.write(json.dumps(row) + "\n")
    result = {
        "task": "imposter", "metrics": {"gap": 1.5, "mauve": 0.0},
        "cell": {"config": {"task.eval.mauve_buckets": 3, "model.dtype": "float32"}},
        "provenance": {"inputs": {"weights": base.weights_hash}, "command": "python -m research"},
    }  # fmt: skip
    (cell / "run_result.json").write_text(json.dumps(result))
    return cell


def test_a_finished_cell_is_measured_again(base, tmp_path):
    cell = finished(tmp_path, base)
    old, found = remeasure(cell, base, "the command")
    result = json.loads((cell / "run_result.json").read_text())
    assert old == {"gap": 1.5, "mauve": 0.0} and result["metrics"] == {"gap": 1.5, **found}
    assert found["mauve_before"] == mauve_of(base, HUMAN, HUMAN, 3)["mauve"] > 0.99
    assert found["mauve"] == mauve_of(base, HUMAN[: len(WRITTEN)], WRITTEN, 3)["mauve"] < 0.99
    assert result["provenance"]["remeasured"]["command"] == "the command"
    assert result["provenance"]["command"] == "python -m research"


def test_what_it_refuses(base, tmp_path):
    cell = finished(tmp_path, base)
    base.weights_hash = "another"
    with pytest.raises(ConfigurationError, match="another model"):
        remeasure(cell, base, "")
    (cell / "completions.jsonl.gz").unlink()
    with pytest.raises(ConfigurationError, match="kept its spans"):
        remeasure(cell, base, "")
    with pytest.raises(ConfigurationError, match="no key buckets"):
        main(["buckets=3"])
    with pytest.raises(ConfigurationError, match="no cell"):
        main([f"results={tmp_path / 'nothing'}"])
