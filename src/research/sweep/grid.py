"""The cells of a command: its overrides expanded as Hydra's sweeper expands them, every one composed and checked."""

from __future__ import annotations

import copy
import json
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from hydra._internal.core_plugins.basic_sweeper import BasicSweeper
from hydra.core.override_parser.overrides_parser import OverridesParser
from hydra.errors import HydraException
from omegaconf import DictConfig, OmegaConf
from omegaconf.errors import OmegaConfBaseException

from research.cells import identity, run
from research.cells.cell import write_atomically
from research.cells.provenance import now, placeless
from research.compose import compose, convert, explain, open_task_keys, validate, verify_each, verify_together
from research.config import RunConfig
from research.errors import ConfigurationError
from research.models.identity import model_inputs

SCHEMA_VERSION = 1


@dataclass(frozen=True)
class Grid:
    """The cells of one command in grid order: the last axis varies fastest."""

    axes: dict[str, list[str]]
    cells: list[run.Plan]
    raw: DictConfig


def expand(overrides: Sequence[str], multirun: bool, config_dir: str | None = None) -> Grid:
    """Every cell that a command's overrides stand for; raises ConfigurationError before anything runs.

    The configuration is composed once; a cell whose axes are plain keys is made from it by setting resolved values.
    A cell whose axes choose a group (`task=a,b`, `model=a,b`) is composed on its own.
    """
    parsed = _parse(open_task_keys(overrides))
    swept = [o for o in parsed if o.is_sweep_override()]
    if swept and not multirun:
        keys = ", ".join(o.get_key_element() for o in swept)
        raise ConfigurationError(f"{keys} has several values; add -m to run the grid.")
    if not multirun:
        raw = compose(open_task_keys(overrides), config_dir)
        composed = validate(raw)
        return Grid({}, [plan_cell(composed.task_name, composed.config)], raw)
    fixed = [o.input_line for o in parsed if not o.is_sweep_override()]
    raw = compose(fixed, config_dir)
    params = swept_by_experiment(raw)
    for word in overrides:
        name = word.lstrip("+~").split("=")[0]
        if word[0] in "+~" and name in params:
            raise ConfigurationError(f"{word}: the experiment sweeps {name}; write {name}=VALUE, without a sign.")
    words = [f"{key}={value}" for key, value in params.items()]
    every = _parse([*words, *open_task_keys(overrides, params)])
    try:
        combinations = BasicSweeper.split_arguments(every, None)[0]
    except HydraException as error:
        raise ConfigurationError(str(error)) from error
    axes: dict[str, list[str]] = {}
    for words in combinations:
        for word in words:
            key, _, value = word.lstrip("+").partition("=")
            if value not in axes.setdefault(key, []):
                axes[key].append(value)
    axes = {key: values for key, values in axes.items() if len(values) > 1}
    with identity.files_held():
        return Grid(axes, _cells(raw, combinations, axes, config_dir), raw)


def swept_by_experiment(raw: DictConfig) -> dict[str, Any]:
    """The axes that a configuration brings along (`hydra.sweeper.params`); words of the command replace them."""
    return {str(key): value for key, value in (OmegaConf.select(raw, "hydra.sweeper.params") or {}).items()}


def _parse(overrides: Sequence[str]) -> list[Any]:
    try:
        return OverridesParser.create().parse_overrides(list(overrides))
    except HydraException as error:
        raise ConfigurationError(explain(error)) from error


def _cells(
    raw: DictConfig, combinations: list[list[str]], axes: dict[str, list[str]], config_dir: str | None
) -> list[run.Plan]:
    interpolated = any(
        "${" in OmegaConf.to_yaml(OmegaConf.masked_copy(raw, key)) for key in map(str, raw) if key != "hydra"
    )
    if interpolated or any(_chooses_group(raw, key) for key in axes):
        composed = [validate(compose(words, config_dir)) for words in combinations]
        return [plan_cell(c.task_name, c.config) for c in composed]
    first = compose(combinations[0], config_dir)
    task_name = str(OmegaConf.select(first, "hydra.runtime.choices.task"))
    base = convert(first, task_name)
    verify_each(base, task_name)
    # Each value of an axis is parsed and converted to its type once, however many cells use it.
    schema = OmegaConf.structured(RunConfig(task=OmegaConf.structured(type(base.task))))
    values = {(key, text): _convert(schema, key, text) for key, texts in axes.items() for text in texts}
    for (key, _), value in values.items():
        verify_each(_with(base, key.split("."), value), task_name)
    configs = []
    for words in combinations:
        config = base
        for key, _, text in (word.lstrip("+").partition("=") for word in words):
            if key in axes:
                config = _with(config, key.split("."), values[key, text])
        verify_together(config)
        configs.append(config)
    inputs = model_inputs(base.model) if base.task.uses_model else {}
    if any(key.startswith("model.") for key in axes):
        return [plan_cell(task_name, config) for config in configs]
    return [run.plan(task_name, config, inputs) for config in configs]


def _with(config: Any, path: Sequence[str], value: Any) -> Any:
    """The configuration with one value set. The parts that stay are shared with the one given, which stays too."""
    changed = copy.copy(config)
    setattr(changed, path[0], value if len(path) == 1 else _with(getattr(config, path[0]), path[1:], value))
    return changed


def _chooses_group(raw: DictConfig, key: str) -> bool:
    return "/" in key or key in OmegaConf.select(raw, "hydra.runtime.choices")


def _convert(typed_node: DictConfig, key: str, text: str) -> Any:
    """The value that an override's text stands for, in the type that the schema gives the key."""
    try:
        OmegaConf.update(typed_node, key, _parse([f"{key}={text}"])[0].value(), merge=False)
    except OmegaConfBaseException as error:
        raise ConfigurationError(explain(error)) from error
    value = OmegaConf.select(typed_node, key)
    return OmegaConf.to_container(value) if OmegaConf.is_config(value) else value


def plan_cell(task_name: str, config: RunConfig) -> run.Plan:
    """The identity and places of one cell, its model's files hashed where the task uses the model."""
    return run.plan(task_name, config, model_inputs(config.model) if config.task.uses_model else {})


def by_sweep(cells: Sequence[run.Plan]) -> dict[Path, list[run.Plan]]:
    """The cells of each (task, name), by the directory they share under eval_results/."""
    groups: dict[Path, list[run.Plan]] = {}
    for cell in cells:
        groups.setdefault(cell.directory.parent, []).append(cell)
    return groups


def write_sweep(grid: Grid, command: str) -> list[Path]:
    """Freeze a grid as sweep.json, one for each (task, name) it spans; returns the files."""
    groups = by_sweep(grid.cells)
    for directory, cells in groups.items():
        document = {
            "schema_version": SCHEMA_VERSION,
            "task": cells[0].task_name,
            "name": cells[0].config.name,
            "axes": grid.axes,
            "command": placeless(command),
            "launched": now(),
            "inputs": dict(cells[0].inputs),
            "cells": [{"name": c.name, "digest": c.digest, "config": identity.settings(c.config)} for c in cells],
        }
        write_atomically(directory / "sweep.json", json.dumps(document, indent=1, ensure_ascii=False) + "\n")
    return [directory / "sweep.json" for directory in groups]
