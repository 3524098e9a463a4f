"""The command line. Heavy imports happen inside the commands, so that `--help` answers at once."""

import json
import os
import sys
from contextlib import contextmanager
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator

    from trainpool.record import Summary

__all__ = ["app", "main"]

app = typer.Typer(
    help="Train PyTorch networks on computers you do not control.",
    no_args_is_help=True,
    add_completion=False,
    pretty_exceptions_enable=False,
    rich_markup_mode=None,
)

Debug = Annotated[bool, typer.Option("--debug", help="Show the traceback of an error.")]
Json = Annotated[
    bool, typer.Option("--json", help="Print the summary as JSON on standard output, and nothing else there.")
]
Quiet = Annotated[bool, typer.Option("--quiet", "-q", help="Show no progress.")]


@contextmanager
def polite(debug: bool) -> "Iterator[None]":
    """Errors as one line and exit code 2; Ctrl+C as exit code 130."""
    from trainpool.errors import TrainpoolError

    try:
        yield
    except TrainpoolError as error:
        if debug:
            raise
        typer.secho(f"trainpool: {error}", fg="red", err=True)
        raise typer.Exit(2) from error
    except KeyboardInterrupt:
        raise typer.Exit(130) from None


@app.callback(invoke_without_command=True)
def root(version: Annotated[bool, typer.Option("--version", help="Print the version.")] = False) -> None:
    """Options of the program as a whole."""
    if version:
        from trainpool import __version__

        typer.echo(f"trainpool {__version__}")
        raise typer.Exit


@app.command(
    epilog="Example: trainpool train --data fashion-mnist --model cnn --strategy downpour --workers 2 --out runs/a"
)
def train(
    experiment: Annotated[
        str | None, typer.Argument(help="Your own experiment, as file.py:name; without it, --data and --model.")
    ] = None,
    data: Annotated[
        str, typer.Option(help="fashion-mnist, digits, or a folder of images (class/name.png).")
    ] = "fashion-mnist",
    model: Annotated[str, typer.Option(help="cnn, resnet20, mlp or logistic.")] = "cnn",
    loss: Annotated[str, typer.Option(help="cross-entropy, half-squared-error or mse.")] = "cross-entropy",
    norm: Annotated[str | None, typer.Option(help="Of resnet20: group or batch.")] = None,
    strategy: Annotated[
        str, typer.Option(help="How updates are merged; `trainpool strategies` lists them.")
    ] = "parallel-sgd",
    settings: Annotated[
        list[str] | None, typer.Option("--set", help="A setting of the strategy, as name=value; may be repeated.")
    ] = None,
    workers: Annotated[int, typer.Option(help="Worker processes; 0 is one a core.")] = 0,
    threads: Annotated[int, typer.Option(help="Threads a worker; 0 divides the cores.")] = 0,
    device: Annotated[str, typer.Option(help="auto, cpu, cuda or cuda:1.")] = "auto",
    epochs: Annotated[float, typer.Option(help="Passes over the training data.")] = 3,
    learning_rate: Annotated[float | None, typer.Option("--learning-rate", "--lr", help="Peak learning rate.")] = None,
    batch_size: Annotated[int | None, typer.Option(help="Samples a step; 0 is the whole shard.")] = None,
    recipe: Annotated[
        list[str] | None,
        typer.Option(
            help="Another setting of the recipe, as name=value; may be repeated: optimizer, momentum, nesterov, "
            "weight_decay, clip_norm, schedule, warmup, precision."
        ),
    ] = None,
    shards: Annotated[int, typer.Option(help="Pieces that the data are cut into; 0 leaves it to the strategy.")] = 0,
    skew: Annotated[
        float | None, typer.Option(help="Cut shards whose labels differ: a Dirichlet parameter; 0.1 differs much.")
    ] = None,
    evaluate_every: Annotated[float, typer.Option(help="Passes between evaluations; 0 is at the end alone.")] = 0.5,
    seed: Annotated[int, typer.Option(help="Of the model's start, the shards and the order of samples.")] = 0,
    out: Annotated[
        Path | None, typer.Option(help="The run's folder; by default runs/ and the next free number.")
    ] = None,
    cache: Annotated[Path | None, typer.Option(help="Where data and shards are kept between runs.")] = None,
    tensorboard: Annotated[bool, typer.Option("--tensorboard", help="Write TensorBoard files too.")] = False,
    keep_journal: Annotated[bool, typer.Option("--keep-journal", help="Keep every update, for replay.")] = False,
    as_json: Json = False,
    quiet: Quiet = False,
    debug: Debug = False,
) -> None:
    """Train a model and leave metrics, a plot and the model in a folder."""
    with polite(debug):
        from trainpool import strategies
        from trainpool.errors import ConfigError
        from trainpool.messages import Recipe

        method = strategies.build(strategy, pairs(settings, "--set"))
        options: dict[str, Any] = pairs(recipe, "--recipe")
        options |= {} if learning_rate is None else {"learning_rate": learning_rate}
        options |= {} if batch_size is None else {"batch_size": batch_size}
        chosen = converted(options, Recipe)
        needs_torch()
        from trainpool import training
        from trainpool.data import default_cache
        from trainpool.experiment import load_experiment, named_experiment
        from trainpool.pools.local import LocalPool

        place = cache or Path(os.environ.get("TRAINPOOL_CACHE") or default_cache())
        pool = LocalPool(workers, threads=threads, device=device)
        with progress_bar("reading data", quiet) as progress:
            if experiment is not None:
                what = load_experiment(experiment)
            else:
                extra = {} if norm is None else {"norm": norm}
                if extra and model != "resnet20":
                    raise ConfigError("--norm is an option of resnet20 alone")
                what = named_experiment(
                    data, model, cache=place, seed=seed, loss=loss, options=extra, progress=progress
                )
        folder = out or next_folder(Path("runs"))
        with progress_bar("cutting shards", quiet) as progress:
            prepared = training.begin(
                what,
                strategy=method,
                recipe=chosen,
                pool=pool,
                epochs=epochs,
                seed=seed,
                out=folder,
                shards=shards,
                skew=skew,
                evaluate_every=evaluate_every,
                cache=place,
                tensorboard=tensorboard,
                keep_journal=keep_journal,
                source=experiment or "",
                data="" if experiment else data,
                progress=progress,
            )
        outcome(lambda: training.carry_on(prepared, quiet=quiet).summary, folder, as_json)


