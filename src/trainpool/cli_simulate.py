"""The commands that train on simulated machines: one method (`simulate`), or several against each other (`compare`)."""

import json
from collections.abc import Iterable
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from trainpool import cli_options as options
from trainpool.cli_options import polite

if TYPE_CHECKING:
    from trainpool.machines import Machines
    from trainpool.question import Question

__all__ = ["compare", "simulate"]

Workers = Annotated[int, typer.Option(help="Simulated machines.")]
Spread = Annotated[float, typer.Option(help="The fastest machine's speed over the slowest one's.")]
Speed = Annotated[float, typer.Option(help="Samples a second of the fastest machine.")]
Churn = Annotated[float, typer.Option(help="Part of the time that a machine is away, 0 to below 1.")]
Session = Annotated[float, typer.Option(help="Mean seconds of a stay, where there is churn.")]
Crash = Annotated[float, typer.Option(help="Part of the departures without a word, in mid-task.")]
Bandwidth = Annotated[
    str | None, typer.Option(metavar="UP:DOWN", help="Of every machine, in Mbit/s, as 20:100; else transfers are free.")
]
Latency = Annotated[float, typer.Option(help="Seconds that a message takes besides its bytes.")]
Hidden = Annotated[float, typer.Option(help="Part of the time that a browser tab is hidden and slower.")]
Slowdown = Annotated[float, typer.Option(help="How many times slower it then is.")]
Lost = Annotated[float, typer.Option(help="Part of the answers that never arrive.")]
Duplicated = Annotated[float, typer.Option(help="Part of the answers that arrive twice.")]
Trace = Annotated[
    Path | None,
    typer.Option(help="A CSV file of who is there when (worker,time,event,value), in place of workers and spread."),
]
FleetSeed = Annotated[
    int, typer.Option(min=0, max=options.LARGEST_SEED, help="Of the machines' speeds and departures.")
]

MACHINES = (
    *("workers", "spread", "speed", "churn", "session", "crash", "latency", "hidden", "slowdown"),
    *("lost", "duplicated"),
)
"""The fields of `trainpool.machines.Machines` that are an option each, as it is."""

MOST_SEEDS = 1000
"""That are run without being named."""
PLACES = {
    "strategies": "methods.",
    "rate": "rates",
    "batch_size": "recipe.batch_size",
    "recipe": "recipe.",
    "fleet_seed": "machines.seed",
    **{name: f"machines.{name}" for name in (*MACHINES, "bandwidth", "trace")},
}
"""Where the options of `compare` are in a question, as far as their names differ."""


def simulate(
    context: typer.Context,
    experiment: options.ExperimentPlace = None,
    data: options.Data = "fashion-mnist",
    model: options.Model = "cnn",
    loss: options.Loss = "cross-entropy",
    norm: options.Norm = None,
    strategy: options.StrategyName = "auto",
    settings: options.Settings = None,
    workers: Workers = 16,
    spread: Spread = 8.0,
    speed: Speed = 1000.0,
    churn: Churn = 0.0,
    session: Session = 60.0,
    crash: Crash = 0.5,
    bandwidth: Bandwidth = None,
    latency: Latency = 0.0,
    hidden: Hidden = 0.0,
    slowdown: Slowdown = 10.0,
    lost: Lost = 0.0,
    duplicated: Duplicated = 0.0,
    trace: Trace = None,
    fleet_seed: FleetSeed = 0,
    target: Annotated[float | None, typer.Option(help="Also say when this test accuracy, 0 to 1, was reached.")] = None,
    epochs: options.Epochs = 3,
    learning_rate: options.LearningRate = None,
    batch_size: options.BatchSize = None,
    recipe: options.RecipeItems = None,
    shards: options.Shards = 0,
    skew: options.Skew = None,
    evaluate_every: options.EvaluateEvery = 0.1,
    recalibrate: options.Recalibrate = 0,
    task_seconds: options.TaskSeconds = None,
    max_staleness: options.MaxStaleness = None,
    seed: options.Seed = 0,
    out: Annotated[
        Path | None, typer.Option(help="The run's folder; by default runs/ and the next free number.")
    ] = None,
    cache: options.Cache = None,
    keep_journal: Annotated[bool, typer.Option("--keep-journal", help="Keep every update, for replay.")] = False,
    timing: Annotated[
        bool,
        typer.Option("--timing", help="Train nothing: only say how long it would take, and its traffic and waste."),
    ] = False,
    processes: Annotated[int, typer.Option(help="That really train; 0 is one a core. They change no result.")] = 0,
    as_json: options.Json = False,
    quiet: options.Quiet = False,
    debug: options.Debug = False,
) -> None:
    """Really train with one method on simulated machines that are unequal and unreliable.

    The machines' time is simulated, the training is real: the result is the model, the time and the traffic that this
    method would need on such machines. With --timing nothing is trained: 100,000 machines then take seconds.
    """
    with polite(debug):
        from trainpool import auto
        from trainpool.errors import ConfigError

        options.finite(context.params)
        method = auto.named(strategy, options.pairs(settings, "--set"))
        chosen = options.recipe_of(recipe, learning_rate, batch_size)
        if target is not None and not 0 < target < 1:
            raise ConfigError(f"the target is an accuracy between 0 and 1, such as 0.88, not {target:g}")
        machines = machines_of(context)
        fleet = machines.fleet(seed)
        pace = options.pace_of(task_seconds, max_staleness)
        if timing and (unused := {"out", "target", "keep_journal", "skew"} & set(explicit(context))):
            raise ConfigError(f"--timing trains nothing: leave out --{sorted(unused)[0].replace('_', '-')}")
        options.needs_torch()
        from trainpool import simulation, training
        from trainpool.pools.simulated import SimulatedPool

        place = options.cache_of(cache)
        pool = SimulatedPool(fleet, processes=processes)
        what = options.experiment_of(experiment, data, model, loss, norm, seed, place, quiet)
        if timing:
            found = simulation.schedule(what, method, chosen, pace, fleet, epochs=epochs, shards=shards, seed=seed)
            if as_json:
                typer.echo(json.dumps(found))
            else:
                options.show(simulation.schedule_words(found))
            return
        folder = out or options.next_folder(Path("runs"))
        with options.progress_bar("cutting shards", quiet) as progress:
            prepared = training.begin(
                what,
                strategy=method,
                recipe=chosen,
                pool=pool,
                pace=pace,
                epochs=epochs,
                seed=seed,
                out=folder,
                shards=shards,
                skew=skew,
                evaluate_every=evaluate_every,
                recalibrate=recalibrate,
                cache=place,
                keep_journal=keep_journal,
                source=experiment or "",
                data="" if experiment else data,
                progress=progress,
            )
        try:
            result = training.carry_on(prepared, quiet=quiet)
        except KeyboardInterrupt:
            typer.secho(
                f"Stopped; {folder} keeps the metrics so far. A simulation cannot be continued: simulate anew, with "
                "another --out or after removing the folder",
                err=True,
            )
            raise
        found = simulation.finish(folder, result.summary, result.history, machines, pool, target)
        if as_json:
            typer.echo(json.dumps(found))
        else:
            options.show(simulation.words(folder, found))


