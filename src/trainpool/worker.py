"""A worker process: reads commands on standard input, answers on standard output, dies with its parent.

Frames are a 4-byte length and a MessagePack message. Arrays lie in a memory-mapped file that both processes share:

    [ vector: parameters and buffers | anchor: parameters | out: delta and buffers ]

What the author's code prints goes to the log. A thread reads standard input: when the parent is gone, however it
died, the read ends and the process leaves at once, even in the middle of a task.
"""

import os
import queue
import signal
import struct
import sys
import threading
import traceback
from collections.abc import Callable
from contextlib import suppress
from pathlib import Path
from typing import IO, Any, TypeAlias

import msgspec
import numpy as np

from trainpool.kernels.protocol import Calibration, Evaluation, Kernel, KernelError
from trainpool.messages import Report, ShardId, Task
from trainpool.vector import Layout, Vector

__all__ = [
    "Broken",
    "Done",
    "Evaluate",
    "Measured",
    "Ready",
    "Run",
    "Setup",
    "Slot",
    "Stillborn",
    "receive",
    "transmit",
]

MAX_FRAME = 1 << 24
KEPT_BYTES = 1_000_000_000
"""Of shards that a worker keeps in memory."""


class Setup(msgspec.Struct, frozen=True, tag=True):
    """The first command."""

    layout: Layout
    dtype: str
    program: str
    """A lowered program's folder, or the file of the author's code for PyTorch."""
    shards: str
    memory: str
    """The shared file."""
    threads: int
    device: str
    """A PyTorch device, or `auto`: the CUDA device of this worker's number where there is one."""
    number: int
    polite: bool
    """Leave the processor to others while they want it: an evaluation must not slow the training."""
    path: list[str]
    """The parent's `sys.path`, so that the author's modules are found."""


class Run(msgspec.Struct, frozen=True, tag=True):
    """Do this task; its arrays are in the shared memory."""

    task: Task


class Evaluate(msgspec.Struct, frozen=True, tag=True):
    """Measure the model in the shared memory on a shard, with new buffers, left there, where `calibration` says so."""

    shard: ShardId
    calibration: Calibration | None = None


class Ready(msgspec.Struct, frozen=True, tag=True):
    """The kernel is loaded and the shared memory open."""

    device: str


class Done(msgspec.Struct, frozen=True, tag=True):
    """A task's report; its arrays are in the shared memory."""

    report: Report


class Broken(msgspec.Struct, frozen=True, tag=True):
    """A task, or an evaluation (-1), that could not be done."""

    task: int
    reason: str


class Measured(msgspec.Struct, frozen=True, tag=True):
    """An evaluation."""

    result: Evaluation


class Stillborn(msgspec.Struct, frozen=True, tag=True):
    """The worker could not start."""

    reason: str


Command: TypeAlias = Setup | Run | Evaluate
Answer: TypeAlias = Ready | Done | Broken | Measured | Stillborn


def transmit(stream: IO[bytes], message: Command | Answer) -> None:
    """Write one frame."""
    body = msgspec.msgpack.encode(message)
    stream.write(struct.pack("<I", len(body)) + body)
    stream.flush()


def receive(stream: IO[bytes], kind: Any) -> Any:
    """Read one frame of type `kind`; EOFError where the other side is gone."""
    head = stream.read(4)
    if len(head) < 4:
        raise EOFError
    (length,) = struct.unpack("<I", head)
    if length > MAX_FRAME:
        raise EOFError
    body = stream.read(length)
    if len(body) < length:
        raise EOFError
    return msgspec.msgpack.decode(body, type=kind)


class Slot:
    """The shared arrays of one worker."""

    def __init__(self, path: Path, layout: Layout, dtype: np.dtype[Any]) -> None:
        """Map the file; it is made if it is not there.

        Raises:
            OSError: there is no room for it.
        """
        size, trainable = layout.size, layout.trainable
        if not path.exists():
            reserve(path, self.room(layout, dtype))
        memory = np.memmap(path, dtype=dtype, mode="r+", shape=(2 * size + trainable,))
        whole: Vector = np.asarray(memory)
        self.vector = whole[:size]
        self.anchor = whole[size : size + trainable]
        self.out = whole[size + trainable :]

    @staticmethod
    def room(layout: Layout, dtype: np.dtype[Any]) -> int:
        """Bytes of the file."""
        return (2 * layout.size + layout.trainable) * dtype.itemsize