@app.command()
def resume(
    run: Annotated[Path, typer.Argument(help="The run's folder.")],
    workers: Annotated[int, typer.Option(help="Worker processes now; 0 is as many as before.")] = 0,
    as_json: Json = False,
    quiet: Quiet = False,
    debug: Debug = False,
) -> None:
    """Continue a run after Ctrl+C, kill -9 or a power cut."""
    with polite(debug):
        needs_torch()
        from trainpool import training

        outcome(lambda: training.resume(run, workers=workers, quiet=quiet).summary, run, as_json)


@app.command()
def strategies(
    name: Annotated[str | None, typer.Argument(help="Show this one alone, in full.")] = None, debug: Debug = False
) -> None:
    """List every method: what it is, its publication, its settings with their defaults."""
    with polite(debug):
        import inspect

        from trainpool import strategies as methods
        from trainpool.errors import ConfigError, did_you_mean

        kinds = methods.discover()
        if name is not None and name not in kinds:
            raise ConfigError(f"no strategy {name!r}{did_you_mean(name, kinds)}; there are {', '.join(kinds)}")
        for key, kind in kinds.items() if name is None else [(name, kinds[name])]:
            timing = "asynchronous" if kind.asynchronous else "synchronous"
            typer.secho(f"{key}  ", bold=True, nl=False)
            typer.echo(f"{(kind.__doc__ or '').strip().splitlines()[0]}  ({timing})")
            typer.echo(f"    {methods.citation(kind)}")
            for setting, (default, text) in methods.settings(kind).items():
                typer.echo(f"    --set {setting}={default}  {text}")
            if name is not None:
                typer.echo(f"\n{inspect.cleandoc(inspect.getmodule(kind).__doc__ or '')}")
            typer.echo()


def outcome(work: "Callable[[], Summary]", folder: Path, as_json: bool) -> None:
    """Do the training and say how it ended."""
    try:
        summary = work()
    except KeyboardInterrupt:
        typer.secho(f"Stopped; everything accepted is saved. Continue with: trainpool resume {folder}", err=True)
        raise
    if as_json:
        typer.echo(json.dumps(summary))
        return
    from trainpool.display import duration

    s, accuracy = summary, summary["test_accuracy"]
    rows = {
        "test accuracy": "not measured" if accuracy is None else f"{accuracy:.2%}",
        "samples": f"{s['samples']:,} in {duration(s['seconds'])}: {s['samples_per_second']:,.0f} a second",
        "updates": f"{s['updates']:,} merged, {s['rejected']} rejected, mean staleness {s['staleness']:g}",
        "traffic": f"{s['bytes_down'] / 1e6:,.0f} MB to workers, {s['bytes_up'] / 1e6:,.0f} MB back",
        "files": f"{folder}: model.safetensors, curve.png, metrics.jsonl, summary.json",
    }
    for key, value in rows.items():
        typer.echo(f"{key:>14}  {value}")


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


def converted(options: dict[str, Any], kind: type[Any]) -> Any:
    """Strings as a recipe's values."""
    import msgspec

    from trainpool.errors import ConfigError

    try:
        return msgspec.convert(options, kind, strict=False)
    except msgspec.ValidationError as error:
        raise ConfigError(f"the recipe: {error}") from error


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
def progress_bar(what: str, quiet: bool) -> "Iterator[Callable[[int, int], None] | None]":
    """A bar that appears with the first report of progress, on a terminal alone."""
    if quiet or not sys.stderr.isatty():
        yield None
        return
    from rich.console import Console
    from rich.progress import Progress

    with Progress(console=Console(stderr=True), transient=True) as bar:
        task = bar.add_task(what, total=None, visible=False)
        yield lambda done, total: bar.update(task, completed=done, total=total, visible=True)


def main() -> None:
    """The entry point of the `trainpool` program."""
    app()


if __name__ == "__main__":
    main()
