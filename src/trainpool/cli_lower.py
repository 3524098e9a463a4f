"""`trainpool lower`: from an experiment to a program."""

from pathlib import Path
from typing import Annotated

import typer

from trainpool import cli_options as options
from trainpool.cli_options import polite

__all__ = ["lower"]


def lower(
    experiment: options.ExperimentPlace = None,
    data: options.Data = "fashion-mnist",
    model: options.Model = "cnn",
    loss: options.Loss = "cross-entropy",
    norm: options.Norm = None,
    learning_rate: options.LearningRate = None,
    batch_size: options.BatchSize = None,
    recipe: options.RecipeItems = None,
    proximal: Annotated[
        bool, typer.Option(help="Whether tasks may have a proximal term (ADMM, EASGD, FedProx).")
    ] = True,
    seed: options.Seed = 0,
    out: Annotated[Path, typer.Option(help="The program's folder.")] = Path("program"),
    cache: options.Cache = None,
    quiet: options.Quiet = False,
    debug: options.Debug = False,
) -> None:
    """Make a program: a training step as data, for workers without PyTorch."""
    with polite(debug):
        chosen = options.recipe_of(recipe, learning_rate, batch_size)
        options.needs_torch()
        from trainpool.lowering import lower as lowered_of

        what = options.experiment_of(experiment, data, model, loss, norm, seed, options.cache_of(cache), quiet)
        made = lowered_of(what, chosen, proximal=proximal, steps=10)
        made.save(out)
        found, files = made.comparison, made.files
        ratio = found.torch_seconds / found.seconds
        options.show(
            {
                "operators": ", ".join(made.program.operators),
                "nodes": f"{made.nodes:,} in a training step",
                "size": f"{sum(len(data) for data in files.values()) / 1e3:,.0f} kB",
                "noise": f"{len(made.program.noise)} random inputs a step",
                "step": f"{found.seconds * 1e3:.1f} ms; PyTorch {found.torch_seconds * 1e3:.1f} ms: {ratio:.2f} times "
                "its speed, on one thread",
                "difference": f"{found.update:.1e} of the update after {found.steps} steps, {found.evaluation:.1e} of "
                "the loss of an evaluation",
                "name": made.loaded.name,
                "files": f"{out}: {', '.join(['program.json', *files])}",
            }
        )
