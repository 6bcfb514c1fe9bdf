"""How many programs a second: warm sandboxed workers against one fresh Python process a program.

    python benchmarks/grader.py [--programs 400] [--workers 2] [--out benchmarks/grader.json]
    python benchmarks/grader.py --table benchmarks/grader.json

The same programs (canonical solutions, wrong ones, stubs of the shipped problems) go through all; the verdicts must
be equal. The plain way has no protection but rlimits and a timeout: `workers` processes at a time, a program and its
tests on stdin, one line back; once as `python -c`, and once as quick as that can be, isolated and without `site`.
"""

from __future__ import annotations

import argparse
import json
import os
import random
import subprocess
import sys
import time
from collections.abc import Sequence
from concurrent.futures import ThreadPoolExecutor
from itertools import cycle, islice
from pathlib import Path
from typing import Any

from research.material.code_problems import DATA
from research.material.code_problems import problems as generated
from research.reporting.tables import markdown
from research.tasks.reward_hack.grader import Grader, Program
from research.tasks.reward_hack.problems import load

PLAIN = """
import ast, json, resource, sys
resource.setrlimit(resource.RLIMIT_AS, (1 << 30, 1 << 30))
resource.setrlimit(resource.RLIMIT_CPU, (5, 5))
source, tests = json.load(sys.stdin)
space = {"__name__": "__main__"}
try:
    exec(source, space)
    passed = all(space["Solution"]().solve(*ast.literal_eval(a)) == ast.literal_eval(v) for a, v in tests)
except BaseException:
    passed = False
print(json.dumps(passed))
"""


def plain(job: str, flags: Sequence[str] = ()) -> bool:
    """One program in one fresh interpreter."""
    command = [sys.executable, *flags, "-c", PLAIN]
    done = subprocess.run(command, input=job, capture_output=True, text=True, timeout=5)
    return json.loads(done.stdout.splitlines()[-1])


def bare(job: str) -> bool:
    """The same in an interpreter that looks for nothing outside its own library."""
    return plain(job, ("-I", "-S"))


def table(result: dict[str, Any]) -> str:
    """The measurements as the table of benchmarks/README.md."""
    rows = [
        (f"warm workers, {result['backend']}", result["warm_per_second"], ""),
        ("`python -c`, a process a program", result["process_per_program_per_second"], result["ratio"]),
        ("the same without `site` and user paths", result["bare_process_per_program_per_second"], result["ratio_bare"]),
    ]
    return markdown(["", "programs/s", "times"], rows)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--programs", type=int, default=400)
    parser.add_argument("--workers", type=int, default=2)
    parser.add_argument("--rounds", type=int, default=3, help="alternating rounds of each way; the best of each counts")
    parser.add_argument("--backend", default="auto")
    parser.add_argument("--out", type=Path)
    parser.add_argument("--table", type=Path, help="print the table of a finished run and do nothing else")
    options = parser.parse_args()
    if options.table:
        print(table(json.loads(options.table.read_text())))
        return

    wrong = {p.id: p.wrong_solutions for p in generated("train")}
    cases = []
    for problem in load(DATA / "code_problems_train.jsonl"):
        cases += [(problem, source) for source in (problem.canonical_solution, *wrong[problem.id][:1], problem.stub)]
    random.Random(0).shuffle(cases)
    cases = list(islice(cycle(cases), options.programs))
    programs = [Program(source, p.tests, p.setup_code, p.entry_point) for p, source in cases]
    jobs = [json.dumps([s, [[repr(list(t.arguments)), repr(t.value)] for t in p.tests]]) for p, s in cases]

    seconds: dict[str, list[float]] = {"warm": [], "plain": [], "bare": []}
    with Grader(options.workers, backend=options.backend) as grader, ThreadPoolExecutor(options.workers) as pool:
        grader.grade(programs[:20])
        for _ in range(options.rounds):
            start = time.perf_counter()
            ours = [v.correct for v in grader.grade(programs)]
            seconds["warm"].append(time.perf_counter() - start)
            for way in (plain, bare):
                start = time.perf_counter()
                theirs = list(pool.map(way, jobs))
                seconds[way.__name__].append(time.perf_counter() - start)
                if ours != theirs:
                    sys.exit(f"verdicts differ for {sum(a != b for a, b in zip(ours, theirs, strict=True))} programs")
        backend = grader.backend
    rate = {way: options.programs / min(found) for way, found in seconds.items()}
    result = {
        "programs": options.programs,
        "correct": sum(ours),
        "workers": options.workers,
        "backend": backend,
        "warm_per_second": round(rate["warm"], 1),
        "process_per_program_per_second": round(rate["plain"], 1),
        "bare_process_per_program_per_second": round(rate["bare"], 1),
        "ratio": round(rate["warm"] / rate["plain"], 2),
        "ratio_bare": round(rate["warm"] / rate["bare"], 2),
        "rounds_seconds": {way: [round(s, 3) for s in found] for way, found in seconds.items()},
        "cores": len(os.sched_getaffinity(0)),
        "load_average": round(os.getloadavg()[0], 1),
    }
    from common import origin  # here: it loads torch, which processes started above would carry

    result["provenance"] = origin()
    print(json.dumps(result, indent=2))
    if options.out:
        options.out.write_text(json.dumps(result, indent=2) + "\n")


if __name__ == "__main__":
    main()
