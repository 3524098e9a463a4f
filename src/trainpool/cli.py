"""The command line. Heavy imports happen inside the commands, so that `--help` answers at once."""

import json
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from trainpool import cli_options as options
from trainpool.cli_lower import lower
from trainpool.cli_options import polite
from trainpool.cli_simulate import compare, simulate

if TYPE_CHECKING:
    from collections.abc import Callable

    from trainpool.record import Summary

__all__ = ["app", "main"]

app = typer.Typer(
    help="Train PyTorch networks on computers you do not control.",
    no_args_is_help=True,
    add_completion=False,
    pretty_exceptions_enable=False,
    rich_markup_mode=None,
)


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
    experiment: options.ExperimentPlace = None,
    data: options.Data = "fashion-mnist",
    model: options.Model = "cnn",
    loss: options.Loss = "cross-entropy",
    norm: options.Norm = None,
    strategy: options.StrategyName = "auto",
    settings: options.Settings = None,
    workers: Annotated[int, typer.Option(help="Worker processes; 0 is one a core.")] = 0,
    threads: Annotated[int, typer.Option(help="Threads a worker; 0 divides the cores.")] = 0,
    device: Annotated[str, typer.Option(help="auto, cpu, cuda or cuda:1.")] = "auto",
    epochs: options.Epochs = 3,
    learning_rate: options.LearningRate = None,
    batch_size: options.BatchSize = None,
    recipe: options.RecipeItems = None,
    shards: options.Shards = 0,
    skew: options.Skew = None,
    evaluate_every: options.EvaluateEvery = 0.5,
    recalibrate: options.Recalibrate = 0,
    task_seconds: options.TaskSeconds = None,
    max_staleness: options.MaxStaleness = None,
    seed: options.Seed = 0,
    out: Annotated[
        Path | None, typer.Option(help="The run's folder; by default runs/ and the next free number.")
    ] = None,
    cache: options.Cache = None,
    tensorboard: Annotated[bool, typer.Option("--tensorboard", help="Write TensorBoard files too.")] = False,
    keep_journal: Annotated[bool, typer.Option("--keep-journal", help="Keep every update, for replay.")] = False,
    kernel: Annotated[
        str, typer.Option(help="torch, or onnx: workers run the lowered program, without PyTorch.")
    ] = "torch",
    as_json: options.Json = False,
    quiet: options.Quiet = False,
    debug: options.Debug = False,
) -> None:
    """Train a model and leave metrics, a plot and the model in a folder."""
    with polite(debug):
        from trainpool import auto

        method = auto.named(strategy, options.pairs(settings, "--set"))
        chosen = options.recipe_of(recipe, learning_rate, batch_size)
        options.needs_torch()
        from trainpool import training
        from trainpool.pools.local import LocalPool

        place = options.cache_of(cache)
        pool = LocalPool(workers, threads=threads, device=device)
        what = options.experiment_of(experiment, data, model, loss, norm, seed, place, quiet)
        folder = out or options.next_folder(Path("runs"))
        with options.progress_bar("cutting shards", quiet) as progress:
            prepared = training.begin(
                what,
                strategy=method,
                recipe=chosen,
                pool=pool,
                pace=options.pace_of(task_seconds, max_staleness),
                epochs=epochs,
                seed=seed,
                out=folder,
                shards=shards,
                skew=skew,
                evaluate_every=evaluate_every,
                recalibrate=recalibrate,
                cache=place,
                tensorboard=tensorboard,
                keep_journal=keep_journal,
                kernel=options.kernel_of(kernel),
                source=experiment or "",
                data="" if experiment else data,
                progress=progress,
            )
        outcome(lambda: training.carry_on(prepared, quiet=quiet).summary, folder, as_json)


@app.command()
def resume(
    run: Annotated[Path, typer.Argument(help="The run's folder.")],
    workers: Annotated[int, typer.Option(help="Worker processes now; 0 is as many as before.")] = 0,
    device: Annotated[str, typer.Option(help="auto, cpu, cuda or cuda:1; by default as before.")] = "",
    as_json: options.Json = False,
    quiet: options.Quiet = False,
    debug: options.Debug = False,
) -> None:
    """Continue a run after Ctrl+C, kill -9 or a power cut."""
    with polite(debug):
        options.needs_torch()
        from trainpool import training

        outcome(lambda: training.resume(run, workers=workers, device=device, quiet=quiet).summary, run, as_json)


app.command(epilog="Example: trainpool lower --data fashion-mnist --model cnn --out program")(lower)
app.command(
    epilog="Example: trainpool simulate --data fashion-mnist --model cnn --strategy downpour --workers 32 --spread 10 "
    "--churn 0.2 --bandwidth 20:100 --out runs/s"
)(simulate)
app.command(
    epilog="Example: trainpool compare --strategies parallel-sgd,diloco,fedbuff:buffer=8 --workers 16 --spread 8 "
    "--target 0.88 --out runs/compare. After Ctrl+C: trainpool compare --out runs/compare"
)(compare)


@app.command()
def strategies(
    name: Annotated[str | None, typer.Argument(help="Show this one alone, in full.")] = None,
    debug: options.Debug = False,
) -> None:
    """List every method: what it is, its publication, its settings with their defaults."""
    with polite(debug):
        import inspect

        from trainpool import auto
        from trainpool import strategies as methods
        from trainpool.errors import ConfigError, did_you_mean

        if name in (None, auto.AUTO):
            typer.secho(f"{auto.AUTO}  ", bold=True, nl=False)
            text = inspect.cleandoc(auto.__doc__ or "").partition(": ")[2]
            short = "Serial for one machine, else DiLoCo with settings that follow the machines"
            typer.echo(f"Chooses t{text[1:]}" if name else f"{short}: trainpool strategies auto has the rule.\n")
        if name == auto.AUTO:
            return
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
    from trainpool.tables import measured

    s = summary
    rows = {
        **measured(s["test_accuracy"], s["test_loss"]),
        "samples": f"{s['samples']:,} in {duration(s['seconds'])}: {s['samples_per_second']:,.0f} a second",
        "updates": f"{s['updates']:,} merged, {s['rejected']} rejected, mean staleness {s['staleness']:g}",
        "traffic": f"{s['bytes_down'] / 1e6:,.0f} MB to workers, {s['bytes_up'] / 1e6:,.0f} MB back",
        "files": f"{folder}: model.safetensors, curve.png, metrics.jsonl, summary.json",
    }
    options.show(rows)


def main() -> None:
    """The entry point of the `trainpool` program."""
    app()


if __name__ == "__main__":
    main()
