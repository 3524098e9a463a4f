"""What a run is, as its folder keeps it, and whether it can go on: its code, its data and its settings are the same."""

import ast
import hashlib
import importlib.util
import json
import math
import pickletools
import sys
import sysconfig
from collections.abc import Iterator
from pathlib import Path
from types import ModuleType
from typing import Any, Literal

import msgspec

from trainpool import strategies
from trainpool.data import Manifest, as_source, named, prepare, whole
from trainpool.errors import ConfigError, RunError
from trainpool.experiment import load_experiment
from trainpool.messages import Recipe
from trainpool.pace import Pace
from trainpool.strategies import AnyStrategy

__all__ = [
    "Config",
    "advice",
    "check_data",
    "code_of",
    "pace_settings",
    "read_config",
    "same_strategy",
    "source_digest",
]

PACE = ("target", "probe", "grace", "first", "spread", "speculate", "limit")
"""The settings among a pace's fields; the others are what it measured."""


class Config(msgspec.Struct, frozen=True, kw_only=True, omit_defaults=False):
    """What a run is, as `config.json` keeps it: enough to resume."""

    name: str
    strategy: str
    settings: dict[str, Any]
    recipe: Recipe
    epochs: float
    seed: int
    workers: int
    threads: int
    device: str
    evaluate_every: int
    train: Manifest
    test: Manifest | None
    cache: str
    skew: float | None = None
    reason: str = ""
    """Why `auto` took this strategy with these settings, where it did."""
    recalibrate: int = 0
    pace: dict[str, Any] = {}
    """The settings of `trainpool.pace.Pace`."""
    tensorboard: bool = False
    keep_journal: bool = False
    kernel: Literal["torch", "onnx"] = "torch"
    """What runs the tasks."""
    virtual: bool = False
    """Whether it ran on simulated time: it then cannot be continued."""
    source: str = ""
    """The experiment's `file.py:name`, where it came from one."""
    code: dict[str, str] = {}
    """The author's own files that the program depends on, with their SHA-256 when the run began."""
    data: str = ""
    """The name of the data set, or the folder of images, where the data are of these kinds."""
    fingerprint: str | None = None
    """Of the training data; None where it is not known cheaply."""


def pace_settings(pace: Pace) -> dict[str, Any]:
    """A pace without what it measured.

    Raises:
        ConfigError: a setting that cannot be.
    """
    if not 0 < pace.target < math.inf:
        raise ConfigError(f"a task of free length must take more than 0 seconds, and finitely many, not {pace.target}")
    if pace.probe < 1 or (pace.limit is not None and pace.limit < 0):
        raise ConfigError(f"the pace's probe ({pace.probe}) must be above 0, the staleness ({pace.limit}) not negative")
    if not all(0 <= value < math.inf for value in (pace.grace, pace.first, pace.spread)):
        raise ConfigError("the pace's grace, first and spread must be finite, and not negative")
    return {name: getattr(pace, name) for name in PACE}


def advice(home: Path) -> str:
    """What to do about a run's folder that is there already."""
    path = home / "config.json"
    if not path.exists():
        return "it is not empty; choose another folder"
    try:
        virtual = bool(json.loads(path.read_bytes()).get("virtual"))
    except (OSError, ValueError):
        virtual = False
    if virtual:
        return "a simulation cannot be continued; choose another folder, or remove it"
    return f"continue it with `trainpool resume {home}`, or choose another folder"


def read_config(home: Path) -> Config:
    """The run in a folder that is to go on.

    Raises:
        RunError: there is none, it is finished, it ran on simulated time, or the author's code has changed.
    """
    path = home / "config.json"
    if not path.exists():
        raise RunError(f"{home} holds no run (it has no config.json)")
    try:
        config = msgspec.json.decode(path.read_bytes(), type=Config)
    except msgspec.MsgspecError as error:
        raise RunError(f"{path} is damaged: {error}") from error
    if (home / "model.safetensors").exists():
        raise RunError(f"{home} is finished; its model is {home / 'model.safetensors'}")
    if config.virtual:
        raise RunError(f"{home} ran on simulated time, which cannot be continued: remove it and simulate anew")
    for file, digest in config.code.items():
        if file_digest(Path(file)) != digest:
            raise RunError(f"{file} has changed since the run began: restore it, or start a new run")
    return config


