"""`python -m research --help`: every key with its type, default and one line, from the schema itself."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import fields
from pathlib import Path
from typing import Any

from omegaconf import OmegaConf

from research.compose import compose, conf_dir, task_class
from research.config import RunConfig, docs

USAGE = """\
research: three studies of how language models learn what nobody meant them to learn.

  python -m research task=zlt_sweep -m lr=1e-6,5e-6 epochs=1,20    a grid of four cells, then the heatmap
  python -m research task=reward_hack                              one cell
  python -m research +experiment=NAME [-m]                         a shipped experiment; -m if it defines a grid
  python -m research ... --cfg job                                 the resolved configuration, nothing is run
  python -m research.sweep plan|submit|status|cancel ...           what is to do, done, running
  python -m research.report TASK [name=SWEEP] [results=PATH]       recompile tables, figures and report.html
"""


def help_text(overrides: Sequence[str], config_dir: str | None) -> str:
    """The page; with `task=NAME` among the overrides that task's keys only."""
    chosen = [word.partition("=")[2] for word in overrides if word.startswith("task=")]
    folders = [Path(conf_dir()), *([Path(config_dir)] if config_dir else [])]
    parts = [USAGE, "Choices", *_choices(folders), "", "Keys of every task", *_keys(docs(RunConfig), skip=("task",))]
    for name in chosen or _names(folders, "task"):
        raw = compose([f"task={name}"], config_dir)
        cls = task_class(raw, name)
        summary = (cls.__doc__ or "").strip().splitlines()[0]
        uses = ", ".join(sorted(cls.root_keys)) or "none"
        parts += ["", f"task={name}: {summary} (uses {uses})", *_keys(docs(cls), "task.", raw)]  # type: ignore[arg-type]
    return "\n".join(parts)


def _choices(folders: Sequence[Path]) -> list[str]:
    groups = ["task", *(f.name for f in fields(RunConfig) if any((d / f.name).is_dir() for d in folders)), "experiment"]
    shown = [(group, _names(folders, group)) for group in dict.fromkeys(groups)]
    return [
        f"  {('+' if group == 'experiment' else '') + group + '=':<14} {' | '.join(names)}"
        for group, names in shown
        if names
    ]


def _names(folders: Sequence[Path], group: str) -> list[str]:
    return sorted({path.stem for folder in folders for path in (folder / group).glob("*.yaml")})


def _keys(known: dict[str, Any], prefix: str = "", raw: Any = None, skip: Sequence[str] = ()) -> list[str]:
    lines = []
    for name, (field, default) in known.items():
        if name in skip:
            continue
        value = OmegaConf.select(raw, prefix + name, default=default) if raw is not None else default
        if OmegaConf.is_config(value):
            value = OmegaConf.to_container(value)
        shown = "null" if value is None else str(value).lower() if isinstance(value, bool) else str(value)
        doc = field.metadata.get("doc", "")
        limits = "|".join(str(c) for c in field.metadata.get("choices", ()))
        lines.append(f"  {prefix + name:<34} {shown:<14} {doc}{f' ({limits})' if limits else ''}")
    return lines
