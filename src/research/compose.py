"""From what a user typed to typed configurations: compose with Hydra, validate, say what is wrong before any work."""

from __future__ import annotations

import re
from collections.abc import Collection, Sequence
from dataclasses import dataclass, fields, is_dataclass
from pathlib import Path
from typing import Any

import hydra
from hydra.core.config_store import ConfigStore
from hydra.core.global_hydra import GlobalHydra
from hydra.errors import HydraException, MissingConfigException
from omegaconf import DictConfig, OmegaConf
from omegaconf.errors import OmegaConfBaseException

from research.config import OPTIONAL_ROOT_KEYS, RunConfig, check, check_combinations, docs, nearest
from research.errors import ConfigurationError
from research.task import BaseTask

ConfigStore.instance().store(name="schema", node=RunConfig)


@dataclass(frozen=True)
class Composed:
    """A validated configuration, and the name by which its task was chosen."""

    task_name: str
    config: RunConfig


def conf_dir() -> str:
    """The absolute path of the shipped configuration: the checkout's conf/, or the copy inside an installed package."""
    here = Path(__file__).resolve().parent
    for candidate in (here / "conf", here.parents[1] / "conf"):
        if (candidate / "config.yaml").exists():
            return str(candidate)
    raise ConfigurationError(f"The configuration folder is missing beside {here}; install the package again.")


def compose(overrides: Sequence[str], config_dir: str | None = None) -> DictConfig:
    """The raw configuration for overrides such as `task=zlt_sweep`; `config_dir` is what `--config-dir` adds.

    Raises ConfigurationError that names the nearest valid key or choice.
    """
    overrides = open_task_keys(overrides)
    words = [*overrides, f"hydra.searchpath=[file://{Path(config_dir).resolve()}]"] if config_dir else list(overrides)
    GlobalHydra.instance().clear()
    try:
        with hydra.initialize_config_dir(conf_dir(), version_base="1.3"):
            return hydra.compose("config", overrides=words, return_hydra_config=True)
    except (HydraException, OmegaConfBaseException) as error:
        raise ConfigurationError(explain(error, config_dir)) from error


def open_task_keys(words: Sequence[str], swept: Collection[str] = ()) -> list[str]:
    """Let a key of the task be set although its YAML does not list it: the task's class knows its keys, and checks them.

    swept: keys that an experiment sweeps. They stay as they are, since Hydra lets a word replace an axis of the same
    spelling only.
    """
    return [f"++{word}" if word.startswith("task.") and word.split("=")[0] not in swept else word for word in words]


def validate(raw: DictConfig) -> Composed:
    """Turn a raw configuration into a typed one and check it; raises ConfigurationError."""
    task_name = str(OmegaConf.select(raw, "hydra.runtime.choices.task"))
    return Composed(task_name, typed(raw, task_name))


def typed(raw: DictConfig, task_name: str) -> RunConfig:
    """The configuration as checked dataclasses; `config.task` is an instance of the task's class."""
    config = convert(raw, task_name)
    verify(config, task_name)
    return config


def convert(raw: DictConfig, task_name: str) -> RunConfig:
    """The configuration as dataclasses, its values of the right type but not yet checked."""
    known = [f.name for f in fields(RunConfig)]
    for name in map(str, raw):
        if name not in known and name != "hydra":
            raise ConfigurationError(f"There is no key {name}.{nearest(name, known)}")
    plain = OmegaConf.masked_copy(raw, known)
    try:
        config = OmegaConf.to_object(OmegaConf.merge(OmegaConf.structured(RunConfig), plain))
    except OmegaConfBaseException as error:
        raise ConfigurationError(explain(error)) from error
    assert isinstance(config, RunConfig)
    config.task = _build_task(plain.task, task_name)
    return config


def verify(config: RunConfig, task_name: str) -> None:
    """Check limits, root keys and what the task itself demands; raises ConfigurationError."""
    verify_each(config, task_name)
    verify_together(config)


def verify_together(config: RunConfig) -> None:
    """The part of `verify` that looks at several keys at a time."""
    check_combinations(config)
    config.task.validate(config)


def verify_each(config: RunConfig, task_name: str) -> None:
    """The part of `verify` that looks at one key at a time."""
    check(config)
    check(config.task, "task.")
    _check_root_keys(config, task_name)


