"""Published methods, one file each. A file dropped into this package is a strategy: nothing else names it."""

import ast
import dataclasses
import importlib
import inspect
import pkgutil
from typing import Any

import msgspec

from trainpool.errors import ConfigError, did_you_mean
from trainpool.strategies.admm import ADMM
from trainpool.strategies.dc_asgd import DCASGD
from trainpool.strategies.delayed_nesterov import DelayedNesterov
from trainpool.strategies.diloco import DiLoCo
from trainpool.strategies.downpour import Downpour
from trainpool.strategies.easgd import EASGD
from trainpool.strategies.fedasync import FedAsync
from trainpool.strategies.fedavg import FedAvg
from trainpool.strategies.fedbuff import FedBuff
from trainpool.strategies.fedopt import FedOpt
from trainpool.strategies.fedprox import FedProx
from trainpool.strategies.local_sgd import LocalSGD
from trainpool.strategies.parallel_sgd import ParallelSGD
from trainpool.strategies.protocol import AnyStrategy, Assignment, Plan, ShardPlan, State, Strategy, check, misfit
from trainpool.strategies.ringmaster import Ringmaster
from trainpool.strategies.serial import Serial
from trainpool.strategies.staleness_aware import StalenessAware

__all__ = [
    "ADMM",
    "DCASGD",
    "EASGD",
    "AnyStrategy",
    "Assignment",
    "DelayedNesterov",
    "DiLoCo",
    "Downpour",
    "FedAsync",
    "FedAvg",
    "FedBuff",
    "FedOpt",
    "FedProx",
    "LocalSGD",
    "ParallelSGD",
    "Plan",
    "Ringmaster",
    "Serial",
    "ShardPlan",
    "StalenessAware",
    "State",
    "Strategy",
    "build",
    "citation",
    "discover",
    "name_of",
    "settings",
]


SHARED = ("outer", "protocol", "reducer")
"""Modules of this package that are no method."""


def discover() -> dict[str, type[AnyStrategy]]:
    """Every strategy in this package by its name, which is its file's: `parallel_sgd.py` holds `parallel-sgd`."""
    found: dict[str, type[AnyStrategy]] = {}
    for module in pkgutil.iter_modules(__path__):
        if module.name not in SHARED:
            loaded = importlib.import_module(f"{__name__}.{module.name}")
            (exported,) = loaded.__all__  # one method, one file
            found[module.name.replace("_", "-")] = getattr(loaded, exported)
    return found


def name_of(strategy: AnyStrategy) -> str:
    """The name of a strategy: of its file in this package, or of its class where it is the user's own."""
    for name, kind in discover().items():
        if type(strategy) is kind:
            return name
    return type(strategy).__name__


def settings(kind: type[AnyStrategy]) -> dict[str, tuple[Any, str]]:
    """Each hyper-parameter's default and its explanation, which is the string below it in the source."""
    body = ast.parse(inspect.cleandoc(inspect.getsource(kind))).body[0]
    assert isinstance(body, ast.ClassDef)
    texts: dict[str, str] = {}
    for field, text in zip(body.body, body.body[1:], strict=False):
        match field, text:
            case ast.AnnAssign(target=ast.Name(id=name)), ast.Expr(value=ast.Constant(value=str(words))):
                texts[name] = inspect.cleandoc(words)
    return {field.name: (field.default, texts.get(field.name, "")) for field in dataclasses.fields(kind)}  # type: ignore[arg-type]


def citation(kind: type[AnyStrategy]) -> str:
    """The first publication that a strategy's file cites, on one line."""
    lines = inspect.cleandoc(inspect.getmodule(kind).__doc__ or "").splitlines()
    start = next((i for i, line in enumerate(lines) if line.startswith("Citation")), len(lines))
    end = next((i for i, line in enumerate(lines[start + 1 :], start + 1) if not line or line[0].isspace()), len(lines))
    text = " ".join(lines[start:end]).partition(": ")[2]
    return text.split("Deviations")[0].strip()


def build(name: str, options: dict[str, Any] | None = None) -> AnyStrategy:
    """The strategy of that name with the given hyper-parameters; values may be strings, as a command line has them.

    Raises:
        ConfigError: no such strategy or hyper-parameter, or a value of the wrong type or out of bounds.
    """
    kinds = discover()
    if name not in kinds:
        raise ConfigError(f"no strategy {name!r}{did_you_mean(name, kinds)}; there are {', '.join(kinds)}")
    kind, options = kinds[name], options or {}
    known = settings(kind)
    for option in options:
        if option not in known:
            hint = did_you_mean(option, known)
            raise ConfigError(f"{name} has no setting {option!r}{hint}; it has {', '.join(known) or 'none'}")
    try:
        strategy = msgspec.convert(options, kind, strict=False)
    except msgspec.ValidationError as error:
        raise misfit(name, error) from error
    check(strategy)
    return strategy
