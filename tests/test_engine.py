"""Where a simulated pool's tasks are trained: the order of work, deaths, evaluations, and the same bits."""

import functools
import math
import queue
import subprocess
import sys
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import numpy as np
import pytest

from trainpool.drive import Drive
from trainpool.errors import RunError
from trainpool.events import Send
from trainpool.kernels.protocol import Evaluation
from trainpool.messages import Recipe, Report, Task
from trainpool.pools import engine
from trainpool.pools.engine import Inline, Processes, Trainer, Work
from trainpool.pools.fleet import Change, Fleet, Machine
from trainpool.pools.protocol import Evaluated, Job
from trainpool.pools.simulated import SimulatedPool
from trainpool.testing import Quadratic
from trainpool.worker import Broken, Command, Done, Evaluate, Measured, Ready, Run, Setup, Stillborn

PROBLEM = Quadratic()
Inbox = queue.SimpleQueue[tuple[Any, Any]]


class Fake:
    """A process that answers at once, with its task's number as the delta, or dies, or says what a test wants."""

    told: list[int]
    """Of all processes, the tasks' numbers in order; -1 for an evaluation."""
    deaths = 0
    """Commands yet to die of."""
    says: Any = None

    def __init__(self, name: str, job: Job, setup: Setup, inbox: Inbox) -> None:
        size = job.layout.size
        self.slot = SimpleNamespace(vector=np.zeros(size), anchor=np.zeros(size), out=np.zeros(size))
        self.inbox, self.ready, self.number = inbox, False, setup.number
        inbox.put((self, Stillborn("no memory") if Fake.says == "stillborn" else Ready("cpu")))

    def tell(self, command: Command) -> None:
        number = command.task.id if isinstance(command, Run) else -1
        Fake.told.append(number)
        if Fake.deaths:
            Fake.deaths -= 1
            self.inbox.put((self, None))
        elif Fake.says:
            self.inbox.put((self, Broken(number, Fake.says)))
        elif isinstance(command, Evaluate):
            self.inbox.put((self, Measured(Evaluation(float(self.slot.vector[0]), None, 1))))
        elif isinstance(command, Run):
            self.slot.out[:] = self.slot.vector + number
            self.inbox.put((self, Done(Report(task=number, steps=1, samples=1, loss=0.0, seconds=1.0))))

    def forget_memory(self) -> None:
        """There is none."""

    def end(self) -> None:
        """It has."""