def task_class(raw: DictConfig, task_name: str) -> type[BaseTask]:
    """The class that `task._target_` names."""
    target = OmegaConf.select(raw, "task._target_")
    if not target:
        raise ConfigurationError(f"task={task_name}: its YAML has no task._target_ that names the task's class.")
    try:
        found = hydra.utils.get_class(target)
    except Exception as error:
        raise ConfigurationError(f"task={task_name}: cannot import task._target_={target!r}: {error}") from error
    if not is_dataclass(found) or not hasattr(found, "run"):
        raise ConfigurationError(f"task={task_name}: {target} is not a task: a dataclass with a method `run`.")
    return found  # type: ignore[return-value]


def _build_task(node: DictConfig, task_name: str) -> Any:
    cls = task_class(OmegaConf.create({"task": node}), task_name)
    given = {str(k): v for k, v in OmegaConf.to_container(node, resolve=True).items() if k != "_target_"}  # type: ignore[union-attr]
    known = docs(cls)  # type: ignore[arg-type]
    for name in given:
        if not any(full == name or full.startswith(f"{name}.") for full in known):
            raise ConfigurationError(
                f"task={task_name} has no key task.{name}.{nearest(f'task.{name}', [f'task.{k}' for k in known])}"
            )
    try:
        return OmegaConf.to_object(OmegaConf.merge(OmegaConf.structured(cls), given))
    except OmegaConfBaseException as error:
        raise ConfigurationError(explain(error, prefix="task.")) from error


def _check_root_keys(config: RunConfig, task_name: str) -> None:
    used: frozenset[str] = getattr(type(config.task), "root_keys", frozenset())
    for name in OPTIONAL_ROOT_KEYS:
        value = getattr(config, name)
        if name in used and value is None:
            raise ConfigurationError(f"task={task_name} needs {name}; set it, e.g. {name}=1.")
        if name not in used and value is not None:
            raise ConfigurationError(f"{name}={value} is set, but task={task_name} does not use it; leave it out.")


def explain(error: Exception, config_dir: str | None = None, prefix: str = "") -> str:
    """One or two lines for a composition error, with the nearest valid name."""
    text = "\n".join(str(e) for e in (error, error.__cause__) if e is not None)
    if "missing EQUAL" in text and (match := re.search(r"parsing override '(.*)'", text)):
        return f"{match.group(1)!r} is not of the form key=value."
    if isinstance(error, MissingConfigException) and (match := re.search(r"Could not find '([^']+)'", text)):
        group, _, choice = match.group(1).rpartition("/")
        options = re.findall(r"^\s+(\w[\w.-]*)\s*$", text.partition("Available options")[2], re.M)
        listed = f" There is {', '.join(options)}." if options else ""
        return f"{group or 'config'}={choice} does not exist.{nearest(choice, options)}{listed}"
    if match := re.search(r"Could not override '([^']+)'", text):
        name = match.group(1)
        return f"There is no key {name}.{nearest(name, _known_keys(config_dir))} `python -m research --help` lists all."
    if match := re.search(r"(?:You must specify '([^']+)'|Could not append to config.*'([^']+)')", text):
        return text.splitlines()[0]
    key = re.search(r"full_key: (\S+)", text)
    if match := re.search(r"Value '(.*?)'(?: of type '\w+')? could not be converted to (\w+)", text):
        wanted = {"Integer": "a whole number", "Float": "a number", "Boolean": "true or false"}.get(
            match.group(2), match.group(2)
        )
        return f"{prefix}{key.group(1) if key else '?'}={match.group(1)} is not {wanted}."
    if match := re.search(r"Key '([^']+)' (?:not in|is not in)", text):
        name = prefix + (key.group(1) if key else match.group(1))
        return f"There is no key {name}.{nearest(name, _known_keys(config_dir))} `python -m research --help` lists all."
    return text


def _known_keys(config_dir: str | None) -> list[str]:
    names = list(docs(RunConfig))
    folders = [Path(folder) / "task" for folder in (conf_dir(), config_dir) if folder]
    for node in (OmegaConf.load(task) for folder in folders for task in sorted(folder.glob("*.yaml"))):
        assert isinstance(node, DictConfig)
        names += [f"task.{k}" for k in _leaves(node.get("task", {})) if k != "_target_"]
    return names


def _leaves(node: Any, prefix: str = "") -> list[str]:
    if not isinstance(node, DictConfig):
        return [prefix[:-1]]
    return [leaf for k in map(str, node) for leaf in _leaves(node._get_node(k), f"{prefix}{k}.")]
