"""What a comparison asks: methods, machines, data, budget. A frozen value with a hash, kept beside the answer."""

import hashlib
import json
import math
from collections.abc import Callable, Iterator
from dataclasses import replace
from pathlib import Path
from typing import TYPE_CHECKING, Any, TypeAlias

import msgspec

from trainpool import __version__, auto
from trainpool.config import pace_settings, source_digest
from trainpool.errors import ConfigError
from trainpool.machines import Machines
from trainpool.messages import Recipe
from trainpool.pace import Pace
from trainpool.pools.fleet import Fleet
from trainpool.results import REFERENCE, Capacity
from trainpool.strategies import AnyStrategy, Serial
from trainpool.trial import Trial

if TYPE_CHECKING:
    from trainpool.experiment import Experiment

__all__ = ["Experiments", "Method", "Question", "differences", "experiments"]

Experiments: TypeAlias = Callable[[int], "Experiment"]
"""From a seed to model and data; the model's first parameters may depend on the seed."""
LATER = ("task_seconds", "max_staleness")
LATER_MACHINES = ("crash", "slowdown", "duplicated")


class Method(msgspec.Struct, frozen=True, forbid_unknown_fields=True):
    """A strategy with its settings, all of them: a default that changes makes another question."""

    label: str
    strategy: str
    settings: dict[str, Any]

    @classmethod
    def parse(cls, text: str) -> "Method":
        """From `name` or `name:key=value:key=value`.

        Raises:
            ConfigError: no such strategy or setting.
        """
        name, *rest = (part.strip() for part in text.split(":"))
        options: dict[str, Any] = {}
        for item in rest:
            key, equals, value = item.partition("=")
            if not equals:
                raise ConfigError(f"a strategy is given as name:key=value:key=value, not {text!r}")
            options[key] = None if value == "None" else value
        strategy = auto.named(name, options)
        return cls(":".join([name, *rest]), name, {} if isinstance(strategy, str) else msgspec.to_builtins(strategy))


class Question(msgspec.Struct, frozen=True, kw_only=True, forbid_unknown_fields=True):
    """What is asked: all that the answer depends on."""

    methods: tuple[Method, ...]
    """Beside the reference, which always takes part."""
    target: float = 0.88
    """The test accuracy to be reached, 0 to 1."""
    machines: Machines = Machines()
    epochs: float = 3.0
    """Passes over the training data: every trial's budget."""
    seeds: tuple[int, ...] = (0, 1, 2)
    """The first one tunes the learning rate."""
    rates: tuple[float, ...] = (0.05, 0.1, 0.2)
    """Peak learning rates to choose from, and more where a method's best is the lowest or the highest; a single one is
    no tuning."""
    recipe: Recipe = Recipe()
    """What a worker does; its learning rate does not count."""
    experiment: str = ""
    """The user's own, as `file.py:name`; else `data` and `model`."""
    experiment_hash: str = ""
    """The SHA-256 of that file; found where left out."""
    data: str = "fashion-mnist"
    model: str = "cnn"
    loss: str = "cross-entropy"
    norm: str | None = None
    shards: int = 0
    """How many the data are cut into; 0 leaves it to each method."""
    skew: float | None = None
    """The shards' Dirichlet parameter, where their labels differ."""
    evaluate_every: float = 0.1
    """Passes over the data between evaluations: how finely the time to the target is known."""
    recalibrate: int = 0
    """Batches on which BatchNorm's statistics are measured anew before each evaluation."""
    task_seconds: float | None = None
    """How long a task of free length takes; the pace's default where left out."""
    max_staleness: int | None = None
    """The staleness above which updates are refused, where a method sets no bound of its own."""
    version: str = __version__
    """Of trainpool."""

    def __post_init__(self) -> None:
        labels = self.labels
        if not self.methods:
            raise ConfigError(
                f"name at least one strategy beside {REFERENCE}, which always takes part as the reference"
            )
        for label in labels:
            if labels.count(label) > 1:
                raise ConfigError(f"{label} is named twice; {REFERENCE} takes part without being named")
        if not 0 < self.target < 1:
            raise ConfigError(f"the target is an accuracy between 0 and 1, such as 0.88, not {self.target:g}")
        for key, value in flat(msgspec.to_builtins(self)):
            if isinstance(value, float) and not math.isfinite(value):  # JSON has no such numbers
                raise ConfigError(f"{key} must be a finite number, not {value:g}")
        if self.epochs <= 0 or self.evaluate_every <= 0:
            raise ConfigError(f"epochs ({self.epochs:g}) and evaluate_every ({self.evaluate_every:g}) must be above 0")
        for name, values in (("seeds", self.seeds), ("rates", self.rates)):
            if not values or len(set(values)) < len(values) or min(values) < 0 or (name == "rates" and 0 in values):
                raise ConfigError(f"{name} must be different and positive, at least one, not {list(values)}")
        if max(self.seeds) >= 2**32:
            raise ConfigError(f"seeds are below 2**32, not {max(self.seeds)}")
        if len({Trial(label, 1.0, 0).name for label in labels}) < len(labels):  # their files must differ
            raise ConfigError(f"the names of the methods are too much alike: {', '.join(labels)}")
        self.machines.fleet()
        pace_settings(self.pace)
        if self.experiment and not self.experiment_hash:
            msgspec.structs.force_setattr(self, "experiment_hash", source_digest(self.experiment))

    @property
    def labels(self) -> tuple[str, ...]:
        """Of the methods; the reference is the first."""
        return (REFERENCE, *(method.label for method in self.methods))

    @property
    def hash(self) -> str:
        """Names the question; the recipe's own learning rate, which no trial uses, does not count."""
        return hashlib.sha256(json.dumps(self.plain(), sort_keys=True).encode()).hexdigest()[:16]

    def plain(self) -> dict[str, Any]:
        """The question as it comes back from its file: whole numbers where floats belong are floats.

        What could not be asked from the beginning is left out where it is not asked, so that older questions stay the
        same.
        """
        recipe = msgspec.structs.replace(self.recipe, learning_rate=1.0)
        text = msgspec.json.encode(msgspec.structs.replace(self, recipe=recipe))
        tree: dict[str, Any] = json.loads(msgspec.json.encode(msgspec.json.decode(text, type=Question)))
        for name in LATER:
            if tree[name] is None:
                del tree[name]
        for name in LATER_MACHINES:
            if tree["machines"][name] == getattr(Machines(), name):
                del tree["machines"][name]
        return tree

    @property
    def pace(self) -> Pace:
        """Of every method."""
        pace = Pace(limit=self.max_staleness)
        return pace if self.task_seconds is None else replace(pace, target=self.task_seconds)

    @property
    def capacity(self) -> Capacity:
        """What its machines could do."""
        fleet = self.machines.fleet()
        return Capacity(fleet.total, fleet.best)

    def strategy(self, label: str, samples: int) -> AnyStrategy | str:
        """The strategy of the method with that label, with so much training data; `auto` is chosen when a trial begins.

        The reference's tasks end where an evaluation is due. With tasks of some seconds it would be evaluated more
        coarsely than many machines together, whose tasks are as long, and every speed-up would be a guess.
        """
        method = next((method for method in self.methods if method.label == label), None)
        if method is not None:
            return auto.named(method.strategy, method.settings)
        every = max(1, round(self.evaluate_every * samples))
        return Serial(steps=math.ceil(every / (self.recipe.batch_size or samples)))

    def fleet(self, trial: Trial) -> Fleet:
        """The machines that a trial runs on."""
        return self.machines.alone() if trial.method == REFERENCE else self.machines.fleet(trial.seed)

    def options(self, label: str) -> dict[str, Any]:
        """A method's options for `training.begin`: all the same, but that a machine alone has the data in one piece."""
        whole = label == REFERENCE
        common = {name: getattr(self, name) for name in ("epochs", "evaluate_every", "recalibrate")}
        common |= {"pace": self.pace}
        return common | {"shards": 0 if whole else self.shards, "skew": None if whole else self.skew}