@pytest.fixture
def processes(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> Processes:
    """One fake process."""
    monkeypatch.setattr(engine, "Process", Fake)
    for name, value in (("told", []), ("deaths", 0), ("says", None)):
        monkeypatch.setattr(Fake, name, value, raising=False)
    log = tmp_path / "workers.log"
    log.write_text("it began\nout of luck\n")
    job = Job(PROBLEM.layout, np.dtype(float), tmp_path, tmp_path, test="t", calibration=None, log=log)
    return Processes(job, 1)


def work(number: int) -> Work:
    """A task; an evaluation where the number is -1."""
    task = Task(id=number, version=0, shard="s", recipe=Recipe(), seed=0, offset=0, steps=1, batch=1)
    return Work(task if number >= 0 else None, np.full(6, 0.5))


def test_what_is_due_first_is_done_first_and_evaluations_before_all(processes: Processes) -> None:
    items = {number: work(number) for number in (3, 1, 2, -1)}
    for number, item in items.items():
        processes.put(item, float(number))
    processes.advance(items[3], 1.0)
    assert Fake.told == [-1, 1, 2, 3]
    assert items[2].out is not None
    assert items[2].out.tolist() == [2.5] * 6
    assert items[-1].evaluation == Evaluated(Evaluation(0.5, None, 1))
    assert items[2].vector is None  # released
    processes.close()
    processes.close()


def test_work_whose_process_died_is_done_by_another(processes: Processes) -> None:
    Fake.deaths = 3
    item = work(7)
    processes.put(item, 0.0)
    processes.advance(item, 1.0)
    assert Fake.told == [7] * 4
    assert processes.unfinished_deaths == 0


@pytest.mark.parametrize(
    ("deaths", "says", "number", "message"),
    [
        (4, None, 7, "4 workers in a row died without finishing a task: its last line was 'out of luck'"),
        (0, "a typo", -1, "the model could not be evaluated: a typo"),
    ],
)
def test_what_cannot_be_done_ends_the_run(
    processes: Processes, deaths: int, says: str | None, number: int, message: str
) -> None:
    Fake.deaths, Fake.says = deaths, says
    item = work(number)
    processes.put(item, 0.0)
    with pytest.raises(RunError, match=message):
        processes.advance(item, 1.0)  # which hears all that is there to hear


def test_a_process_that_cannot_start_ends_the_run(processes: Processes) -> None:
    Fake.says = "stillborn"
    processes.start(0)
    with pytest.raises(RunError, match="a worker could not start: no memory"):
        processes.advance(None, 0.0)


def test_a_task_that_the_authors_code_fails_says_why(processes: Processes) -> None:
    Fake.says = "ZeroDivisionError: division by zero"
    item = work(7)
    processes.put(item, 0.0)
    processes.advance(item, 1.0)
    assert item.failure == "ZeroDivisionError: division by zero"


def test_evaluations_come_in_the_order_asked_also_after_the_end() -> None:
    shard = next(iter(PROBLEM.data.values()))
    pool = SimulatedPool([Machine(1.0)], kernel=PROBLEM, shards=PROBLEM.data.__getitem__, test=shard)
    pool.open()
    models = [np.full(6, float(number)) for number in range(3)]
    assert all(pool.evaluate(model) for model in models)
    found = [message for _ in models for message in pool.poll(1.0)]
    assert found == [Evaluated(PROBLEM.evaluate(model, shard)) for model in models]
    assert pool.now() == 0.0


class Lazy:
    """Does only what somebody waits for."""

    def __init__(self, inline: Inline) -> None:
        self.put, self.advance, self.close = inline.put, inline.advance, inline.close


@pytest.mark.parametrize(("alarm", "seconds"), [(-math.inf, 0.0), (math.inf, 5.0)])
def test_virtual_time_can_stand_still_until_a_model_is_evaluated(alarm: float, seconds: float) -> None:
    shard = next(iter(PROBLEM.data.values()))
    stays = (Change(0, 0.0, "join"), Change(1, 0.0, "join"), Change(1, 5.0, "leave"))
    machines = Fleet((Machine(1.0), Machine(1.0)), trace=stays)
    pool = SimulatedPool(machines, kernel=PROBLEM, shards=PROBLEM.data.__getitem__, test=shard)
    pool.open()
    assert pool.inline is not None
    pool.trainer = Trainer(Lazy(pool.inline), testable=True)
    for _ in range(2):
        pool.poll(1.0)
    task = Task(id=0, version=0, shard=next(iter(PROBLEM.data)), recipe=Recipe(), seed=0, offset=0, steps=9, batch=1)
    pool.send(Send("w0", task, np.zeros(6), np.zeros(0), None))  # whose answer nobody wants any more
    pool.evaluate(np.ones(6))
    messages = pool.poll(1.0, alarm)
    assert (messages == [Evaluated(PROBLEM.evaluate(np.ones(6), shard))]) == (alarm < 0)
    assert pool.now() == seconds


def test_without_test_data_nothing_is_evaluated() -> None:
    pool = SimulatedPool([Machine(1.0)], kernel=PROBLEM, shards=PROBLEM.data.__getitem__)
    pool.open()
    assert not pool.evaluate(np.zeros(6))


SCRIPT = """
import hashlib, json, sys
import torch, trainpool as tp
from sklearn.datasets import load_digits
from torch import nn
from trainpool.pools.fleet import fleet
from trainpool.pools.simulated import SimulatedPool

class Murderous(SimulatedPool):
    "Kills a process in the middle of a task."
    sent = 0

    def send(self, command):
        super().send(command)
        self.sent += 1
        if self.sent == 20:
            next(process for process, work in self.trainer.engine.doing.items() if work).child.kill()

def train(folder, cache, processes, kind=SimulatedPool):
    "A hash of the model and of every evaluation."
    torch.manual_seed(0)
    x, y = load_digits(return_X_y=True)
    x = (x / 16).astype("float32")
    net = nn.Sequential(nn.Linear(64, 16), nn.ReLU(), nn.Dropout(0.1), nn.Linear(16, 10))
    machines = fleet(6, spread=6, speed=2000.0, churn=0.2, session=3.0, lost=0.05, bandwidth=(1e6, 1e6), seed=1)
    result = tp.train(
        tp.Experiment(net, (x[:1500], y[:1500]), (x[1500:], y[1500:])), pool=kind(machines, processes=processes),
        strategy=tp.Downpour(steps=5, server="sgd"), recipe=tp.Recipe(batch_size=25, learning_rate=0.1), epochs=3,
        evaluate_every=0.5, out=folder, cache=cache, quiet=True,
    )
    assert len(result.history) >= 6
    text = json.dumps(result.history, sort_keys=True).encode()
    return hashlib.sha256(result.parameters.tobytes() + text).hexdigest()
"""


def test_real_training_gives_the_same_bits_for_any_number_of_processes_and_deaths(cache: Path, tmp_path: Path) -> None:
    names: dict[str, Any] = {}
    exec(SCRIPT, names)
    code = f"{SCRIPT}\nprint(train(*{(str(tmp_path / 'b'), str(cache / 'b'), 2)!r}, Murderous))"
    with subprocess.Popen([sys.executable, "-c", code], stdout=subprocess.PIPE, text=True) as there:
        here = names["train"](tmp_path / "a", cache / "a", 1)
        assert there.communicate()[0].strip() == here


def test_virtual_time_stops_when_the_coordinator_is_due_and_no_earlier() -> None:
    generator = np.random.default_rng(0)
    for elapsed, origin, alarm in generator.uniform(0, [1000, 10, 1e5], (1000, 3)).tolist():
        coordinator: Any = SimpleNamespace(alarm=elapsed + alarm)
        clock: Any = SimpleNamespace(time=0.0)
        clock.now = functools.partial(getattr, clock, "time")
        watcher: Any = None
        drive = Drive(coordinator, clock, None, watcher, 0, elapsed, origin=origin)
        clock.time = drive.alarm()
        assert coordinator.alarm <= drive.now() < coordinator.alarm + 1e-9
