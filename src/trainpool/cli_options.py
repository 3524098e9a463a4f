"""What several commands share: their options, and how they answer bad input. Nothing heavy is imported here."""

import math
import os
import sys
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any, Literal

import typer

if TYPE_CHECKING:
    from trainpool.experiment import Experiment
    from trainpool.messages import Recipe
    from trainpool.pace import Pace

ExperimentPlace = Annotated[
    str | None, typer.Argument(help="Your own experiment, as file.py:name; without it, --data and --model.")
]
Data = Annotated[str, typer.Option(help="fashion-mnist, digits, or a folder of images (class/name.png).")]
Model = Annotated[str, typer.Option(help="cnn, resnet20, mlp or logistic.")]
Loss = Annotated[str, typer.Option(help="cross-entropy, half-squared-error or mse.")]
Norm = Annotated[str | None, typer.Option(help="Of resnet20: group or batch.")]
StrategyName = Annotated[
    str, typer.Option(help="How updates are merged; `trainpool strategies` lists them, auto chooses.")
]
Settings = Annotated[
    list[str] | None, typer.Option("--set", help="A setting of the strategy, as name=value; may be repeated.")
]
Epochs = Annotated[float, typer.Option(help="Passes over the training data.")]
LearningRate = Annotated[float | None, typer.Option("--learning-rate", "--lr", help="Peak learning rate.")]
BatchSize = Annotated[int | None, typer.Option(help="Samples a step; 0 is the whole shard.")]
RecipeItems = Annotated[
    list[str] | None,
    typer.Option(
        "--recipe",
        help="Another setting of the recipe, as name=value; may be repeated: optimizer, momentum, nesterov, "
        "weight_decay, clip_norm, schedule, warmup, precision.",
    ),
]
Shards = Annotated[int, typer.Option(help="Pieces that the data are cut into; 0 leaves it to the strategy.")]
Skew = Annotated[
    float | None, typer.Option(help="Cut shards whose labels differ: a Dirichlet parameter; 0.1 differs much.")
]
EvaluateEvery = Annotated[float, typer.Option(help="Passes between evaluations; 0 is at the end alone.")]
Recalibrate = Annotated[
    int, typer.Option(help="Batches on which BatchNorm's statistics are measured anew before each evaluation.")
]
TaskSeconds = Annotated[
    float | None, typer.Option(help="How long a task of free length takes; 2 by default. Short tasks cost traffic.")
]
MaxStaleness = Annotated[
    int | None,
    typer.Option(help="Refuse updates of models that many versions old, where the method sets no bound of its own."),
]
LARGEST_SEED = 2**63 - 1
Seed = Annotated[
    int, typer.Option(min=0, max=LARGEST_SEED, help="Of the model's start, the shards and the order of samples.")
]
Cache = Annotated[Path | None, typer.Option(help="Where data and shards are kept between runs.")]
Debug = Annotated[bool, typer.Option("--debug", help="Show the traceback of an error.")]
Json = Annotated[
    bool, typer.Option("--json", help="Print the summary as JSON on standard output, and nothing else there.")
]
Quiet = Annotated[bool, typer.Option("--quiet", "-q", help="Show no progress.")]


EXTRA = ("matplotlib", "PIL", "torch", "onnx", "cloudpickle", "sklearn")
"""What the package's extra `torch` brings: a worker of a lowered program needs none of it."""


@contextmanager
def polite(debug: bool) -> Iterator[None]:
    """Errors as one line and exit code 2; Ctrl+C as exit code 130."""
    import sqlite3

    from trainpool.errors import TrainpoolError

    try:
        yield
    except TrainpoolError as error:
        if debug:
            raise
        typer.secho(f"trainpool: {error}", fg="red", err=True)
        raise typer.Exit(2) from error
    except ModuleNotFoundError as error:
        if debug or error.name is None or error.name.partition(".")[0] not in EXTRA:
            raise
        typer.secho(f"trainpool: this needs {error.name}: pip install 'trainpool[torch]'", fg="red", err=True)
        raise typer.Exit(2) from error
    except (OSError, sqlite3.Error) as error:
        if debug or isinstance(error, BrokenPipeError):  # whoever read the output has had enough
            raise
        typer.secho(f"trainpool: {error} (--debug shows where)", fg="red", err=True)
        raise typer.Exit(2) from error
    except KeyboardInterrupt:
        raise typer.Exit(130) from None


