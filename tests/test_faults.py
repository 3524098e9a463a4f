"""Real processes, really killed."""

import io
import json
import os
import random
import signal
import subprocess
import sys
from functools import partial
from pathlib import Path
from threading import Event
from typing import Any

import msgspec
import numpy as np
import psutil
import pytest
import safetensors.torch
from PIL import Image
from torch import nn

import trainpool as tp
from conftest import in_process, small_data
from trainpool import drive, training
from trainpool.config import Config, read_config
from trainpool.coordinator import Coordinator
from trainpool.events import Restarted, Returned, Send
from trainpool.experiment import load_experiment
from trainpool.journal import Journal, replay
from trainpool.kernels.torch import layout_of, vector_of
from trainpool.pace import Pace
from trainpool.pools.protocol import Arrival, Message
from trainpool.record import append, read_metrics
from trainpool.strategies import Plan
from trainpool.testing import Fault, InProcessPool, check_ledger
from trainpool.vector import Vector

EXPERIMENT = """
import numpy as np, torch, trainpool as tp
from torch import nn
torch.manual_seed(0)
generator = np.random.default_rng(0)
y = generator.integers(0, 8, 2000)
x = generator.integers(0, 120, (2000, 1, 8, 8), dtype=np.uint8)
x[np.arange(2000), 0, y] += 100
class Net(nn.Sequential):
    "A class of the author's own, which lives in the author's file."
net = Net(nn.Conv2d(1, 8, 3), nn.BatchNorm2d(8), nn.ReLU(), nn.Flatten(), nn.Linear(288, 8))
experiment = tp.Experiment(net, (x, y), (x[:100], y[:100]))
"""

posix = pytest.mark.skipif(os.name != "posix", reason="signals are POSIX's")


class Murderous(tp.LocalPool):
    """Kills the worker that gets the n-th task, right after sending it."""

    def __init__(self, victims: set[int]) -> None:
        super().__init__(2, threads=1)
        self.victims, self.sent = victims, 0

    def send(self, command: Send) -> None:
        super().send(command)
        if self.sent in self.victims:
            self.processes[command.worker].child.kill()
        self.sent += 1


def test_workers_killed_in_mid_task_are_replaced_and_nothing_is_lost(
    experiment: tp.Experiment, cache: Path, tmp_path: Path
) -> None:
    pool = Murderous({0, 3, 8})
    run = training.begin(
        experiment,
        strategy=tp.ParallelSGD(rounds=6),
        pool=pool,
        epochs=6,
        out=tmp_path / "run",
        cache=cache,
        keep_journal=True,
    )
    plan = Plan.of({shard.id: shard.samples for shard in run.config.train.shards}, run.config.recipe, 6)
    start = vector_of(experiment.model).copy()
    layout = layout_of(experiment.model)
    result = training.carry_on(run, quiet=True)
    assert result.summary["samples"] == plan.budget
    coordinator = replay(tmp_path / "run", Coordinator(run.strategy, plan, layout, start))
    check_ledger(coordinator)
    assert sum(entry.lost for entry in coordinator.memory.ledger.values()) == 3
    assert np.concatenate([coordinator.parameters, coordinator.buffers]).tobytes() == result.parameters.tobytes()


