"""Train an experiment on a pool, or continue a run."""

import copy
import signal
import tempfile
import threading
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass, replace
from pathlib import Path
from types import FrameType
from typing import TYPE_CHECKING, Any, Literal

import cloudpickle
import msgspec
import numpy as np
import safetensors.torch
import torch
from torch import nn

from trainpool import auto, wire
from trainpool.auto import AUTO
from trainpool.config import Config, advice, check_data, code_of, pace_settings, read_config, same_strategy
from trainpool.coordinator import Coordinator
from trainpool.data import ImageFolderSource, default_cache, prepare, whole
from trainpool.data.shards import load as load_shard
from trainpool.data.shards import peek
from trainpool.display import Display
from trainpool.drive import Drive, Moment, Observer
from trainpool.errors import ConfigError, DataError, RunError
from trainpool.events import Accepted, Rejected, Restarted
from trainpool.experiment import Experiment, importable
from trainpool.journal import Journal, disk
from trainpool.kernels.protocol import Calibration, Evaluation
from trainpool.kernels.torch import check_device, dtype_of, layout_of, trained_tensors, vector_of
from trainpool.messages import Recipe
from trainpool.pace import Pace
from trainpool.pools.local import LocalPool
from trainpool.pools.protocol import Job, Pool
from trainpool.record import Record, Recorder, Summary, check_tensorboard
from trainpool.strategies import AnyStrategy, Plan, name_of
from trainpool.vector import Layout, Vector

if TYPE_CHECKING:
    from trainpool.lowering import Lowered

__all__ = ["Config", "Result", "Run", "begin", "carry_on", "resume", "train"]

Progress = Callable[[int, int], None]

PROGRAM = "program.pkl"
"""The author's model, loss and preprocessing, in the run's folder."""
LOWERED = "program"
"""The lowered program's folder, in the run's folder."""
MOST_EPOCHS = 1e9
"""Larger numbers of passes are taken for a mistake: numbers of steps would not be exact."""


@dataclass(frozen=True)
class Result:
    """A run's outcome."""

    model: nn.Module
    """The author's model with the trained parameters."""
    history: list[Record]
    """Every evaluation, the earliest first."""
    parameters: Vector
    """Parameters and buffers as one flat vector: `[size]`."""
    summary: Summary
    folder: Path | None
    """Where the run's files are; None where `out` was not given."""


@dataclass(frozen=True)
class Run:
    """A run that is ready to go on: its folder, what it is, and what it needs. Its journal says where it stands."""

    home: Path
    config: Config
    strategy: AnyStrategy
    pool: Pool
    model: nn.Module


def train(experiment: Experiment, *, out: str | Path | None = None, quiet: bool = False, **options: Any) -> Result:
    """Train an experiment; its model is trained in place.

    Args:
        experiment: model, data and loss.
        out: the run's folder, which must not exist; without one nothing is kept but the result.
        quiet: show nothing.
        **options: of `begin`: strategy, recipe, pool, pace, epochs, seed, shards, skew, evaluate_every, recalibrate,
            cache, tensorboard, keep_journal, kernel.

    Raises:
        TrainpoolError: one line that says what is wrong and what to do.
        KeyboardInterrupt: after Ctrl+C; all is saved in `out`, where there is one.
    """
    if out is not None:
        return carry_on(begin(experiment, out=out, **options), quiet=quiet)
    with tempfile.TemporaryDirectory(prefix="trainpool-", ignore_cleanup_errors=True) as folder:
        return replace(carry_on(begin(experiment, out=folder, **options), quiet=quiet), folder=None)