def finite(numbers: dict[str, Any]) -> None:
    """See that the numbers among the options are such; `float` reads nan and inf too."""
    from trainpool.errors import ConfigError

    for name, value in numbers.items():
        if isinstance(value, float) and not math.isfinite(value):
            raise ConfigError(f"--{name.replace('_', '-')} must be a finite number, not {value:g}")


def pairs(items: list[str] | None, option: str) -> dict[str, Any]:
    """`name=value` arguments as a dictionary."""
    from trainpool.errors import ConfigError

    found: dict[str, Any] = {}
    for item in items or []:
        name, equals, value = item.partition("=")
        if not equals:
            raise ConfigError(f"{option} takes name=value, not {item!r}")
        found[name] = None if value == "None" else value
    return found


def recipe_of(items: list[str] | None, learning_rate: float | None, batch_size: int | None) -> "Recipe":
    """The recipe that the options describe."""
    import msgspec

    from trainpool.errors import ConfigError
    from trainpool.messages import Recipe

    options = pairs(items, "--recipe")
    options |= {} if learning_rate is None else {"learning_rate": learning_rate}
    options |= {} if batch_size is None else {"batch_size": batch_size}
    try:
        return msgspec.convert(options, Recipe, strict=False)
    except msgspec.ValidationError as error:
        raise ConfigError(f"the recipe: {error}") from error


def pace_of(task_seconds: float | None, max_staleness: int | None) -> "Pace":
    """The pace that the options describe."""
    from trainpool.pace import Pace

    return Pace(limit=max_staleness) if task_seconds is None else Pace(target=task_seconds, limit=max_staleness)


def kernel_of(name: str) -> Literal["torch", "onnx"]:
    """The kernel of that name."""
    from trainpool.errors import ConfigError, did_you_mean

    if name == "torch":
        return "torch"
    if name == "onnx":
        return "onnx"
    raise ConfigError(f"no kernel {name!r}{did_you_mean(name, ('torch', 'onnx'))}; there are: torch, onnx")


def cache_of(cache: Path | None) -> Path:
    """The cache folder: the option, else the environment's, else the user's."""
    from trainpool.data import default_cache

    return cache or Path(os.environ.get("TRAINPOOL_CACHE") or default_cache())


def experiment_of(
    place: str | None, data: str, model: str, loss: str, norm: str | None, seed: int, cache: Path, quiet: bool
) -> "Experiment":
    """The experiment that the options describe."""
    from trainpool.errors import ConfigError
    from trainpool.experiment import load_experiment, named_experiment

    if place is not None:
        return load_experiment(place)
    extra = {} if norm is None else {"norm": norm}
    if extra and model != "resnet20":
        raise ConfigError("--norm is an option of resnet20 alone")
    with progress_bar("reading data", quiet) as progress:
        return named_experiment(data, model, cache=cache, seed=seed, loss=loss, options=extra, progress=progress)


def needs_torch() -> None:
    """Say how to install PyTorch where it is missing."""
    import importlib.util

    from trainpool.errors import ConfigError

    if importlib.util.find_spec("torch") is None:
        raise ConfigError("training needs PyTorch: pip install 'trainpool[torch]'")


def next_folder(parent: Path) -> Path:
    """The first of `parent/1`, `parent/2`, … that does not exist."""
    number = 1
    while (parent / str(number)).exists():
        number += 1
    return parent / str(number)


@contextmanager
def progress_bar(what: str, quiet: bool) -> Iterator[Callable[[int, int], None] | None]:
    """A bar that appears with the first report of progress, on a terminal alone."""
    if quiet or not sys.stderr.isatty():
        yield None
        return
    from rich.console import Console
    from rich.progress import Progress

    with Progress(console=Console(stderr=True), transient=True) as bar:
        task = bar.add_task(what, total=None, visible=False)
        yield lambda done, total: bar.update(task, completed=done, total=total, visible=True)


def show(rows: dict[str, str]) -> None:
    """Print facts, one a line, with their names."""
    for key, value in rows.items():
        typer.echo(f"{key:>14}  {value}")
