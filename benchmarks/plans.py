"""What PyTorch's choice of attention costs a sampler: `python benchmarks/plans.py --shape qwen2.5-3b [--out FILE]`;
`--table FILE` prints the table of benchmarks/README.md.

On newer GPUs PyTorch hands attention to cuDNN first, which plans every shape of a batch when it first meets it; the
keys of a completion are one more with each token. The transformers sampler draws completions for prompts of random
lengths, once without cuDNN (as `load_base` leaves PyTorch) and once with it, then both again: by then every plan is
made. Both are loaded before by a short draw. Random weights of a shape; completions all have the full length.
"""

from __future__ import annotations

import argparse
import json
from typing import Any

import research  # noqa: F401  before torch: how its threads wait

# isort: split
import torch
from common import SHAPES, clock, make_base, origin, parsed

from research.reporting.tables import markdown
from research.sampling.interface import SamplingParams
from research.sampling.transformers_sampler import TransformersSampler

NAMES = {"without": "ours: without cuDNN", "cudnn": "PyTorch's own choice"}


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--shape", choices=SHAPES, default="qwen2.5-3b")
    parser.add_argument("--prompts", type=int, default=32)
    parser.add_argument("--lengths", type=int, nargs=2, default=(80, 640), metavar=("MIN", "MAX"))
    parser.add_argument("--max-tokens", type=int, default=64)
    options = parsed(parser, table)
    report = {
        "settings": {k: v for k, v in vars(options).items() if k not in ("out", "table")},
        "provenance": origin(),
        "rows": measure(options),
    }
    if options.out:
        options.out.write_text(json.dumps(report, indent=1) + "\n")
    print(table(report))


def measure(options: argparse.Namespace) -> dict[str, dict[str, float]]:
    """Seconds of the same draw by each way, the first time and again."""
    base = make_base(options)
    sampler = TransformersSampler(base.model)
    generator = torch.Generator().manual_seed(0)
    low, high = options.lengths
    lengths = torch.randint(low, high + 1, (options.prompts,), generator=generator).tolist()
    prompts = [torch.randint(5, 2000, (length,), generator=generator).tolist() for length in lengths]
    rows: dict[str, dict[str, float]] = {name: {} for name in NAMES}
    for name in NAMES:
        torch.backends.cuda.enable_cudnn_sdp(name == "cudnn")
        sampler.generate(prompts[:2], 1, SamplingParams(max_tokens=2, seed=0))
    for when in ("first", "again"):
        for name in NAMES:
            torch.backends.cuda.enable_cudnn_sdp(name == "cudnn")
            start = clock()
            drawn = sampler.generate(prompts, 1, SamplingParams(max_tokens=options.max_tokens, seed=0))
            rows[name][when] = clock() - start
            assert {len(c.token_ids) for group in drawn for c in group} == {options.max_tokens}
    return rows


def table(report: dict[str, Any]) -> str:
    """The measurements as the table of benchmarks/README.md."""
    rows = [[NAMES[name], f"{row['first']:.2f}", f"{row['again']:.2f}"] for name, row in report["rows"].items()]
    return markdown(["attention", "s, first time", "s, again"], rows)


if __name__ == "__main__":
    main()
