"""A program: a training step as data. Authors make it with PyTorch; workers run it without.

    program.json    the manifest; its SHA-256 is the program's name
    train.onnx      one training step
    evaluate.onnx   one evaluation batch
    layout.json     the flat vector's layout
    train.8.onnx, train.16.onnx
                    the same training step for processors on which ONNX Runtime keeps images in blocks of so many
                    channels; only where the model has a convolution that this makes faster

Nothing in it is code of any language: ONNX operators of the standard set alone, from `OPERATORS`, and in the last two
ONNX Runtime's own of its blocked memory order.
"""

import hashlib
import math
from pathlib import Path
from typing import Annotated, Any, Literal, TypeVar

import msgspec
import numpy as np
from msgspec import Meta

from trainpool import wire
from trainpool.errors import ProgramError
from trainpool.messages import Optimizer, Task
from trainpool.onnx_file import Contents, contents
from trainpool.vector import Layout

__all__ = [
    "BLOCKED",
    "FILES",
    "OPERATORS",
    "Array",
    "Baked",
    "File",
    "Loaded",
    "Noise",
    "Program",
    "encode",
    "load",
    "name_of",
    "names",
    "save",
]

T = TypeVar("T")
FILES = ("train.onnx", "evaluate.onnx", "layout.json")
BLOCKED = {8: "train.8.onnx", 16: "train.16.onnx"}
"""The training step for processors with blocks of so many channels; a program may have none."""
MOST_BYTES = 1 << 30
"""Of one file."""
MOST_ELEMENTS = 1 << 31
"""Of one tensor."""
MOST_MEMORY = 1 << 34
"""Bytes that a program's batches, random numbers, parameters and optimizer state may take in a worker."""

OPERATORS: frozenset[str] = frozenset(
    msgspec.json.decode((Path(__file__).parent / "operators.json").read_bytes(), type=list[str])
)
"""What a program may consist of: operators of the standard set that only compute. No control flow, no text, nothing
that reads a file or makes random numbers. The browser's worker reads the same list."""

Size = Annotated[int, Meta(ge=0, le=MOST_ELEMENTS)]
Batch = Annotated[int, Meta(ge=1, le=1 << 20)]
Shape = Annotated[tuple[Size, ...], Meta(max_length=8)]
Name = Annotated[str, Meta(min_length=1, max_length=1000)]
Hash = Annotated[str, Meta(pattern="^[0-9a-f]{64}$")]


class File(msgspec.Struct, frozen=True, forbid_unknown_fields=True):
    """One file of a program."""

    sha256: Hash
    bytes: Annotated[int, Meta(ge=1, le=MOST_BYTES)]


class Sample(msgspec.Struct, frozen=True, forbid_unknown_fields=True):
    """One sample's input or target, as a shard stores it."""

    dtype: Literal["uint8", "int8", "int16", "int32", "int64", "float32", "float64", "bool"]
    shape: Shape


class Array(msgspec.Struct, frozen=True, forbid_unknown_fields=True):
    """A float32 array that goes through a training step: optimizer state or noise."""

    name: Name
    shape: Shape


Noise = Array


class Baked(msgspec.Struct, frozen=True, kw_only=True, forbid_unknown_fields=True):
    """The fields of a recipe that are part of the graph; the rest are inputs of each step."""

    optimizer: Optimizer
    momentum: float
    nesterov: bool
    weight_decay: float
    betas: tuple[float, float]
    epsilon: float
    clip_norm: float