def compare(
    context: typer.Context,
    experiment: options.ExperimentPlace = None,
    data: options.Data = "fashion-mnist",
    model: options.Model = "cnn",
    loss: options.Loss = "cross-entropy",
    norm: options.Norm = None,
    strategies: Annotated[
        str | None,
        typer.Option(help="Which, with commas; one with settings is name:key=value:key=value. All, where left out."),
    ] = None,
    workers: Workers = 16,
    spread: Spread = 8.0,
    speed: Speed = 1000.0,
    churn: Churn = 0.0,
    session: Session = 60.0,
    crash: Crash = 0.5,
    bandwidth: Bandwidth = None,
    latency: Latency = 0.0,
    hidden: Hidden = 0.0,
    slowdown: Slowdown = 10.0,
    lost: Lost = 0.0,
    duplicated: Duplicated = 0.0,
    trace: Trace = None,
    fleet_seed: FleetSeed = 0,
    target: Annotated[float, typer.Option(help="The test accuracy, 0 to 1, that is to be reached soon.")] = 0.88,
    epochs: Annotated[float, typer.Option(help="Passes over the training data: the budget of every training.")] = 3,
    seeds: Annotated[str, typer.Option(help="How many, or which, with commas.")] = "3",
    rates: Annotated[
        str,
        typer.Option(
            help="Peak learning rates; each method takes its best, found with the first seed. Where that is the lowest "
            "or the highest, half or twice of it is tried too, at most twice each way."
        ),
    ] = "0.05,0.1,0.2",
    rate: Annotated[float | None, typer.Option(help="One learning rate for all methods: no tuning.")] = None,
    batch_size: options.BatchSize = None,
    recipe: options.RecipeItems = None,
    shards: options.Shards = 0,
    skew: options.Skew = None,
    evaluate_every: Annotated[
        float, typer.Option(help="Passes between evaluations: how finely the time to the target is known.")
    ] = 0.1,
    recalibrate: options.Recalibrate = 0,
    task_seconds: options.TaskSeconds = None,
    max_staleness: options.MaxStaleness = None,
    out: Annotated[
        Path | None,
        typer.Option(help="The comparison's folder, new or to be continued; by default runs/ and a number."),
    ] = None,
    cache: options.Cache = None,
    processes: Annotated[int, typer.Option(help="Trainings at the same time; 0 is one a core.")] = 0,
    as_json: Annotated[
        bool, typer.Option("--json", help="Print results.json on standard output, and nothing else there.")
    ] = False,
    quiet: options.Quiet = False,
    debug: options.Debug = False,
) -> None:
    """Which method reaches an accuracy soonest on machines like yours, and what does it cost in traffic?

    Every method is really trained on the same simulated machines, with the same budget and its own best learning rate,
    and measured against plain SGD on the fastest machine alone. A table is printed; report.html in the folder has
    plots, results.json all numbers. Every finished training is kept: the same command continues after Ctrl+C, and so
    does `trainpool compare --out FOLDER` alone.
    """
    with polite(debug):
        options.finite(context.params)
        options.needs_torch()
        from trainpool.compare import QUESTION, RESULTS, check, read_question
        from trainpool.compare import compare as answer
        from trainpool.question import differences

        folder = out or options.next_folder(Path("runs"))
        asked = read_question(folder)
        question = question_of(context)
        if asked is not None:
            given = tuple(PLACES.get(name, name) for name in explicit(context))
            changed = {key for key in differences(asked, question) if key.startswith(given)}
            if changed:
                check(folder, question, changed)
            question = asked
        from trainpool.screen import Screen, print_results

        with Screen(quiet) as screen:
            try:
                found = answer(question, folder, cache=options.cache_of(cache), follower=screen, processes=processes)
            except KeyboardInterrupt:
                begun = (folder / QUESTION).exists()
                kept = f"what is finished is kept. Continue with: trainpool compare --out {folder}"
                screen.say(f"Stopped; {kept if begun else 'nothing was begun yet: repeat the command.'}")
                raise
        if as_json:
            typer.echo((folder / RESULTS).read_text())
        else:
            print_results(found, folder)


