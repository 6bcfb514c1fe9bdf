"""How long the README's first line takes, and the same line again when nothing is left to do.

    python benchmarks/demo.py --out benchmarks/demo.json
    python benchmarks/demo.py --table benchmarks/demo.json

The line is the Makefile's; each time is that of a process of its own, imports included. Installing is not in it.
"""

from __future__ import annotations

import argparse
import json
import subprocess
import sys
import tempfile
import time
from pathlib import Path
from typing import Any

from common import origin

from research.reporting.tables import markdown

ROOT = Path(__file__).parents[1]
PHASES = ("data", "train", "evaluate", "capability")


def line() -> list[str]:
    """What `make demo` runs, without where its results go."""
    (found,) = (line for line in (ROOT / "Makefile").read_text().splitlines() if "-m research task=" in line)
    return found.partition(" results_root=")[0].split()[1:]


def table(result: dict[str, Any]) -> str:
    runs = [[name, f"{result[key]:.0f}"] for name, key in (("first time", "seconds"), ("again", "again_seconds"))]
    cells = [
        [
            f"cell {i}, lr {cell['lr']:g}, {cell['epochs']} epochs",
            *(f"{cell['seconds'][p]:.1f}" for p in (*PHASES, "total")),
        ]
        for i, cell in enumerate(result["cells"], 1)
    ]
    return markdown(["the line", "s"], runs) + "\n\n" + markdown(["s", *PHASES, "total"], cells)


def main() -> None:
    parser = argparse.ArgumentParser(description=(__doc__ or "").splitlines()[0])
    parser.add_argument("--out", type=Path, help="write the result as JSON")
    parser.add_argument("--table", type=Path, help="print this result's rows instead of measuring")
    options = parser.parse_args()
    if options.table:
        print(table(json.loads(options.table.read_text())))
        return
    seconds = []
    with tempfile.TemporaryDirectory() as folder:
        for _ in range(2):
            start = time.perf_counter()
            subprocess.run([sys.executable, *line(), f"results_root={folder}"], check=True, stdout=subprocess.DEVNULL)
            seconds.append(round(time.perf_counter() - start, 1))
        rows = [json.loads(path.read_text()) for path in sorted(Path(folder).rglob("run_result.json"))]
    cells = [
        {"lr": row["config"]["lr"], "epochs": row["config"]["epochs"], "seconds": row["wall_seconds"]} for row in rows
    ]
    result = {
        "line": line(), "seconds": seconds[0], "again_seconds": seconds[1], "cells": cells, "provenance": origin(),
    }  # fmt: skip
    print(table(result))
    if options.out:
        options.out.write_text(json.dumps(result, indent=1) + "\n")


if __name__ == "__main__":
    main()