def same_strategy(home: Path, config: Config, strategy: AnyStrategy | None) -> AnyStrategy:
    """The strategy with which a run began: the given one if it is that, else this package's.

    Raises:
        RunError: the given one is another, or none is given and it is not this package's.
    """
    if strategy is None:
        if config.strategy not in strategies.discover():
            raise RunError(
                f"{config.strategy} is not this package's: resume with tp.resume({str(home)!r}, strategy=...)"
            )
        return strategies.build(config.strategy, config.settings)
    if (strategies.name_of(strategy), msgspec.to_builtins(strategy)) != (config.strategy, config.settings):
        raise RunError(f"the run began with {config.strategy} and the settings {config.settings}: resume with the same")
    return strategy


def check_data(config: Config) -> None:
    """See that the data are what they were, and cut again the shards that have left the cache."""
    changed = RunError("the data have changed since the run began: restore them, or start a new run")
    place = Path(config.cache)
    wanted = [*config.train.shards, *(config.test.shards if config.test else ())]
    held = all((place / "shards" / f"{shard.id}.safetensors").exists() for shard in wanted)
    folder = bool(config.data) and Path(config.data).is_dir()
    if held and not folder:
        return  # a shard's name is its content's hash
    if folder:
        train, test = as_source(config.data), None
    elif config.source:
        train, test = load_experiment(config.source).sources()
    elif config.data:
        found = named(config.data, place)
        train, test = found.train, found.test
    else:
        raise RunError(f"shards have left the cache {place}: put them back, or start a new run")
    if config.fingerprint is not None and train.fingerprint != config.fingerprint:
        raise changed
    made = prepare(train, len(config.train.shards), cache=place, seed=config.seed, skew=config.skew)[0]
    if made.id != config.train.id or (config.test and test and whole(test, cache=place)[0].id != config.test.id):
        raise changed


def source_digest(source: str) -> str:
    """The SHA-256 of an experiment's file; empty where it came from no file."""
    return file_digest(Path(source.rpartition(":")[0]))


def file_digest(path: Path) -> str:
    """The SHA-256 of a file; empty where there is none."""
    return hashlib.sha256(path.read_bytes()).hexdigest() if path.is_file() else ""


def code_of(program: bytes, source: str, strategy: AnyStrategy) -> dict[str, str]:
    """The author's own files that a run depends on, with their SHA-256.

    They are the experiment's file, the modules that the pickled program refers to (their names are among its strings;
    nothing is executed), the strategy's, and what all of these import. What stands in a notebook, or in the script that
    runs, is in the pickle itself.
    """
    names = {value for _, value, _ in pickletools.genops(program) if isinstance(value, str)} - {"__main__"}
    waiting = [*(names & sys.modules.keys()), type(strategy).__module__]
    code: dict[str, str] = {}
    if source:
        file = Path(source.rpartition(":")[0])
        code[str(file)] = file_digest(file)
        waiting += imported(file, "")
    seen = {"__main__"}
    while waiting:
        name = waiting.pop()
        module = sys.modules.get(name)
        if name in seen or module is None:
            continue
        seen.add(name)
        waiting.append(name.rpartition(".")[0])  # a package's own file runs before its modules
        own = own_file(module)
        if own is not None:
            code[str(own)] = file_digest(own)
            waiting += imported(own, module.__package__ or "")
    return code


def own_file(module: ModuleType) -> Path | None:
    """The file of a module of the author's: not this package's, not the standard library's, nor an installed one's."""
    file = Path(getattr(module, "__file__", None) or "").resolve()
    installed = {"site-packages", "dist-packages"} & set(file.parts)
    standard = Path(sysconfig.get_path("stdlib")).resolve()
    ours = module.__name__.partition(".")[0] == __name__.partition(".")[0]
    return None if ours or installed or standard in file.parents or not file.is_file() else file


def imported(file: Path, package: str) -> Iterator[str]:
    """Names among which are those of the modules that a Python file imports, anywhere in it."""
    for node in ast.walk(ast.parse(file.read_bytes())) if file.suffix == ".py" else ():
        if isinstance(node, ast.Import):
            yield from (alias.name for alias in node.names)
        elif isinstance(node, ast.ImportFrom) and (package or not node.level):
            base = importlib.util.resolve_name("." * node.level + (node.module or ""), package)
            yield from (base, *(f"{base}.{alias.name}" for alias in node.names))
