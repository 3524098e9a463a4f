"""Messages with tensors as safetensors bytes: the message is JSON in the header's metadata, tensors are the body.

Nothing here executes or unpickles anything: a file is parsed by the safetensors library, which checks offsets and
bounds, and its message is checked against a type.
"""

import json
import os
import struct
from collections.abc import Mapping
from pathlib import Path
from typing import Any, TypeVar, get_origin

import msgspec
import numpy as np
import safetensors.numpy

from trainpool.errors import MessageError

__all__ = ["decode", "encode", "pack", "read", "unpack", "write"]

T = TypeVar("T")
MAX_HEADER = 100_000_000  # the safetensors format's own bound


def encode(message: Any, tensors: Mapping[str, np.ndarray[Any, Any]]) -> bytes:
    """A message (anything msgspec can write as JSON) and named arrays as one safetensors file."""
    metadata = {"message": msgspec.json.encode(message).decode()}
    return safetensors.numpy.save({k: np.ascontiguousarray(v) for k, v in tensors.items()}, metadata)


def decode(data: bytes, kind: type[T]) -> tuple[T, dict[str, np.ndarray[Any, Any]]]:
    """The message, checked against `kind`, and the arrays of a file made by `encode`.

    Raises:
        MessageError: the bytes are truncated, not safetensors, carry no message, or the message does not fit `kind`.
    """
    try:
        tensors = safetensors.numpy.load(data)
        (length,) = struct.unpack("<Q", data[:8])
        text = json.loads(data[8 : 8 + length])["__metadata__"]["message"]
        return msgspec.json.decode(text, type=kind), tensors
    except (safetensors.SafetensorError, struct.error, KeyError, TypeError, ValueError, msgspec.MsgspecError) as error:
        raise MessageError(f"not a trainpool message: {error}") from error


def write(path: Path, data: bytes) -> None:
    """Write a file so that it is whole or absent after a power cut: new name, flush, rename, flush of the folder."""
    temporary = path.with_name(f".{path.name}.{os.getpid()}.tmp")
    try:
        with temporary.open("wb") as file:
            file.write(data)
            file.flush()
            os.fsync(file.fileno())
        temporary.replace(path)
    finally:
        temporary.unlink(missing_ok=True)
    if os.name == "posix":  # Windows cannot open a folder, and orders the rename itself
        folder = os.open(path.parent, os.O_RDONLY)
        try:
            os.fsync(folder)
        finally:
            os.close(folder)


def read(path: Path, kind: type[T]) -> tuple[T, dict[str, np.ndarray[Any, Any]]]:
    """`decode` a file.

    Raises:
        MessageError: it is not there or not a well-formed message; the path is named.
    """
    try:
        return decode(path.read_bytes(), kind)
    except OSError as error:
        raise MessageError(f"{path}: {error.strerror}") from error
    except MessageError as error:
        raise MessageError(f"{path}: {error}") from error


class _Reference(msgspec.Struct, frozen=True):
    tensor: str


def pack(state: Any) -> tuple[Any, dict[str, np.ndarray[Any, Any]]]:
    """Any tree of dataclasses, structs, lists and dictionaries as plain values plus the arrays that it holds."""
    tensors: dict[str, np.ndarray[Any, Any]] = {}

    def reference(value: Any) -> Any:
        if isinstance(value, np.ndarray):
            name = f"t{len(tensors)}"
            tensors[name] = value
            return {"tensor": name}
        raise TypeError(f"cannot save a {type(value).__name__} in a state")

    return msgspec.to_builtins(state, enc_hook=reference, str_keys=True), tensors


def unpack(kind: type[T], tree: Any, tensors: Mapping[str, np.ndarray[Any, Any]]) -> T:
    """The state of type `kind` that `pack` took apart; the arrays are used as they are, not copied.

    Raises:
        MessageError: the tree does not fit `kind`.
    """

    def dereference(wanted: type, value: Any) -> Any:
        if wanted is np.ndarray or get_origin(wanted) is np.ndarray:
            return tensors[msgspec.convert(value, _Reference).tensor]
        raise TypeError(f"cannot load a {wanted}")

    try:
        return msgspec.convert(tree, kind, dec_hook=dereference, str_keys=True)
    except (msgspec.MsgspecError, KeyError, TypeError) as error:
        raise MessageError(f"a saved state does not fit {kind.__name__}: {error}") from error