def begin(
    experiment: Experiment,
    *,
    out: str | Path,
    strategy: AnyStrategy | str = AUTO,
    recipe: Recipe | None = None,
    pool: Pool | None = None,
    pace: Pace | None = None,
    epochs: float = 3,
    seed: int = 0,
    shards: int = 0,
    skew: float | None = None,
    evaluate_every: float = 0.5,
    recalibrate: int = 0,
    cache: str | Path | None = None,
    tensorboard: bool = False,
    keep_journal: bool = False,
    kernel: Literal["torch", "onnx"] = "torch",
    source: str = "",
    data: str = "",
    progress: Progress | None = None,
) -> Run:
    """Check everything, cut the data into shards and make the run's folder.

    Args:
        experiment: model, data and loss.
        out: the run's folder; it must be empty or not exist.
        strategy: how updates are merged: an instance, or a name with default settings; `auto` chooses what suits the
            pool, see `trainpool.auto`.
        recipe: what a worker does with a task; `Recipe()` by default.
        pool: where workers run; one process a core by default.
        pace: how long tasks of free length take, when answers are late, and how stale they may be; its settings are
            kept, what it measured is not.
        epochs: passes over the training data.
        seed: of the shards and of every batch's order. The model's first parameters are the caller's.
        shards: how many the data are cut into; 0 leaves it to the strategy.
        skew: cut shards whose labels differ, by a Dirichlet distribution with this parameter; smaller differs more.
        evaluate_every: passes over the data between evaluations; 0 evaluates at the end alone.
        recalibrate: batches of training data on which BatchNorm's statistics are measured anew before each evaluation,
            and for the final model; 0 keeps the merged ones.
        cache: the folder where shards are kept between runs; the user's cache folder by default.
        tensorboard: write TensorBoard files too.
        keep_journal: keep every update, so that `trainpool.journal.replay` can rebuild the run from its start.
        kernel: what runs the tasks: PyTorch, or ONNX Runtime with the lowered program, without PyTorch in the workers.
        source: the experiment's `file.py:name`, which `resume` then checks for changes.
        data: the data set's name, or the folder of images, likewise.
        progress: told (done, total) samples while data are cut into shards.

    Raises:
        TrainpoolError: one line that says what is wrong and what to do.
    """
    pool = pool or LocalPool()
    chosen, reason = recipe or Recipe(), ""
    method = auto.named(strategy) if isinstance(strategy, str) else strategy
    if source:
        file, _, name = source.rpartition(":")
        source = f"{Path(file).resolve()}:{name}"
    if not (0 < epochs <= MOST_EPOCHS and 0 <= evaluate_every <= MOST_EPOCHS) or min(shards, recalibrate) < 0:
        raise ConfigError(
            f"epochs ({epochs:g}) must be above 0, evaluate_every ({evaluate_every:g}), shards and recalibrate not "
            f"negative, and no number of passes above {MOST_EPOCHS:g}"
        )
    if not 0 <= seed < 2**63:
        raise ConfigError(f"the seed must be from 0 to 2**63 - 1, not {seed}")
    if tensorboard:
        check_tensorboard()
    if kernel == "torch" and isinstance(pool, LocalPool):
        check_device(pool.device)
    home = Path(out)
    with disk(home):
        if home.exists() and (
            not home.is_dir() or any(PROGRAM not in item.name and item.name != LOWERED for item in home.iterdir())
        ):
            raise RunError(f"{home} exists: {advice(home)}")
    train_source, test_source = experiment.sources()
    layout = layout_of(experiment.model)
    if isinstance(method, str):
        batch = chosen.batch_size or max(1, len(train_source) // pool.workers)
        choice = auto.choose(pool.conditions(batch), layout.size * dtype_of(experiment.model).itemsize)
        method, reason = choice.strategy, choice.reason
    place = default_cache() if cache is None else Path(cache)
    count = shards or min(method.shards(pool.workers), len(train_source))
    manifest, shard_folder = prepare(train_source, count, cache=place, seed=seed, skew=skew, progress=progress)
    test = whole(test_source, cache=place)[0] if test_source is not None else None
    sample = load_shard(shard_folder, manifest.shards[0].id)
    experiment.check(sample["x"], sample["y"], manifest.classes)
    if test is not None:
        experiment.check(*peek(shard_folder, test.shards[0].id), test.classes, test=True)
        if kernel == "onnx" and (test.dtype, test.shape) != (manifest.dtype, manifest.shape):
            raise DataError(
                f"a program takes samples of one type and shape, but the test data are {test.dtype} {test.shape} and "
                f"the training data {manifest.dtype} {manifest.shape}: make them alike, or leave the kernel at torch"
            )
    plan = Plan.of({shard.id: shard.samples for shard in manifest.shards}, chosen, epochs)
    method.init(vector_of(experiment.model)[: layout.trainable], plan)  # refuses bad settings
    parts = (
        copy.deepcopy(experiment.model).cpu(),
        experiment.loss_function(),
        experiment.preprocess,
        experiment.augment,
    )
    program = cloudpickle.dumps(parts)
    config = Config(
        name=experiment.name,
        strategy=name_of(method),
        settings=msgspec.to_builtins(method),
        reason=reason,
        recipe=chosen,
        epochs=epochs,
        seed=seed,
        workers=pool.workers,
        threads=pool.threads if isinstance(pool, LocalPool) else 0,
        device=pool.device if isinstance(pool, LocalPool) else "auto",
        evaluate_every=round(evaluate_every * manifest.samples) if test else -1,
        train=manifest,
        test=test,
        cache=str(place.resolve()),
        skew=skew,
        recalibrate=recalibrate,
        pace=pace_settings(pace or Pace()),
        tensorboard=tensorboard,
        keep_journal=keep_journal,
        kernel=kernel,
        virtual=pool.virtual,
        source=source,
        code=code_of(program, source, method),
        data=str(train_source.path.resolve()) if isinstance(train_source, ImageFolderSource) else data,
        fingerprint=train_source.fingerprint,
    )
    lowered = lowered_for(experiment, chosen, pool, recalibrate) if kernel == "onnx" else None
    with disk(home):
        home.mkdir(parents=True, exist_ok=True)
        if lowered is not None:
            lowered.save(home / LOWERED)
        wire.write(home / PROGRAM, program)
        # Last: with this file there is a run, which `resume` continues from any moment on.
        wire.write(home / "config.json", msgspec.json.format(msgspec.json.encode(config), indent=2))
    return Run(home, config, method, pool, experiment.model)


def lowered_for(experiment: Experiment, recipe: Recipe, pool: Pool, recalibrate: int) -> "Lowered":
    """The program of a run whose workers have no PyTorch.

    Raises:
        ConfigError: the run asks for what a program cannot do.
        LoweringError: nor can the model.
    """
    from trainpool.lowering import lower

    if pool.virtual:
        raise ConfigError("a simulated pool runs PyTorch: leave the kernel at torch")
    if recalibrate:
        raise ConfigError("the onnx kernel cannot measure BatchNorm's statistics anew: set recalibrate to 0")
    lowered = lower(experiment, recipe)
    lowered.check()
    return lowered


def resume(
    out: str | Path,
    *,
    strategy: AnyStrategy | None = None,
    pool: Pool | None = None,
    workers: int = 0,
    device: str = "",
    quiet: bool = False,
) -> Result:
    """Continue a run after Ctrl+C, a crash or a power cut, from the last accepted update.

    Args:
        out: the run's folder. It holds the author's code as a pickle: resume only your own.
        strategy: the run's strategy, needed only where it is not one of this package's.
        pool: where workers run now; by default, processes on this machine as before.
        workers: how many such processes; 0 means as many as before.
        device: where they compute, as `LocalPool` takes it; empty means as before.
        quiet: show nothing.

    Raises:
        ConfigError: there is no such device.
        RunError: there is no run, it is finished, or its code, data or settings have changed.
    """
    home = Path(out)
    config = read_config(home)
    strategy = same_strategy(home, config, strategy)
    check_data(config)
    if config.source:
        importable(Path(config.source.rpartition(":")[0]))
    try:
        # The author's own program, written by this machine's user when the run began.
        model = cloudpickle.loads((home / PROGRAM).read_bytes())[0]
    except (OSError, ImportError, AttributeError) as error:
        raise RunError(f"the run's code cannot be loaded, has it moved? {type(error).__name__}: {error}") from error
    pool = pool or LocalPool(workers or config.workers, threads=config.threads, device=device or config.device)
    if config.kernel == "torch" and isinstance(pool, LocalPool):
        check_device(pool.device)
    return carry_on(Run(home, config, strategy, pool, model), quiet=quiet)


def carry_on(run: Run, *, quiet: bool = False) -> Result:
    """Train until the end, from the start or from where the journal stands.

    Raises:
        RunError: it stopped, and why; what was accepted is kept.
        KeyboardInterrupt: after Ctrl+C, when all is saved.
    """
    home, config, pool, model = run.home, run.config, run.pool, run.model
    layout = layout_of(model)
    plan = Plan.of({shard.id: shard.samples for shard in config.train.shards}, config.recipe, config.epochs)
    coordinator = Coordinator(run.strategy, plan, layout, vector_of(model), seed=config.seed, pace=Pace(**config.pace))
    # A run on simulated time is not continued: it has a journal only where one is to be replayed.
    journal = Journal(home, keep=config.keep_journal) if config.keep_journal or not pool.virtual else None
    try:
        elapsed = 0.0
        if journal is None:
            pass
        elif not journal.begun:
            journal.snapshot(coordinator)
        else:
            elapsed = journal.recover(coordinator)
            journal.append(Restarted(), elapsed)
            coordinator.handle(Restarted(), elapsed)
        recorder = Recorder(home, tensorboard=config.tensorboard)
        observers: list[Observer] = [recorder]
        title = f"{config.name}: {config.strategy}, {pool.workers} worker{'s' if pool.workers > 1 else ''}"
        display = Display(title, config.reason and f"{AUTO} chose {config.strategy} for {config.reason}")
        drive = Drive(coordinator, pool, journal, Several(observers), config.evaluate_every, elapsed)
        job = Job(
            layout=layout,
            dtype=np.dtype(str(dtype_of(model)).removeprefix("torch.")),
            program=home / (LOWERED if config.kernel == "onnx" else PROGRAM),
            shards=Path(config.cache) / "shards",
            test=config.test.shards[0].id if config.test else None,
            calibration=calibration(config, plan),
            log=home / "workers.log",
        )
        with interruptible(drive):
            try:
                pool.open(job)
                if quiet:
                    drive.run()
                else:
                    with display:
                        observers.append(display)
                        drive.run()
            finally:
                pool.close()
        summary = recorder.finish(drive, config.strategy)
    finally:
        if journal is not None:
            journal.close()
    if drive.stopped:
        raise RunError(f"training stopped: {drive.stopped}. What was accepted is kept in {home}")
    if not drive.finished:
        raise KeyboardInterrupt
    vector = drive.vector()
    load_into(model, layout, vector)
    state = {name: value.detach().cpu().clone().contiguous() for name, value in model.state_dict().items()}
    with disk(home):
        wire.write(home / "model.safetensors", safetensors.torch.save(state))
    return Result(model, recorder.history, vector, summary, home)


def calibration(config: Config, plan: Plan) -> Calibration | None:
    """How a run's evaluations measure BatchNorm's statistics, if they do: a batch of each shard in turn."""
    shards = tuple(shard.id for shard in plan.shards)
    return Calibration(shards, config.recalibrate, plan.shards[0].batch) if config.recalibrate else None


def load_into(model: nn.Module, layout: Layout, vector: Vector) -> None:
    """Copy a flat vector into a model's parameters and buffers."""
    tensors = trained_tensors(model)
    with torch.no_grad():
        for name, view in layout.views(vector).items():
            tensors[name][0].copy_(torch.from_numpy(view))


@contextmanager
def interruptible(drive: Drive) -> Iterator[None]:
    """Let the first Ctrl+C end the run in order, the second at once."""

    def handler(number: int, frame: FrameType | None) -> None:
        if drive.interrupted:
            raise KeyboardInterrupt
        drive.interrupted = True

    if threading.current_thread() is not threading.main_thread():
        yield  # signals reach the main thread alone
        return
    before = {number: signal.signal(number, handler) for number in (signal.SIGINT, signal.SIGTERM)}
    try:
        yield
    finally:
        for number, old in before.items():
            signal.signal(number, old)


class Several:
    """Several observers as one."""

    def __init__(self, observers: list[Observer]) -> None:
        self.observers = observers

    def accepted(self, drive: Drive, command: Accepted) -> None:
        """Tell all."""
        for observer in self.observers:
            observer.accepted(drive, command)

    def rejected(self, drive: Drive, command: Rejected) -> None:
        """Tell all."""
        for observer in self.observers:
            observer.rejected(drive, command)

    def evaluated(self, drive: Drive, result: Evaluation, moment: Moment) -> None:
        """Tell all."""
        for observer in self.observers:
            observer.evaluated(drive, result, moment)

    def refresh(self, drive: Drive) -> None:
        """Tell all."""
        for observer in self.observers:
            observer.refresh(drive)