class Program(msgspec.Struct, frozen=True, kw_only=True, forbid_unknown_fields=True):
    """The manifest."""

    format: Literal[1] = 1
    name: Annotated[str, Meta(max_length=1000)]
    files: dict[str, File]
    batch: Batch
    """Samples a training step."""
    evaluation_batch: Batch
    """Samples an evaluation step; the last batch is padded and masked."""
    x: Sample
    y: Sample
    correct: bool
    """Whether an evaluation counts correct answers."""
    recipe: Baked
    state: tuple[Array, ...]
    """The local optimizer's state, zero at a task's start."""
    noise: tuple[Array, ...]
    """Uniform float32 numbers in [0, 1) that each step needs."""
    operators: tuple[Name, ...]
    """The types of operators in both graphs, sorted."""
    blocked: dict[str, File] = {}
    """Of `BLOCKED`, the files that there are."""

    def fits(self, task: Task) -> None:
        """See that a task is what this program does.

        Raises:
            ProgramError: the task's recipe, batch or precision is another.
        """
        for field in Baked.__struct_fields__:
            wanted, baked = getattr(task.recipe, field), getattr(self.recipe, field)
            if wanted != baked and not self.unused(field):
                raise ProgramError(f"the program was lowered for {field} {baked}, but the task wants {wanted}")
        if task.batch != self.batch:
            raise ProgramError(f"the program was lowered for batches of {self.batch}, but the task wants {task.batch}")
        if task.recipe.precision != "float32":
            raise ProgramError(f"the program computes in float32, but the task wants {task.recipe.precision}")

    def unused(self, field: str) -> bool:
        """Whether the optimizer has no use for a field."""
        return field in (("momentum", "nesterov") if self.recipe.optimizer == "adamw" else ("betas", "epsilon"))


class Loaded(msgspec.Struct, frozen=True):
    """A program whose files were read and verified."""

    program: Program
    layout: Layout
    train: bytes
    evaluate: bytes
    blocked: dict[int, bytes]
    """The training step by the size of blocks, where it is there."""
    name: str
    """The SHA-256 of the manifest."""


def encode(value: Any) -> bytes:
    """Canonical JSON: sorted keys, no spaces; equal values are equal bytes."""
    return msgspec.json.encode(value, order="sorted")


def name_of(program: Program) -> str:
    """The SHA-256 of the manifest, in hexadecimal."""
    return hashlib.sha256(encode(program)).hexdigest()


def save(folder: Path, program: Program, files: dict[str, bytes]) -> None:
    """Write a program; the manifest last, so that a folder with one is whole.

    Raises:
        ProgramError: the folder cannot be written, or holds something else.
    """
    try:
        folder.mkdir(parents=True, exist_ok=True)
        if any(item.name not in (*FILES, *BLOCKED.values(), "program.json") for item in folder.iterdir()):
            raise ProgramError(f"{folder} holds other files: choose an empty or a new folder")
        (folder / "program.json").unlink(missing_ok=True)
        for name, data in files.items():
            wire.write(folder / name, data)
        wire.write(folder / "program.json", encode(program))
    except OSError as error:
        raise ProgramError(f"{folder}: {error.strerror}") from error


def load(folder: Path) -> Loaded:
    """Read and verify a program.

    Raises:
        ProgramError: a file is missing, damaged or not what the manifest says, or holds what no program may.
    """
    try:
        return verified(folder)
    except ProgramError as error:
        raise ProgramError(f"{folder}: {error}") from error


def verified(folder: Path) -> Loaded:
    """`load`, with errors that do not name the folder."""
    manifest = bytes_of(folder / "program.json")
    program = decoded(manifest, Program, "program.json")
    if set(program.files) != set(FILES) or not set(program.blocked) <= set(BLOCKED.values()):
        named = sorted({**program.files, **program.blocked})
        raise ProgramError(f"the manifest names the files {named}, not {sorted(FILES)}")
    files = {**program.files, **program.blocked}
    data = {name: bytes_of(folder / name) for name in files}
    for name, file in files.items():
        if len(data[name]) != file.bytes:
            raise ProgramError(f"{name} has {len(data[name]):,} bytes, but the manifest says {file.bytes:,}")
        if hashlib.sha256(data[name]).hexdigest() != file.sha256:
            raise ProgramError(f"{name} is damaged: its SHA-256 is not the manifest's")
    layout = decoded(data["layout.json"], Layout, "layout.json")
    check_layout(layout)
    check_memory(program, layout)
    train, evaluate = contents(data["train.onnx"]), contents(data["evaluate.onnx"])
    operators = train.operators | evaluate.operators
    if foreign := operators - OPERATORS:
        raise ProgramError(f"no program may use the operators {', '.join(sorted(foreign))}")
    if tuple(sorted(operators)) != program.operators:
        raise ProgramError("the graphs' operators are not those that the manifest lists")
    check_names(program, layout, train.inputs, train.outputs, evaluate.inputs, evaluate.outputs)
    blocked = {block: data[name] for block, name in BLOCKED.items() if name in data}
    for block in blocked:
        check_blocked(BLOCKED[block], contents(blocked[block], blocked=True), train)
    name = hashlib.sha256(manifest).hexdigest()
    return Loaded(program, layout, data["train.onnx"], data["evaluate.onnx"], blocked, name)


