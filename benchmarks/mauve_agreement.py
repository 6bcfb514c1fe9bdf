"""Our MAUVE beside the reference implementation, on supplied features: values over seeds, and seconds.

    python benchmarks/mauve_agreement.py [--samples 2000] [--seeds 10] [--out benchmarks/mauve_agreement.json]
    python benchmarks/mauve_agreement.py --table benchmarks/mauve_agreement.json

The reference (`pip install mauve-text faiss-cpu`, GPL, not one of our dependencies) is measured where it is installed.
Of each case: mean and standard deviation over seeds of both, and the difference in units of the reference's own
seed-to-seed standard deviation.
"""

from __future__ import annotations

import argparse
import importlib.util
import json
import time
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any

import numpy as np

from research.reporting.tables import markdown
from research.scoring.mauve import mauve

CASES = {"equal": (0.0, 1.0), "near": (0.25, 1.0), "wider": (0.0, 1.5), "far": (1.0, 1.0), "collapsed": (0.3, 0.25)}


def features(case: str, samples: int, dimensions: int) -> tuple[np.ndarray, np.ndarray]:
    """Two samples of a mixture of 20 Gaussians in embedding space, the second shifted and rescaled; seeded."""
    shift, scale = CASES[case]
    rng = np.random.default_rng(7)
    centres = rng.normal(size=(20, dimensions)) * 2
    p = centres[rng.integers(20, size=samples)] + rng.normal(size=(samples, dimensions))
    q = centres[rng.integers(20, size=samples)] + shift + scale * rng.normal(size=(samples, dimensions))
    return p.astype(np.float32), q.astype(np.float32)


def ours(p: np.ndarray, q: np.ndarray, buckets: int, seed: int) -> tuple[float, float]:
    result = mauve(p, q, buckets=buckets, seed=seed)
    return result.mauve, result.frontier_integral


def reference(p: np.ndarray, q: np.ndarray, buckets: int, seed: int) -> tuple[float, float]:
    from mauve import compute_mauve

    result = compute_mauve(
        p_features=p, q_features=q, num_buckets=buckets, seed=seed, mauve_scaling_factor=5, verbose=False
    )
    return float(result.mauve), float(result.frontier_integral)


def measure(samples: int, dimensions: int, seeds: int) -> Iterator[dict[str, Any]]:
    methods = {"ours": ours}
    if importlib.util.find_spec("mauve"):
        methods["reference"] = reference
    for case in CASES:
        p, q = features(case, samples, dimensions)
        row: dict[str, Any] = {"case": case, "samples": samples, "dimensions": dimensions, "buckets": samples // 10}
        row["seeds"] = seeds
        means, spreads = {}, {}
        for name, method in methods.items():
            start = time.perf_counter()
            values = np.array([method(p, q, samples // 10, seed) for seed in range(25, 25 + seeds)])
            means[name], spreads[name] = values.mean(0), values.std(0, ddof=1)
            row[name] = {
                "mauve": [round(float(means[name][0]), 5), round(float(spreads[name][0]), 5)],
                "frontier_integral": [round(float(means[name][1]), 5), round(float(spreads[name][1]), 5)],
                "seconds": round((time.perf_counter() - start) / seeds, 2),
            }
        if "reference" in methods:
            row["difference_in_sd"] = np.round((means["ours"] - means["reference"]) / spreads["reference"], 2).tolist()
        yield row


def table(rows: Sequence[dict[str, Any]]) -> str:
    """The measurements as the table of benchmarks/README.md."""
    lines = []
    for row in rows:
        both = [row["ours"], row.get("reference")]
        values = ["{:.5f} ± {:.5f}".format(*found["mauve"]) if found else "" for found in both]
        difference = row.get("difference_in_sd", [""])[0]
        lines.append((row["case"], *values, difference, *(found["seconds"] if found else "" for found in both)))
    columns = ["case", "ours", "reference", "difference, its s.d.", "seconds, ours", "reference"]
    return markdown(columns, lines)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--samples", type=int, default=2000)
    parser.add_argument("--dimensions", type=int, default=64)
    parser.add_argument("--seeds", type=int, default=10)
    parser.add_argument("--out", type=Path)
    parser.add_argument("--table", type=Path, help="print the table of a finished run and do nothing else")
    options = parser.parse_args()
    if options.table:
        print(table(json.loads(options.table.read_text())["cases"]))
        return
    rows = []
    for row in measure(options.samples, options.dimensions, options.seeds):
        rows.append(row)
        print(json.dumps(row), flush=True)
    if options.out:
        from common import origin  # here: tests load this file's functions from elsewhere

        options.out.write_text(json.dumps({"cases": rows, "provenance": origin()}, indent=1) + "\n")


if __name__ == "__main__":
    main()
