"""Recording a function of tensors as one flat graph of functional PyTorch operators, and where each came from."""

import linecache
import sys
from collections.abc import Callable, Iterator, Sequence
from contextlib import ExitStack, contextmanager
from functools import cache
from pathlib import Path
from traceback import walk_tb
from types import FrameType
from typing import Any

import torch
from torch import Tensor, nn
from torch.func import functionalize
from torch.fx import GraphModule, Interpreter
from torch.fx import traceback as record
from torch.fx.experimental.proxy_tensor import make_fx
from torch.nn.attention import SDPBackend, sdpa_kernel
from torch.overrides import TorchFunctionMode

from trainpool.errors import LoweringError, TrainpoolError
from trainpool.kernels import noise
from trainpool.lowering.decompositions.base import table
from trainpool.lowering.decompositions.normalisation import batch_norm

__all__ = ["Trail", "placed", "trace"]

HERE = str(Path(__file__).parent)
KERNELS = str(Path(noise.__file__).parent)
TORCH = str(Path(torch.__file__).parent)
CALLERS = [str(Path(__file__).parent / name) for name in ("lowered.py", "step.py")]
"""What calls the author's code: above it, nothing is the author's any more."""
EARLY = {torch.ops.aten.native_batch_norm.default: batch_norm}
"""Taken apart at once: it changes its running statistics without saying so."""


@cache
def users(file: str) -> bool:
    """Whether a file is the user's, neither PyTorch's nor ours."""
    return not file.startswith((TORCH, HERE, KERNELS)) and "<" not in file


class Trail(TorchFunctionMode):
    """Notes for each operator, forward and backward, the module's path and the line of the user's code."""

    def __init__(self, model: nn.Module) -> None:
        super().__init__()
        self.names = {module: name for name, module in model.named_modules()}
        self.stack: list[str] = []
        self.hooks: list[Any] = []
        self.seen: dict[Any, str] = {}
        self.last = ""
        """Where the last operator came from that came from the user's code."""

    def enter(self, module: nn.Module, inputs: Any) -> None:
        """A module begins."""
        self.stack.append(self.names.get(module, type(module).__name__))

    def leave(self, module: nn.Module, inputs: Any, output: Any) -> None:
        """A module ends."""
        self.stack.pop()

    def place(self) -> str:
        """Where the program is now: the module's path and the line that is the user's."""
        frame: FrameType | None = sys._getframe(2)
        while frame is not None and not users(frame.f_code.co_filename):
            frame = None if frame.f_code.co_filename in CALLERS else frame.f_back
        return self.described(frame, frame.f_lineno if frame is not None else 0)

    def described(self, frame: FrameType | None, number: int) -> str:
        """In words: the module that runs, and a line of a frame."""
        module = next((name for name in reversed(self.stack) if name), "")
        parts = [f"module {module}"] if module else []
        if frame is not None:
            file = frame.f_code.co_filename
            parts.append(f"{Path(file).name}, line {number}: {linecache.getline(file, number).strip()}")
        return "; ".join(parts)

    def origin(self, error: BaseException) -> str:
        """Where an error came from: the user's innermost line, or else the last operator's place."""
        lines = [(frame, number) for frame, number in walk_tb(error.__traceback__) if users(frame.f_code.co_filename)]
        return self.described(*lines[-1]) if lines else self.last

    def __torch_function__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        """Called for every PyTorch function while the mode is active."""
        place = self.place()
        self.note(place)
        result = func(*args, **(kwargs or {}))
        for item in torch.utils._pytree.tree_leaves(result):
            if isinstance(item, Tensor):
                self.follow(item.grad_fn, place)
        return result

    def note(self, place: str) -> None:
        """Say where the next operators come from."""
        record.current_meta["stack_trace"] = place
        self.last = place or self.last

    def follow(self, node: Any, place: str) -> None:
        """Remember where an autograd node, and those that came to be with it, were made."""
        waiting = [node]
        while waiting:
            node = waiting.pop()
            if node is None or node in self.seen:
                continue
            self.seen[node] = place
            waiting += [n for n, _ in node.next_functions]

    def watch(self, loss: Tensor) -> None:
        """From here on the gradient is taken: tell for each operator what it belongs to."""
        for node, place in self.seen.items():
            place = f"the gradient of {place}" if place else ""
            self.hooks.append(node.register_prehook(lambda _, place=place: self.note(place)))

    @contextmanager
    def active(self, model: nn.Module) -> Iterator[None]:
        """Follow a model's modules."""
        handles = []
        for module in model.modules():
            handles.append(module.register_forward_pre_hook(self.enter))
            handles.append(module.register_forward_hook(self.leave))
        try:
            with self:
                yield
        finally:
            for handle in [*handles, *self.hooks]:
                handle.remove()
            self.seen.clear()


@contextmanager
def placed(model: nn.Module, trail: Trail) -> Iterator[None]:
    """Follow a model's modules; errors tell their place.

    Raises:
        LoweringError: the author's code, or a part of it that no program can have, raised an error.
    """
    with record.preserve_node_meta():
        try:
            with trail.active(model):
                yield
        except Exception as error:
            text = str(error) if isinstance(error, TrainpoolError) else explain(error)
            place = trail.origin(error)
            raise LoweringError(f"{text}{f' ({place})' if place else ''}") from error


def trace(function: Callable[..., Any], arguments: Sequence[Any], model: nn.Module, trail: Trail) -> GraphModule:
    """The graph of `function(*arguments)`: functional operators of the core set and our own, static shapes.

    Raises:
        LoweringError: the function's path depends on the tensors' values, or a part of it cannot be recorded.
    """
    with ExitStack() as stack:
        stack.enter_context(sdpa_kernel(SDPBackend.MATH))
        # Not torch.backends.mkldnn.flags: it warns of settings for other processors.
        stack.callback(torch._C._set_mkldnn_enabled, torch._C._get_mkldnn_enabled())
        torch._C._set_mkldnn_enabled(False)
        fast = torch.backends.mha.get_fastpath_enabled()
        torch.backends.mha.set_fastpath_enabled(False)
        stack.callback(torch.backends.mha.set_fastpath_enabled, fast)
        stack.enter_context(record.preserve_node_meta())
        with placed(model, trail):
            first = make_fx(function, decomposition_table=EARLY, tracing_mode="fake", _allow_non_fake_inputs=True)(
                *arguments
            )
        leaves = torch.utils._pytree.tree_leaves(list(arguments))
        flat = Flat(first)
        second: GraphModule = make_fx(
            functionalize(flat, remove="mutations"),
            decomposition_table=table(),
            tracing_mode="fake",
            _allow_non_fake_inputs=True,
        )(*leaves)
    second.graph.eliminate_dead_code()
    return second


class Flat:
    """A graph as a function of its flat inputs, which hands the notes on."""

    def __init__(self, graph: GraphModule) -> None:
        self.interpreter = Interpreter(graph)

    def __call__(self, *leaves: Tensor) -> Any:
        """Run the graph."""
        return self.interpreter.run(*leaves, enable_io_processing=False)


def explain(error: Exception) -> str:
    """One line for an exception of the tracer's."""
    text = " ".join(str(error).split())
    if "data-dependent" in text.lower() or "get a value out of" in text or "aten._local_scalar_dense" in text:
        return (
            "the program's path depends on a tensor's value (an `if`, `int()`, `.item()` or a boolean index on it): "
            "write it with torch.where or a mask"
        )
    return f"{type(error).__name__}: {text[:300]}"