def explicit(context: typer.Context) -> Iterable[str]:
    """The options that were given, not left at their defaults."""
    return [name for name in context.params if getattr(context.get_parameter_source(name), "name", "") != "DEFAULT"]


def machines_of(context: typer.Context) -> "Machines":
    """The machines that the options describe."""
    from trainpool.machines import Machines

    given = dict(context.params)
    if given["trace"] is not None:  # the file says how many there are and how fast
        kept = explicit(context)
        given |= {name: value for name, value in {"workers": 0, "spread": 1.0}.items() if name not in kept}
    return Machines(
        bandwidth=megabits(given["bandwidth"]),
        trace="" if given["trace"] is None else str(Path(given["trace"]).resolve()),
        seed=given["fleet_seed"],
        **{name: given[name] for name in MACHINES},
    )


def megabits(text: str | None) -> tuple[float, float] | None:
    """`20:100` in Mbit/s as bits a second, up and down."""
    from trainpool.errors import ConfigError

    if text is None:
        return None
    try:
        up, down = (1e6 * float(part) for part in text.split(":"))
    except ValueError:
        raise ConfigError(f"--bandwidth takes UP:DOWN in Mbit/s, as 20:100, not {text!r}") from None
    return up, down


def numbers(text: str, option: str, kind: type[int] | type[float]) -> tuple[Any, ...]:
    """Numbers with commas between them."""
    from trainpool.errors import ConfigError

    try:
        return tuple(kind(part) for part in text.split(",") if part.strip())
    except ValueError:
        raise ConfigError(f"{option} takes numbers with commas between them, not {text!r}") from None


def question_of(context: typer.Context) -> "Question":
    """The question that the options of `compare` ask."""
    from trainpool import strategies
    from trainpool.auto import AUTO
    from trainpool.errors import ConfigError
    from trainpool.question import Method, Question
    from trainpool.results import REFERENCE

    given = context.params
    names = (given["strategies"] or ",".join([AUTO, *strategies.discover()])).split(",")
    methods = tuple(Method.parse(name) for name in names if name.strip() and name.strip() != REFERENCE)
    if given["rate"] is not None and "rates" in explicit(context):
        raise ConfigError("give --rate for one learning rate, or --rates for several to choose from")
    seeds = numbers(given["seeds"], "--seeds", int)
    if len(seeds) == 1 and "," not in given["seeds"]:
        if seeds[0] > MOST_SEEDS:
            raise ConfigError(f"--seeds {seeds[0]} is how many; one seed of that number is --seeds {seeds[0]},")
        seeds = tuple(range(seeds[0]))
    if given["norm"] is not None and (given["experiment"] or given["model"] != "resnet20"):
        raise ConfigError("--norm is an option of resnet20 alone")
    place = given["experiment"] or ""
    if place:
        file, _, name = place.rpartition(":")
        place = f"{Path(file).resolve()}:{name}"
    folder = not place and Path(given["data"]).is_dir()
    same = (
        *("target", "epochs", "skew", "shards", "evaluate_every", "recalibrate", "model", "loss", "norm"),
        *("task_seconds", "max_staleness"),
    )
    return Question(
        methods=methods,
        machines=machines_of(context),
        seeds=seeds,
        rates=numbers(given["rates"], "--rates", float) if given["rate"] is None else (given["rate"],),
        recipe=options.recipe_of(given["recipe"], None, given["batch_size"]),
        experiment=place,
        data=str(Path(given["data"]).resolve()) if folder else given["data"],
        **{name: given[name] for name in same},
    )
