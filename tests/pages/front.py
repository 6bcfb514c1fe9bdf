"""README.md."""

from __future__ import annotations

import math
import tomllib

import yaml

from pages.claim import Claim, cells, same, word
from pages.reading import ROOT

PAGE = "README.md"


def pythons() -> tuple[str, str]:
    project = tomllib.loads((ROOT / "pyproject.toml").read_text())["project"]
    low, below = (bound.strip("<>=") for bound in project["requires-python"].split(","))
    return low, f"3.{int(below.split('.')[1]) - 1}"


def demo_cells() -> int:
    line = next(line for line in (ROOT / "Makefile").read_text().splitlines() if "task=zlt_sweep -m" in line)
    axes = [word.split("=")[1].split(",") for word in line.split() if word.startswith(("lr=", "epochs="))]
    return math.prod(map(len, axes))


def shipped_cells(experiment: str) -> int:
    """The size of a shipped grid."""
    params = yaml.safe_load((ROOT / f"conf/experiment/{experiment}.yaml").read_text())["hydra"]["sweeper"]["params"]
    return math.prod(len(str(values).split(",")) for values in params.values())


def hack_minutes() -> tuple[str, ...]:
    rows = cells("reward_hack/micro")
    minutes = [row["wall_seconds"]["total"] / 60 for row in rows]
    threads = same(row["provenance"]["cpu_threads"] for row in rows)
    return tuple(map(word, (len(rows), math.floor(min(minutes)), math.ceil(max(minutes)), threads)))


CLAIMS = [
    Claim(PAGE, "Python {} or {}, nothing else", pythons),
    Claim(PAGE, "{} cells, a few minutes", lambda: (word(demo_cells()).capitalize(),)),
    Claim(PAGE, "{} `run_result.json`", lambda: (word(demo_cells()),)),
    Claim(PAGE, "the published protocol, {} cells", lambda: (shipped_cells("zlt_paper"),)),
    Claim(
        PAGE,
        "{} clean cells (framed)",
        lambda: (word(sum(row["success"] for row in cells("zlt_sweep/micro_grid"))),),
    ),
    Claim(PAGE, "{} cells of {} to {} minutes on {} core)", hack_minutes),
]
