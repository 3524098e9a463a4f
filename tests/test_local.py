"""The local pool's own decisions, with processes that do nothing."""

import io
import shutil
import subprocess
import tempfile
from collections.abc import Iterator
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import numpy as np
import pytest

import trainpool as tp
from trainpool.kernels.protocol import Evaluation
from trainpool.pools import local
from trainpool.pools.engine import Processes
from trainpool.pools.protocol import Evaluated, Job
from trainpool.vector import Layout
from trainpool.worker import Command, Evaluate, Measured, Ready, Setup, Slot, receive

MEASURED = Measured(Evaluation(loss=0.5, accuracy=0.9, samples=10))
LAYOUT = Layout.of({"w": ((5,), "parameter"), "b": ((2,), "other")})


class Idle:
    """A child process that says nothing; `killed` counts how often it was killed."""

    def __init__(self, *_: Any, **__: Any) -> None:
        self.stdin, self.stdout, self.killed = io.BytesIO(), io.BytesIO(), 0

    def kill(self) -> None:
        self.killed += 1

    def wait(self) -> None:
        pass


def told(process: local.Process) -> list[Any]:
    """What a process was told."""
    assert isinstance(process.child.stdin, io.BytesIO)
    frames, commands = io.BytesIO(process.child.stdin.getvalue()), []
    while frames.tell() < len(frames.getvalue()):
        commands.append(receive(frames, Command))
    return commands


@pytest.fixture
def job(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Job:
    monkeypatch.setattr(subprocess, "Popen", Idle)
    where = {"program": tmp_path / "program.pkl", "shards": tmp_path, "log": tmp_path / "workers.log"}
    return Job(layout=LAYOUT, dtype=np.dtype(np.float32), test="t", calibration=None, **where)


@pytest.fixture
def pool(job: Job) -> Iterator[tp.LocalPool]:
    pool = tp.LocalPool(2, threads=1)
    pool.open(job)
    yield pool
    pool.close()


def test_a_replacement_takes_the_gpu_of_the_dead_worker(pool: tp.LocalPool, job: Job) -> None:
    pool.replace(pool.processes["w1"])
    pool.replace(pool.processes["w2"])
    assert {name: told(process)[0].number for name, process in pool.processes.items()} == {"w0": 0, "w3": 1}
    engine = Processes(job, 2)
    first, second = engine.doing
    engine.replace(second)
    assert [told(process)[0].number for process in engine.doing] == [0, 1]
    engine.replace(first)
    assert [told(process)[0].number for process in engine.doing] == [1, 0]
    engine.close()


def test_a_new_evaluator_does_what_a_dead_one_was_doing(pool: tp.LocalPool) -> None:
    vector = np.arange(7, dtype=np.float32)
    for _ in range(local.STILLBIRTHS):
        evaluator = pool.evaluator
        assert evaluator is not None
        assert pool.translate(evaluator, Ready("cpu")) == []
        assert pool.evaluate(vector) == (pool.evaluators_lost == 0)
        assert isinstance(told(evaluator)[-1], Evaluate)
        assert pool.translate(evaluator, None) == []
    evaluator = pool.evaluator
    assert evaluator is not None
    assert [type(command) for command in told(evaluator)] == [Setup]
    pool.translate(evaluator, Ready("cpu"))
    assert [type(command) for command in told(evaluator)] == [Setup, Evaluate]
    np.testing.assert_array_equal(evaluator.slot.vector, vector)
    assert isinstance(pool.translate(evaluator, MEASURED)[0], Evaluated)
    for _ in range(local.STILLBIRTHS):
        assert pool.evaluator is not None
        pool.translate(pool.evaluator, None)
    with pytest.raises(tp.RunError, match="the process that evaluates models died 4 times in a row: it printed"):
        pool.translate(pool.evaluator, None)


def test_an_evaluator_that_hangs_is_killed(pool: tp.LocalPool, monkeypatch: pytest.MonkeyPatch) -> None:
    time = 0.0
    monkeypatch.setattr(pool, "now", lambda: time)
    monkeypatch.setattr(pool, "inbox", local.queue.SimpleQueue())
    evaluator = pool.evaluator
    assert evaluator is not None
    pool.translate(evaluator, Ready("cpu"))
    for seconds, killed in ((1000.0, 0), (20_050.0, 0), (21 * 20_050.0, 1)):  # nothing is known of the first one
        pool.evaluate(np.zeros(7, np.float32))
        time += seconds
        pool.poll(0)
        assert evaluator.child.killed == killed
        pool.translate(evaluator, MEASURED)


@pytest.mark.skipif(not hasattr(local.os, "posix_fallocate"), reason="nothing reserves room here")
def test_shared_memory_is_no_promise(tmp_path: Path) -> None:
    layout = Layout.of({"w": ((100_000,), "parameter")})
    Slot(tmp_path / "slot", layout, np.dtype(np.float32))
    state = (tmp_path / "slot").stat()
    assert state.st_size == 1_200_000
    assert state.st_blocks * 512 >= state.st_size


def test_shared_memory_lies_where_there_is_room(job: Job, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    memory, disk = tmp_path / "memory", tmp_path / "disk"
    free = {memory: 200, disk: 10_000}  # a process needs 4·(7 + 5 + 7) bytes
    for place in free:
        place.mkdir()
    monkeypatch.setattr(local, "SHARED", memory)
    monkeypatch.setattr(tempfile, "tempdir", str(disk))
    monkeypatch.setattr(shutil, "disk_usage", lambda place: SimpleNamespace(free=free[Path(place)]))
    assert local.shared_folder(job, 1).parent == memory
    assert local.shared_folder(job, 2).parent == disk
    free[disk] = 100
    with pytest.raises(tp.RunError, match=r"2 processes share .*MB.* only 0 in .*memory and 0 in .*disk: use fewer"):
        tp.LocalPool(1).open(job)
    free[memory] = 10_000

    def full(*_: int) -> None:
        raise OSError(28, "No space left on device")

    monkeypatch.setattr(local.os, "posix_fallocate", full, raising=False)
    pool = tp.LocalPool(1)
    with pytest.raises(tp.RunError, match=r"no room for what a worker shares with this process: .*No space left"):
        pool.open(job)
    pool.close()
    assert len(list(memory.iterdir())) == 1  # the first one of above


def test_a_mapped_file_that_cannot_be_removed_is_left(pool: tp.LocalPool, monkeypatch: pytest.MonkeyPatch) -> None:
    def mapped(*_: Any, **__: Any) -> None:
        raise PermissionError(13, "another process uses the file")

    with monkeypatch.context() as patch:
        patch.setattr(Path, "unlink", mapped)
        for process in pool.processes.values():
            process.end()