def check_blocked(name: str, found: Contents, plain: Contents) -> None:
    """See that a training step in the blocked order takes and gives what the plain one does, and does no more."""
    if foreign := found.operators - OPERATORS - {"ReorderInput", "ReorderOutput"}:
        raise ProgramError(f"no program may use the operators {', '.join(sorted(foreign))}")
    if (found.inputs, found.outputs) != (plain.inputs, plain.outputs):
        raise ProgramError(f"{name} takes or gives something else than train.onnx")


def check_layout(layout: Layout) -> None:
    """See that a layout's tensors lie one after the other, parameters first."""
    offset, buffers = 0, False
    for spec in layout.tensors:
        if min(spec.shape, default=0) < 0 or math.prod(spec.shape) > MOST_ELEMENTS:
            raise ProgramError(f"layout.json: the tensor {spec.name!r} has the shape {spec.shape}")
        buffers |= spec.role != "parameter"
        if spec.offset != offset or (buffers and spec.role == "parameter"):
            raise ProgramError(f"layout.json: the tensor {spec.name!r} is not where it belongs")
        offset += spec.size
    if len({spec.name for spec in layout.tensors}) < len(layout.tensors):
        raise ProgramError("layout.json: two tensors have one name")


def names(noise: list[str], parameters: list[str], buffers: list[str], state: list[str]) -> tuple[list[str], list[str]]:
    """The names of a training step's inputs and of its outputs, in their order."""
    carried = [*(f"p.{n}" for n in parameters), *(f"b.{n}" for n in buffers), *(f"s.{n}" for n in state)]
    inputs = ["x", "y", "rate", "rho", "step", *noise, *carried, *(f"a.{n}" for n in parameters)]
    return inputs, ["loss", *(f"new.{n}" for n in carried)]


def check_memory(program: Program, layout: Layout) -> None:
    """See that what a worker keeps for a program has bounds: each size has its own, but not their product."""
    batches = program.batch + program.evaluation_batch
    numbers = 3 * layout.size + sum(math.prod(a.shape) for a in program.noise)  # two vectors and the anchor
    numbers += 2 * sum(math.prod(a.shape) for a in program.state)
    samples = sum(np.dtype(s.dtype).itemsize * math.prod(s.shape) for s in (program.x, program.y))
    if batches * samples + 4 * numbers > MOST_MEMORY:
        raise ProgramError(f"the program takes more than {MOST_MEMORY:,} bytes of memory")


def check_names(
    program: Program, layout: Layout, inputs: list[str], outputs: list[str], seen: list[str], told: list[str]
) -> None:
    """See that the graphs take and give what the kernels feed and fetch."""
    parameters = [spec.name for spec in layout.tensors if spec.role == "parameter"]
    buffers = [spec.name for spec in layout.tensors if spec.role != "parameter"]
    noise = [array.name for array in program.noise]
    order, results = names(noise, parameters, buffers, [array.name for array in program.state])
    known = ["x", "y", "mask", *(f"p.{n}" for n in parameters), *(f"b.{n}" for n in buffers)]
    for what, found, allowed in (("train.onnx", inputs, order), ("evaluate.onnx", seen, known)):
        if found != [name for name in allowed if name in set(found)]:
            raise ProgramError(f"{what} takes inputs that no worker has, or in another order")
    if missing := set(noise) - set(inputs):
        raise ProgramError(f"train.onnx does not take the random numbers {', '.join(sorted(missing))[:200]}")
    if outputs != results or told != ["loss", "correct"]:
        raise ProgramError("the graphs' outputs are not those of a program")


def bytes_of(path: Path) -> bytes:
    """A file's content, if its size is in bounds."""
    try:
        if path.stat().st_size > MOST_BYTES:
            raise ProgramError(f"{path.name} has more than {MOST_BYTES:,} bytes")
        return path.read_bytes()
    except OSError as error:
        raise ProgramError(f"{path.name}: {error.strerror}") from error


def decoded(data: bytes, kind: type[T], name: str) -> T:
    """A JSON file as a checked value."""
    try:
        return msgspec.json.decode(data, type=kind)
    except msgspec.MsgspecError as error:
        raise ProgramError(f"{name}: {error}") from error