def reserve(path: Path, size: int) -> None:
    """Make a file of zeros for which there is room: where room ran out later, whoever writes there would be killed."""
    try:
        with path.open("xb") as file:
            file.truncate(size)
            if hasattr(os, "posix_fallocate"):
                os.posix_fallocate(file.fileno(), 0, size)
    except OSError:
        path.unlink(missing_ok=True)
        raise


class Worker:
    """Does what the parent commands, one thing at a time."""

    def __init__(self, setup: Setup) -> None:
        """Load the kernel and open the shared memory."""
        program = Path(setup.program)
        load: Callable[[Path, str, int, int], tuple[Kernel, str]]
        if program.is_dir():
            from trainpool.kernels.onnx import load
        else:
            from trainpool.kernels.torch import load
        self.kernel, self.device = load(program, setup.device, setup.number, setup.threads)
        self.slot = Slot(Path(setup.memory), setup.layout, np.dtype(setup.dtype))
        self.shards = Path(setup.shards)
        self.loaded: dict[ShardId, dict[str, np.ndarray[Any, Any]]] = {}

    def shard(self, shard: ShardId) -> dict[str, np.ndarray[Any, Any]]:
        """A shard's arrays: read and verified once, kept while there is room."""
        from trainpool.data.shards import load

        arrays = self.loaded.pop(shard, None) or load(self.shards, shard)
        self.loaded[shard] = arrays  # the newest is last
        while (
            len(self.loaded) > 1 and sum(a.nbytes for held in self.loaded.values() for a in held.values()) > KEPT_BYTES
        ):
            self.loaded.pop(next(iter(self.loaded)))
        return arrays

    def answer(self, command: Run | Evaluate) -> Answer:
        """Do one thing; whatever goes wrong in the author's code becomes one line."""
        number = command.task.id if isinstance(command, Run) else -1
        try:
            if isinstance(command, Evaluate):
                if command.calibration is not None:
                    buffers = self.kernel.recalibrate(self.slot.vector, self.shard, command.calibration)
                    self.slot.vector[self.kernel.layout.trainable :] = buffers
                return Measured(self.kernel.evaluate(self.slot.vector, self.shard(command.shard)))
            task = command.task
            anchor = self.slot.anchor if task.anchored else None
            return Done(self.kernel.run(task, self.slot.vector, anchor, self.shard(task.shard), self.slot.out))
        except KernelError as error:
            return Broken(number, str(error))
        except Exception as error:
            traceback.print_exc()
            return Broken(number, one_line(error))


def one_line(error: BaseException) -> str:
    """An exception as one line, with the place in the author's code where it arose."""
    frames = traceback.extract_tb(error.__traceback__)
    own = [frame for frame in frames if "site-packages" not in frame.filename and "trainpool" not in frame.filename]
    place = f" ({Path(own[-1].filename).name}, line {own[-1].lineno})" if own else ""
    return f"{type(error).__name__}: {' '.join(str(error).split())[:500]}{place}"


def main() -> None:
    """Serve the parent until it closes standard input."""
    signal.signal(signal.SIGINT, signal.SIG_IGN)  # Ctrl+C is the parent's: it lets tasks end and saves
    commands = os.fdopen(os.dup(0), "rb")
    answers = os.fdopen(os.dup(1), "wb")
    os.dup2(2, 1)  # the author's prints go to the log, not among the frames
    inbox: queue.SimpleQueue[Command] = queue.SimpleQueue()

    def listen() -> None:
        first: Command | None = None
        try:
            while True:
                command = receive(commands, Command)
                first = first or command
                inbox.put(command)
        except (EOFError, OSError):
            if isinstance(first, Setup):  # the parent may have died without tidying up
                with suppress(OSError):
                    Path(first.memory).unlink(missing_ok=True)
                    Path(first.memory).parent.rmdir()
            os._exit(0)

    threading.Thread(target=listen, daemon=True).start()
    setup = inbox.get()
    assert isinstance(setup, Setup)
    sys.path[:] = setup.path
    if setup.polite and hasattr(os, "nice"):
        os.nice(10)
    try:
        worker = Worker(setup)
    except Exception as error:
        traceback.print_exc()
        transmit(answers, Stillborn(one_line(error)))
        return
    transmit(answers, Ready(worker.device))
    while True:
        command = inbox.get()
        assert not isinstance(command, Setup)
        transmit(answers, worker.answer(command))


if __name__ == "__main__":
    main()