@posix
def test_a_worker_that_hangs_is_replaced(
    experiment: tp.Experiment, cache: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    class Hypnotic(Murderous):
        """Puts the worker to sleep instead."""

        def send(self, command: Send) -> None:
            tp.LocalPool.send(self, command)
            if self.sent in self.victims:
                self.processes[command.worker].child.send_signal(signal.SIGSTOP)
            self.sent += 1

    # The run's coordinator waits half a second, and the run looks ten times a second.
    hasty = partial(Coordinator, pace=Pace(first=0.5, grace=0.5))
    monkeypatch.setattr(training, "Coordinator", hasty)
    monkeypatch.setattr(drive, "LOOK_SECONDS", 0.1)
    pool = Hypnotic({3})
    pool.workers = 1  # nobody else takes its place
    method = tp.Downpour(steps=5)
    result = tp.train(experiment, strategy=method, pool=pool, epochs=6, out=tmp_path / "run", cache=cache, quiet=True)
    assert result.summary["finished"]
    assert pool.started == 2


def test_a_killed_evaluator_is_replaced(experiment: tp.Experiment, cache: Path, tmp_path: Path) -> None:
    class Blinding(tp.LocalPool):
        """Kills the process that evaluates models in its first evaluation."""

        def evaluate(self, vector: Vector) -> bool:
            begun = super().evaluate(vector)
            if begun and self.evaluators_lost == 0 and not self.longest:
                assert self.evaluator is not None
                self.evaluator.child.kill()
            return begun

    pool = Blinding(1, threads=1)
    result = tp.train(experiment, pool=pool, epochs=2, evaluate_every=0, out=tmp_path / "run", cache=cache, quiet=True)
    assert result.summary["finished"]
    assert result.summary["test_accuracy"] is not None


def test_a_program_that_always_kills_its_worker_ends_the_run(cache: Path, tmp_path: Path) -> None:
    class Deadly(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.layer = nn.Linear(64, 8)
            self.parent = os.getpid()

        def forward(self, x: object) -> object:
            if os.getpid() != self.parent:
                print("out of cheese", file=sys.stderr, flush=True)
                os._exit(3)
            return self.layer(x.flatten(1))  # type: ignore[attr-defined]

    with pytest.raises(tp.RunError, match="died without finishing a task: its last line was 'out of cheese'"):
        tp.train(
            tp.Experiment(Deadly(), small_data(64)),
            pool=tp.LocalPool(1, threads=1),
            out=tmp_path / "run",
            cache=cache,
            quiet=True,
        )


def start(arguments: list[str], said: Path) -> subprocess.Popen[bytes]:
    """The command line in a process of its own; what it says goes to the file `said`."""
    command = [sys.executable, "-m", "trainpool.cli", *arguments, "--quiet", "--debug"]
    with said.open("wb") as file:
        return subprocess.Popen(command, stdout=subprocess.DEVNULL, stderr=file)


def wait_for_updates(home: Path, number: int, child: subprocess.Popen[bytes]) -> None:
    """Wait until a run has journalled so many more updates, or its process has ended."""

    def journalled() -> int:
        blobs = home / "blobs"
        return len(list(blobs.glob("*.safetensors"))) if blobs.exists() else 0

    before = journalled()
    while child.poll() is None and journalled() - before < number:
        Event().wait(0.005)


def wait_for_end(processes: list[psutil.Process]) -> None:
    """All of them are gone soon."""
    _, alive = psutil.wait_procs(processes, timeout=20)
    assert not [process for process in alive if process.status() != psutil.STATUS_ZOMBIE]


@posix
def test_the_parent_killed_ten_times_loses_nothing_and_leaves_no_orphans(tmp_path: Path) -> None:
    (tmp_path / "small.py").write_text(EXPERIMENT)
    home, moments = tmp_path / "run", random.Random(1)
    train = [
        "train",
        f"{tmp_path / 'small.py'}:experiment",
        "--strategy",
        "downpour",
        "--workers",
        "2",
        "--threads",
        "1",
    ]
    train += [
        "--epochs",
        "40",
        "--set",
        "steps=10",
        "--cache",
        str(tmp_path / "cache"),
        "--out",
        str(home),
        "--keep-journal",
    ]
    said = tmp_path / "said"
    arguments, samples = train, 0
    for _ in range(10):
        child = start(arguments, said)
        wait_for_updates(home, moments.randrange(1, 12), child)
        Event().wait(0.1 * moments.random())  # anywhere between two updates, too
        assert child.poll() is None, said.read_text()
        family = psutil.Process(child.pid).children(recursive=True)
        child.kill()
        child.wait()
        wait_for_end(family)
        arguments = ["resume", str(home)]
        accepted = replayed(home).samples
        assert accepted >= samples
        samples = accepted
    assert samples > 0
    child = start(arguments, said)
    assert child.wait(timeout=300) == 0, said.read_text()
    coordinator = replayed(home)
    assert coordinator.samples == coordinator.plan.budget
    check_ledger(coordinator)
    model = coordinator_model()
    model.load_state_dict(safetensors.torch.load_file(home / "model.safetensors"))
    final = np.concatenate([coordinator.parameters, coordinator.buffers])
    assert vector_of(model).tobytes() == final.tobytes()
    summary = json.loads((home / "summary.json").read_text())
    assert summary["samples"] == coordinator.plan.budget
    assert summary["test_accuracy"] > 0.9


def coordinator_model() -> nn.Module:
    """The network of `EXPERIMENT`."""
    names: dict[str, object] = {}
    exec(EXPERIMENT, names)
    return names["net"]  # type: ignore[return-value]


def replayed(home: Path) -> Coordinator:
    """The coordinator of a run of `EXPERIMENT`, from its journal's first event."""
    config = msgspec.json.decode((home / "config.json").read_bytes(), type=Config)
    model = coordinator_model()
    plan = Plan.of({shard.id: shard.samples for shard in config.train.shards}, config.recipe, config.epochs)
    strategy = tp.Downpour(**config.settings)
    return replay(home, Coordinator(strategy, plan, layout_of(model), vector_of(model), seed=config.seed))


@posix
def test_ctrl_c_saves_and_resume_finishes(tmp_path: Path) -> None:
    (tmp_path / "small.py").write_text(EXPERIMENT)
    home = tmp_path / "run"
    arguments = ["train", f"{tmp_path / 'small.py'}:experiment", "--strategy", "downpour", "--set", "steps=5"]
    arguments += ["--workers", "1", "--threads", "1", "--epochs", "60"]
    arguments += ["--cache", str(tmp_path / "cache"), "--out", str(home)]
    said = tmp_path / "said"
    child = start(arguments, said)
    wait_for_updates(home, 10, child)
    child.send_signal(signal.SIGINT)
    assert child.wait(timeout=120) == 130, said.read_text()
    assert "trainpool resume" in said.read_text()
    done = json.loads((home / "summary.json").read_text())
    assert not done["finished"]
    (tmp_path / "small.py").write_text(EXPERIMENT + "\n# changed\n")
    with pytest.raises(tp.RunError, match="has changed since the run began"):
        tp.resume(home, quiet=True)
    (tmp_path / "small.py").write_text(EXPERIMENT)
    result = tp.resume(home, quiet=True)
    assert result.summary["finished"]
    assert result.summary["samples"] > done["samples"]
    assert result.summary["seconds"] > done["seconds"]
    with pytest.raises(tp.RunError, match="is finished"):
        tp.resume(home)


def test_ctrl_c_waits_for_the_tasks_that_were_sent_alone(
    experiment: tp.Experiment, cache: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    home = tmp_path / "run"
    pool = in_process(experiment, cache, speeds=[1.0, 0.1])
    polled, polls = pool.poll, 0

    def poll(timeout: float, alarm: float) -> list[Message]:
        """Ctrl+C just before the slower worker completes the round: the idle one is then leased a task of the next."""
        nonlocal polls
        polls += 1
        assert polls < 100, "the run waits for a task that was never sent"
        messages = polled(timeout, alarm)
        for message in messages:
            if isinstance(message, Arrival) and isinstance(message.event, Returned) and message.event.worker == "w1":
                signal.raise_signal(signal.SIGINT)
        return messages

    monkeypatch.setattr(pool, "poll", poll)
    method = tp.ParallelSGD(rounds=2)
    with pytest.raises(KeyboardInterrupt):
        tp.train(experiment, strategy=method, pool=pool, epochs=2, shards=2, out=home, cache=cache, quiet=True)
    assert json.loads((home / "summary.json").read_text())["updates"] == 2
    assert tp.resume(home, pool=in_process(experiment, cache), quiet=True).summary["finished"]


def test_ctrl_c_in_the_last_evaluation_leaves_it_to_resume(
    experiment: tp.Experiment, cache: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    home, pool = tmp_path / "run", in_process(experiment, cache)
    monkeypatch.setattr(pool, "evaluate", lambda vector: signal.raise_signal(signal.SIGINT))
    with pytest.raises(KeyboardInterrupt):
        tp.train(experiment, pool=pool, epochs=2, evaluate_every=0, out=home, cache=cache, quiet=True)
    stopped = json.loads((home / "summary.json").read_text())
    assert not stopped["finished"]
    result = tp.resume(home, pool=in_process(experiment, cache), quiet=True)
    assert result.summary["finished"]
    assert result.summary["test_accuracy"] is not None
    assert result.summary["samples"] == stopped["samples"]


def test_a_run_goes_on_elsewhere(experiment: tp.Experiment, cache: Path, tmp_path: Path) -> None:
    training.begin(experiment, pool=tp.LocalPool(1), epochs=1, out=tmp_path / "run", cache=cache)
    config = tmp_path / "run" / "config.json"
    config.write_text(config.read_text().replace('"device": "auto"', '"device": "cuda:99"'))  # a GPU that is no more
    with pytest.raises(tp.ConfigError, match="no device 'cuda:99'"):
        tp.resume(tmp_path / "run", quiet=True)
    assert tp.resume(tmp_path / "run", device="cpu", quiet=True).summary["finished"]


def test_a_run_that_is_going_on_cannot_be_resumed(experiment: tp.Experiment, cache: Path, tmp_path: Path) -> None:
    training.begin(experiment, pool=tp.LocalPool(1), out=tmp_path / "run", cache=cache)
    journal = Journal(tmp_path / "run")
    with pytest.raises(tp.RunError, match="in use by another process"):
        tp.resume(tmp_path / "run", quiet=True)
    journal.close()


def test_a_full_disk_is_said_in_one_line_and_loses_nothing(
    experiment: tp.Experiment, cache: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    from trainpool import wire

    run = training.begin(
        experiment,
        strategy=tp.Downpour(steps=5),
        pool=tp.LocalPool(1, threads=1),
        epochs=20,
        out=tmp_path / "run",
        cache=cache,
    )
    written = wire.write

    def full(path: Path, data: bytes) -> None:
        if path.parent.name == "blobs" and int(path.stem) > 12:
            raise OSError(28, "No space left on device")
        written(path, data)

    with monkeypatch.context() as patch:
        patch.setattr(wire, "write", full)
        with pytest.raises(tp.RunError, match=r"cannot write to .*No space left on device.*make room"):
            training.carry_on(run, quiet=True)
    assert tp.resume(tmp_path / "run", quiet=True).summary["finished"]


@pytest.mark.parametrize("victim", ["metrics.json", "rejected.json", "summary.json", "curve.png", "model.safetensors"])
def test_whatever_file_the_disk_has_no_room_for_the_run_goes_on_later(
    victim: str, experiment: tp.Experiment, cache: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    home = tmp_path / "run"

    def pool(fault: Fault | None = None) -> InProcessPool:
        return in_process(experiment, cache, fault={3: fault}.get)

    begun = training.begin(experiment, strategy=tp.Downpour(steps=5), pool=pool("nan"), epochs=2, out=home, cache=cache)
    opened = io.open

    def full(file: Any, *arguments: Any, **options: Any) -> Any:
        if victim in str(file):
            raise OSError(28, "No space left on device", str(file))
        return opened(file, *arguments, **options)

    with monkeypatch.context() as patch:
        patch.setattr(io, "open", full)
        patch.setattr("builtins.open", full)
        with pytest.raises(tp.RunError, match=r"run: No space left on device; nothing accepted is lost: make room"):
            training.carry_on(begun, quiet=True)
    result = tp.resume(home, pool=pool(), quiet=True)
    assert result.summary["finished"]
    assert result.summary["test_accuracy"] is not None
    assert (home / "curve.png").exists()


def test_a_disk_too_full_for_the_journal_loses_nothing(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def fill(journal: Journal) -> None:
        while True:
            journal.append(Restarted(), 0.0)

    journal = Journal(tmp_path)
    journal.database.execute("pragma max_page_count = 8")  # SQLite finds room for so many
    with pytest.raises(tp.RunError, match="database or disk is full; make room, or choose another folder"):
        fill(journal)
    journal.close()
    again = Journal(tmp_path)
    assert again.number == journal.number - 1 > 0
    again.close()
    (tmp_path / "config.json").touch()
    monkeypatch.setattr("trainpool.journal.SCHEMA", "pragma max_page_count = 1; create table more (n integer)")
    with pytest.raises(tp.RunError, match="is full; nothing accepted is lost: make room, then `trainpool resume"):
        Journal(tmp_path)


def test_a_line_that_a_power_cut_tore_spoils_no_other(tmp_path: Path) -> None:
    path = tmp_path / "metrics.jsonl"
    append(path, {"samples": 1})
    with path.open("ab") as file:
        file.write(b'{"samples": 2, "x\xff\x00')
    append(path, {"samples": 3})
    append(path, {"samples": 4})
    assert [record["samples"] for record in read_metrics(tmp_path)] == [1, 3, 4]


def test_a_damaged_journal_is_said_in_one_line(experiment: tp.Experiment, cache: Path, tmp_path: Path) -> None:
    training.begin(experiment, pool=tp.LocalPool(1), out=tmp_path / "run", cache=cache)
    (tmp_path / "run" / "journal.sqlite").write_bytes(b"nonsense" * 1000)
    with pytest.raises(tp.RunError, match="damaged"):
        tp.resume(tmp_path / "run", quiet=True)


@pytest.mark.parametrize("way", ["python", "file"])
@pytest.mark.parametrize("victim", ["net.py", "__init__.py", "numbers.py", "mine.py"])
def test_code_that_changed(way: str, victim: str, cache: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """`mine.py` has the experiment, which is of a package beside it, in which one module imports another."""
    package = f"author_{way}_{victim.removesuffix('.py').strip('_')}"
    folder, own = tmp_path / package, tmp_path / f"{package}_mine.py"
    folder.mkdir()
    (folder / "__init__.py").touch()
    (folder / "numbers.py").write_text("GAIN = 2.0")
    (folder / "unused.py").touch()
    (folder / "net.py").write_text(
        "from torch import nn\nfrom .numbers import GAIN\n"
        "class Net(nn.Linear):\n    def forward(self, x):\n        return GAIN * super().forward(x)"
    )
    own.write_text(
        f"import numpy as np, trainpool as tp\nfrom {package}.net import Net\n"
        "experiment = tp.Experiment(Net(3, 2), (np.eye(3, dtype=np.float32), np.arange(3) % 2))"
    )
    monkeypatch.setattr(sys, "path", [str(tmp_path), *sys.path])
    what, home = load_experiment(f"{own}:experiment"), tmp_path / "run"
    source = f"{own}:experiment" if way == "file" else ""
    begun = training.begin(what, pool=tp.LocalPool(1), out=home, cache=cache, source=source)
    files = {folder / "__init__.py", folder / "net.py", folder / "numbers.py", *([own] if source else [])}
    assert set(begun.config.code) == set(map(str, files))
    changed = own if victim == "mine.py" else folder / victim
    before = changed.read_text()
    changed.write_text(before + "\n# changed")
    if changed in files:
        with pytest.raises(tp.RunError, match=f"{changed.name} has changed since the run began: restore it"):
            tp.resume(home, quiet=True)
        changed.write_text(before)
    assert read_config(home) == begun.config


def test_data_that_changed_or_left_the_cache(experiment: tp.Experiment, tmp_path: Path) -> None:
    for name in ("cats", "dogs"):
        (tmp_path / "images" / name).mkdir(parents=True)
        for i in range(4):
            pixels = np.random.default_rng(i).integers(0, 255, (8, 8), dtype=np.uint8)
            Image.fromarray(pixels).save(tmp_path / "images" / name / f"{i}.png")
    own = tp.Experiment(experiment.model, tmp_path / "images")
    pool = tp.LocalPool(1, threads=1)
    training.begin(own, pool=pool, epochs=1, out=tmp_path / "run", cache=tmp_path / "cache")
    for shard in (tmp_path / "cache" / "shards").iterdir():
        shard.unlink()
    picture = tmp_path / "images" / "cats" / "0.png"
    kept, times = picture.read_bytes(), picture.stat()
    Image.fromarray(np.zeros((8, 8), np.uint8)).save(picture)
    with pytest.raises(tp.RunError, match="the data have changed since the run began"):
        tp.resume(tmp_path / "run", quiet=True)
    picture.write_bytes(kept)
    os.utime(picture, ns=(times.st_atime_ns, times.st_mtime_ns))
    assert tp.resume(tmp_path / "run", quiet=True).summary["finished"]
