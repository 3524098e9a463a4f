"""Messages as bytes, and states taken apart."""

import json
import struct
from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import msgspec
import numpy as np
import pytest
import safetensors.numpy
from hypothesis import given
from hypothesis import strategies as st

from trainpool import wire
from trainpool.errors import MessageError
from trainpool.messages import Recipe, Report, Task
from trainpool.vector import Vector

REPORT = Report(task=3, steps=2, samples=8, loss=0.5, seconds=1.25)
TASK = Task(id=1, version=2, shard="ab", recipe=Recipe(), seed=2**53 - 1, offset=7, steps=3, batch=4)
ARRAYS = {"delta": np.arange(5, dtype=np.float32), "buffers": np.array([[1.5, np.nan]]), "none": np.zeros(0, np.int64)}


def check_arrays(found: Mapping[str, np.ndarray], wanted: Mapping[str, np.ndarray]) -> None:
    assert found.keys() == wanted.keys()
    for name, array in wanted.items():
        assert found[name].dtype == array.dtype
        assert found[name].shape == array.shape
        assert found[name].tobytes() == array.tobytes()


@pytest.mark.parametrize("message", [REPORT, TASK, Recipe(optimizer="adamw", betas=(0.5, 0.9))], ids=type)
def test_a_message_comes_back_as_it_was(message: Any) -> None:
    found, arrays = wire.decode(wire.encode(message, ARRAYS), type(message))
    assert found == message
    check_arrays(arrays, ARRAYS)
    arrays["delta"][0] = 9  # a strategy may change what it loads


def test_strided_arrays_are_written_in_order() -> None:
    matrix = np.arange(6.0).reshape(2, 3)
    _, arrays = wire.decode(wire.encode(None, {"column": matrix[:, 1], "turned": matrix.T}), type(None))
    check_arrays(arrays, {"column": np.array([1.0, 4.0]), "turned": np.ascontiguousarray(matrix.T)})


def test_the_bytes_are_an_ordinary_safetensors_file() -> None:
    check_arrays(safetensors.numpy.load(wire.encode(REPORT, ARRAYS)), ARRAYS)


def test_a_file_cut_at_any_length_is_refused() -> None:
    data = wire.encode(REPORT, {"delta": ARRAYS["delta"]})
    for length in range(len(data)):
        with pytest.raises(MessageError, match="not a trainpool message"):
            wire.decode(data[:length], Report)


@given(st.binary(max_size=200))
def test_garbage_is_refused(data: bytes) -> None:
    with pytest.raises(MessageError):
        wire.decode(data, Report)


@given(st.integers(0, 10_000), st.integers(0, 255))
def test_a_damaged_byte_never_raises_anything_else(place: int, value: int) -> None:
    data = bytearray(wire.encode(REPORT, {"delta": ARRAYS["delta"]}))
    data[place % len(data)] = value
    try:
        message, _ = wire.decode(bytes(data), Report)
    except MessageError:
        return
    assert isinstance(message, Report)


def with_metadata(metadata: Any) -> bytes:
    header = json.dumps({"__metadata__": metadata} if metadata is not None else {}).encode()
    return struct.pack("<Q", len(header)) + header


@pytest.mark.parametrize("metadata", [None, {}, {"message": "{"}, {"message": "[1]"}, {"other": "1"}, {"message": ""}])
def test_a_file_without_a_proper_message_is_refused(metadata: Any) -> None:
    with pytest.raises(MessageError):
        wire.decode(with_metadata(metadata), Report)


@pytest.mark.parametrize(
    "change",
    [
        {"steps": 0},
        {"steps": "2"},
        {"task": -1},
        {"seconds": -1.0},
        {"loss": None},
        {"samples": 1.5},
        {"extra": 1},
    ],
    ids=str,
)
def test_a_message_of_another_shape_is_refused(change: dict[str, Any]) -> None:
    fields = msgspec.to_builtins(REPORT) | change
    with pytest.raises(MessageError):
        wire.decode(wire.encode(fields, {}), Report)


def test_a_message_of_another_type_is_refused() -> None:
    with pytest.raises(MessageError):
        wire.decode(wire.encode(TASK, {}), Report)


def test_files_are_written_whole_and_read_back(tmp_path: Path) -> None:
    path = tmp_path / "message"
    wire.write(path, wire.encode(TASK, {}))
    wire.write(path, wire.encode(REPORT, ARRAYS))
    assert wire.read(path, Report)[0] == REPORT
    assert list(tmp_path.iterdir()) == [path]


def test_what_cannot_be_read_is_named(tmp_path: Path) -> None:
    with pytest.raises(MessageError, match="absent"):
        wire.read(tmp_path / "absent", Report)
    (tmp_path / "short").write_bytes(b"1234")
    with pytest.raises(MessageError, match="short"):
        wire.read(tmp_path / "short", Report)


@dataclass(frozen=True)
class Inner:
    samples: int
    vector: Vector
    label: str | None = None


@dataclass(frozen=True)
class Outer:
    report: Report
    parts: dict[str, Inner]
    numbered: dict[int, Vector]
    history: list[float]
    pair: tuple[int, ...]
    last: Inner | None
    best: Vector
    scale: float = field(default=1.0)


OUTER = Outer(
    report=REPORT,
    parts={"b": Inner(1, np.ones(2, np.float32)), "a": Inner(2, np.zeros(0), "x")},
    numbered={5: np.arange(3.0), 2**40: np.arange(2)},
    history=[0.1, 1e300],
    pair=(1, 2, 3),
    last=Inner(3, np.full(1, np.inf)),
    best=np.zeros((2, 2)),
    scale=0.3,
)


def test_a_nested_state_comes_back_as_it_was() -> None:
    tree, tensors = wire.pack(OUTER)
    tree, tensors = wire.decode(wire.encode(tree, tensors), Any)
    found = wire.unpack(Outer, tree, tensors)
    assert list(found.parts) == ["b", "a"]
    assert (found.report, found.history, found.pair, found.scale) == (REPORT, [0.1, 1e300], (1, 2, 3), 0.3)
    assert found.last is not None
    assert (found.last.samples, found.last.label, found.parts["a"].label) == (3, None, "x")
    assert found.last.vector.tobytes() == np.full(1, np.inf).tobytes()
    check_arrays({str(k): v for k, v in found.numbered.items()}, {str(k): v for k, v in OUTER.numbered.items()})
    assert found.best.shape == (2, 2)
    assert wire.encode(*wire.pack(found)) == wire.encode(*wire.pack(OUTER))


def test_what_cannot_be_saved_says_so() -> None:
    with pytest.raises(TypeError, match="cannot save a Generator"):
        wire.pack({"random": np.random.default_rng()})


@pytest.mark.parametrize("damage", ["tensor", "field", "type", "reference"])
def test_a_state_that_does_not_fit_is_refused(damage: str) -> None:
    tree, tensors = wire.pack(OUTER)
    match damage:
        case "tensor":
            del tensors["t0"]
        case "field":
            del tree["history"]
        case "type":
            tree["pair"] = "no"
        case "reference":
            tree["best"] = 3
    with pytest.raises(MessageError, match="does not fit Outer"):
        wire.unpack(Outer, tree, tensors)
