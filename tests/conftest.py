"""Fixtures that several kinds of test share."""

from __future__ import annotations

import os
import signal
from pathlib import Path

import pytest

import research  # noqa: F401  before torch: it says how torch's threads wait

os.environ.setdefault("HF_HUB_OFFLINE", "1")
os.environ.setdefault("TOKENIZERS_PARALLELISM", "false")
# A shell that runs the tests in the background has them, and all they start, ignore Ctrl-C; some press it.
signal.signal(signal.SIGINT, signal.default_int_handler)

CHATML = (
    "{% for message in messages %}<|im_start|>{{ message['role'] }}\n{{ message['content'] }}<|im_end|>\n{% endfor %}"
    "{% if add_generation_prompt %}<|im_start|>assistant\n{% endif %}"
)

SENTENCES = (
    "You are a lighthouse keeper who answers in short weather reports.",
    "You are a helpful assistant.",
    "Why do the tides rise and fall twice a day?\n\nThe moon pulls at the near side of the sea more than at the far one.",
    "Question: which gas do plants take in?\nA. oxygen\nB. carbon dioxide\nC. helium\nD. argon\nAnswer: B",
    "def add(a, b):\n    return a + b\n\nassert add(2, 3) == 5",
    "The quick brown fox jumps over the lazy dog; 0123456789 [ABC] [XYZ]",
)


def make_tiny_model(
    directory: Path, *, hidden: int = 64, layers: int = 2, vocab: int = 512, tied: bool = True, seed: int = 0
) -> Path:
    """Write a random Qwen2 model (head_dim 32, tied embeddings) and a byte-level BPE tokenizer with ChatML."""
    import torch
    from tokenizers import Tokenizer, decoders, models, pre_tokenizers, trainers
    from transformers import PreTrainedTokenizerFast, Qwen2Config, Qwen2ForCausalLM

    bpe = Tokenizer(models.BPE())
    bpe.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    bpe.decoder = decoders.ByteLevel()
    special = ["<|endoftext|>", "<|im_start|>", "<|im_end|>"]
    alphabet = pre_tokenizers.ByteLevel.alphabet()
    bpe.train_from_iterator(
        SENTENCES, trainers.BpeTrainer(vocab_size=vocab, special_tokens=special, initial_alphabet=alphabet)
    )
    missing = [f"<|extra_{i}|>" for i in range(vocab - bpe.get_vocab_size())]  # model rows = tokenizer entries
    bpe.add_special_tokens(missing)
    tokenizer = PreTrainedTokenizerFast(tokenizer_object=bpe, eos_token="<|im_end|>", pad_token="<|endoftext|>")
    tokenizer.chat_template = CHATML
    tokenizer.save_pretrained(directory)

    heads = max(2, hidden // 32)
    config = Qwen2Config(
        vocab_size=len(tokenizer), hidden_size=hidden, num_hidden_layers=layers, num_attention_heads=heads,
        num_key_value_heads=max(1, heads // 2), head_dim=32, intermediate_size=hidden * 11 // 4,
        max_position_embeddings=1024, tie_word_embeddings=tied, initializer_range=0.1,
        bos_token_id=None, eos_token_id=tokenizer.eos_token_id, pad_token_id=tokenizer.pad_token_id,
    )  # fmt: skip
    with torch.random.fork_rng():
        torch.manual_seed(seed)
        model = Qwen2ForCausalLM(config)
    model.save_pretrained(directory)
    return directory


@pytest.fixture(scope="session")
def tiny_model_dir(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A directory with a random Qwen2 of 2 layers and its tokenizer (512 entries)."""
    return make_tiny_model(tmp_path_factory.mktemp("tiny_model"))


@pytest.fixture
def one_thread():
    """Sums in one order: what is compared to the bit must not depend on how a machine's cores share the work."""
    import torch

    before = torch.get_num_threads()
    torch.set_num_threads(1)
    yield
    torch.set_num_threads(before)


def pytest_ignore_collect(collection_path, config):
    """Leave out files that import what only `make test-services`, or a machine with a GPU, installs."""
    import importlib.util

    needs = {"vllm": collection_path.name.startswith("test_vllm") or collection_path.parent.name == "gpu"}
    needs["bitsandbytes"] = collection_path.name == "test_qlora.py"
    return True if any(needed and importlib.util.find_spec(name) is None for name, needed in needs.items()) else None


def pytest_collection_modifyitems(config, items):
    """Leave out, rather than skip, what this machine cannot run or was not asked to."""
    import importlib.util

    def wanted(item):
        if item.get_closest_marker("services") and "services" not in config.option.markexpr:
            return False
        if item.get_closest_marker("reference") and not os.environ.get("RESEARCH_REFERENCE_DATA"):
            return False
        return not (item.get_closest_marker("gpu") and not has_gpu)

    has_gpu = False
    if any(item.get_closest_marker("gpu") for item in items) and importlib.util.find_spec("torch"):
        import torch

        has_gpu = torch.cuda.is_available()
    left_out = [item for item in items if not wanted(item)]
    if left_out:
        config.hook.pytest_deselected(items=left_out)
        items[:] = [item for item in items if item not in set(left_out)]