def flat(tree: Any, place: str = "") -> Iterator[tuple[str, Any]]:
    """The leaves of a tree of dictionaries and lists, each with its place, such as `machines.workers`."""
    if isinstance(tree, dict):
        for key, value in tree.items():
            yield from flat(value, f"{place}.{key}" if place else key)
    elif isinstance(tree, list | tuple):
        for value in tree:
            yield from flat(value, place)
    else:
        yield place, tree


def differences(old: Question, new: Question) -> dict[str, str]:
    """In what two questions differ, by the field's name (`machines.workers`), as a phrase each."""

    def fields(tree: dict[str, Any], prefix: str = "") -> Iterator[tuple[str, Any]]:
        for key, value in tree.items():
            if isinstance(value, dict) and prefix == "":
                yield from fields(value, f"{key}.")
            else:
                yield prefix + key, value

    a, b = old.plain(), new.plain()
    for tree in (a, b):
        tree["methods"] = {method["label"]: method["settings"] for method in tree["methods"]}
    first, second = dict(fields(a)), dict(fields(b))

    def shown(value: Any) -> str:
        return ",".join(map(str, value)) if isinstance(value, list) else str(value)

    found = {}
    for key in [*first, *(key for key in second if key not in first)]:
        if key not in second or key not in first:
            found[key] = f"{key.removeprefix('methods.')} was {'' if key in first else 'not '}asked about"
        elif first[key] != second[key]:
            found[key] = f"{key} was {shown(first[key])} and is {shown(second[key])}"
    return found


def experiments(question: Question, cache: Path, progress: Any = None) -> Experiments:
    """A question's model and data by seed, read once a seed.

    Raises (when called):
        TrainpoolError: they are not there, or do not fit.
    """
    made: dict[int, Experiment] = {}

    def make(seed: int) -> "Experiment":
        import torch

        from trainpool.experiment import load_experiment, named_experiment

        if seed not in made:
            with torch.random.fork_rng(devices=[]):
                torch.manual_seed(seed)
                if question.experiment:
                    made[seed] = load_experiment(question.experiment)
                else:
                    extra = {} if question.norm is None else {"norm": question.norm}
                    names = {"loss": question.loss, "options": extra, "progress": progress}
                    made[seed] = named_experiment(question.data, question.model, cache=cache, seed=seed, **names)
            if made[seed].test is None:
                raise ConfigError("methods are compared by test accuracy, but there are no test data")
        return made[seed]

    return make
