"""Runs a task with PyTorch, on a CPU or a CUDA device.

What makes it fast: images and convolution weights live in channels-last memory where that pays; one fused optimizer
step touches each parameter once; parameters are copied once on the way in and once, as a delta, on the way
out; a shard stays on the device between tasks.
"""

import math
import time
from collections import OrderedDict
from collections.abc import Callable, Iterator
from contextlib import AbstractContextManager, contextmanager, nullcontext
from itertools import count
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn

from trainpool import rng
from trainpool.errors import ConfigError, ModelError
from trainpool.kernels.noise import Noise
from trainpool.kernels.protocol import Arrays, Calibration, Evaluation, KernelError
from trainpool.messages import Recipe, Report, ShardId, Task
from trainpool.vector import Layout, Role, Vector

__all__ = ["TorchKernel", "check_device", "layout_of", "load", "vector_of"]

Loss = Callable[[Any, Tensor], Tensor]
Preprocess = Callable[[Tensor], Any]
Augment = Callable[[Tensor], Tensor]

CACHE_BYTES = 1_000_000_000
"""Of shards kept on the device, least recently used first out; on the CPU they share the worker's memory."""
EVALUATION_BATCH = 100
"""Larger ones overflow the processor's cache and take longer a sample."""

ROLES: dict[str, Role] = {
    "running_mean": "running-mean",
    "running_var": "running-var",
    "num_batches_tracked": "counter",
}


def trained_tensors(model: nn.Module) -> dict[str, tuple[Tensor, Role]]:
    """The tensors that a model trains or keeps as state, by their names in `state_dict`."""
    tensors: dict[str, tuple[Tensor, Role]] = {
        name: (p, "parameter") for name, p in model.named_parameters() if p.requires_grad
    }
    state = model.state_dict(keep_vars=True)
    for name, buffer in model.named_buffers():
        if name in state:
            tensors[name] = (buffer, ROLES.get(name.rpartition(".")[2], "other"))
    return tensors


def layout_of(model: nn.Module) -> Layout:
    """The layout of a model's flat vector. Frozen parameters are no part of it.

    Raises:
        ModelError: there is nothing to train, or the parameters are not all float32 (or all float64).
    """
    tensors = trained_tensors(model)
    kinds = {tensor.dtype for tensor, role in tensors.values() if role == "parameter"}
    if not kinds:
        raise ModelError(f"the model {type(model).__name__} has no parameters that require gradients: nothing to train")
    if len(kinds) > 1 or not kinds <= {torch.float32, torch.float64}:
        names = ", ".join(sorted(str(kind) for kind in kinds))
        raise ModelError(
            f"parameters must be float32, not {names}; call model.float(), and choose bfloat16 in the recipe"
        )
    return Layout.of({name: (tuple(tensor.shape), role) for name, (tensor, role) in tensors.items()})


def vector_of(model: nn.Module) -> Vector:
    """A copy of a model's parameters and buffers as one flat vector, in the order of `layout_of`."""
    tensors = trained_tensors(model)
    return np.concatenate(
        [
            tensors[spec.name][0].detach().cpu().to(dtype_of(model)).numpy().reshape(-1)
            for spec in layout_of(model).tensors
        ]
    )


def dtype_of(model: nn.Module) -> torch.dtype:
    """The type of a model's trained parameters."""
    return next(p.dtype for p in model.parameters() if p.requires_grad)


class TorchKernel:
    """Runs tasks for one `nn.Module`, which it takes over: its parameters' memory is rearranged."""

    def __init__(
        self,
        model: nn.Module,
        loss: Loss,
        preprocess: Preprocess | None = None,
        device: str = "cpu",
        *,
        augment: Augment | None = None,
    ) -> None:
        """Move the model to the device; `device` is PyTorch's name of one.

        On a GPU, convolutions no longer round to TF32 in this process: their updates would differ from a processor's by
        a thousandth and more. bfloat16 is there for speed.
        """
        self.device = torch.device(device)
        if self.device.type == "cuda":
            torch.backends.cudnn.allow_tf32 = False
        self.layout = layout_of(model)
        self.model = model.to(self.device)
        self.loss, self.preprocess, self.augment = loss, preprocess or scale, augment
        self.random = True
        """Whether a step draws random numbers: found out in the first one, so that those without any go unwatched."""
        self.dtype = dtype_of(model)
        # Convolutions, pooling and BatchNorm are faster so; GroupNorm is slower by as much, and would tip the balance.
        kinds = {type(module) for module in model.modules()}
        self.channels_last = nn.Conv2d in kinds and nn.GroupNorm not in kinds
        tensors = trained_tensors(self.model)
        self.tensors = [(spec, tensors[spec.name][0]) for spec in self.layout.tensors]
        self.parameters = [tensor for spec, tensor in self.tensors if spec.role == "parameter"]
        if self.channels_last:
            for p in self.parameters:
                if p.dim() == 4:
                    p.data = channels_last(p.data)
        self.cache: OrderedDict[str, tuple[Tensor, Tensor]] = OrderedDict()

    def run(self, task: Task, vector: Vector, anchor: Vector | None, shard: Arrays, out: Vector) -> Report:
        """Train; see `Kernel.run`."""
        recipe = task.recipe
        self.load(vector)
        x, y = self.on_device(task.shard, shard)
        centre = (
            self.like_parameters(vector[: self.layout.trainable] if anchor is None else anchor) if task.rho else None
        )
        torch.manual_seed(rng.derive(task.seed, task.offset))
        self.model.train()
        optimizer = optimizer_of(recipe, self.parameters)
        total = torch.zeros((), dtype=torch.float64, device=self.device)
        begin = time.perf_counter()
        rows = rng.batches(task.seed, y.shape[0], task.offset, task.steps, task.batch)
        for step, chosen in enumerate(rows):
            index = torch.from_numpy(chosen).to(self.device)
            with self.noise(task, step):
                loss = self.forward(self.augmented(x.index_select(0, index)), y.index_select(0, index), recipe)
            if step == 0 and not bool(torch.isfinite(loss)):
                raise KernelError(
                    f"the loss is {loss.item()} at the first step: check the data and lower the learning rate"
                )
            loss.backward()  # type: ignore[no-untyped-call]
            total += loss.detach()
            self.adjust(recipe, task.rho, centre)
            for group in optimizer.param_groups:
                group["lr"] = recipe.rate(task.progress + step * task.pace)
            optimizer.step()
            optimizer.zero_grad(set_to_none=True)
        mean = total.item() / task.steps
        seconds = time.perf_counter() - begin
        if not np.isfinite(mean):
            raise KernelError(
                f"the loss became {mean} within {task.steps} steps: lower the learning rate or set clip_norm"
            )
        self.store(vector, out)
        return Report(task=task.id, steps=task.steps, samples=task.steps * task.batch, loss=mean, seconds=seconds)

    def evaluate(self, vector: Vector, data: Arrays) -> Evaluation:
        """Measure; see `Kernel.evaluate`."""
        self.load(vector)
        x, y = self.on_device("evaluation", data)
        self.model.eval()
        labels = y.dtype == torch.int64 and y.dim() == 1
        loss, correct = 0.0, 0
        with torch.inference_mode():
            for part in slices(y.shape[0], EVALUATION_BATCH):
                output = self.model(self.inputs(x[part]))
                loss += self.loss(output, y[part]).item() * y[part].shape[0]
                if labels:
                    correct += int((output.argmax(1) == y[part]).sum())
        samples = y.shape[0]
        return Evaluation(loss / samples, correct / samples if labels else None, samples)

    def recalibrate(self, vector: Vector, shards: Callable[[ShardId], Arrays], calibration: Calibration) -> Vector:
        """Measure BatchNorm's statistics anew, all batches weighing the same; see `Kernel.recalibrate`."""
        self.load(vector)
        self.model.eval()  # only the statistics are wanted: no dropout
        norms = [module for module in self.model.modules() if isinstance(module, nn.modules.batchnorm._BatchNorm)]
        momenta = [module.momentum for module in norms]
        for module in norms:
            module.reset_running_stats()
            module.momentum = None  # a plain mean over batches
            module.train()
        with torch.no_grad():
            for number in range(calibration.batches):
                turn, place = divmod(number, len(calibration.shards))
                name = calibration.shards[place]
                x, y = self.on_device(name, shards(name))
                offset = turn * calibration.batch
                (rows,) = rng.batches(0, y.shape[0], offset, 1, calibration.batch)
                self.model(self.inputs(x.index_select(0, torch.from_numpy(rows).to(self.device))))
        for module, momentum in zip(norms, momenta, strict=True):
            module.momentum = momentum
        result, trainable = vector.copy(), self.layout.trainable
        views = self.layout.views(result)
        for spec, tensor in self.tensors:
            if spec.role != "parameter":
                torch.from_numpy(views[spec.name]).copy_(tensor)
        return result[trainable:]

    def inputs(self, x: Tensor) -> Any:
        """The model's input from a batch as the shard has it."""
        prepared = self.preprocess(x)
        if isinstance(prepared, Tensor):
            if prepared.is_floating_point() and prepared.dtype != self.dtype:
                prepared = prepared.to(self.dtype)
            if self.channels_last and prepared.dim() == 4:
                prepared = channels_last(prepared)
        return prepared

    def forward(self, x: Tensor, y: Tensor, recipe: Recipe) -> Tensor:
        """The mean loss of a batch."""
        with self.autocast(recipe):
            loss = self.loss(self.model(self.inputs(x)), y)
        if loss.dim() != 0:
            raise KernelError(
                f"the loss must be one number (a mean over the batch), not a tensor of shape {tuple(loss.shape)}"
            )
        return loss

    def augmented(self, x: Tensor) -> Tensor:
        """A batch as stored, changed at random where the experiment asks for it."""
        return x if self.augment is None else self.augment(x)

    @contextmanager
    def noise(self, task: Task, step: int) -> Iterator[None]:
        """While a step's random operators use the task's own numbers; nothing where there are none."""
        if not self.random:
            yield
            return
        calls = count()

        def draw(shape: tuple[int, ...]) -> Tensor:
            numbers = rng.noise(task.seed, next(calls), task.offset + step * task.batch, math.prod(shape))
            return torch.from_numpy(numbers.reshape(shape)).to(self.device)

        with Noise(draw):
            yield
        self.random = next(calls) > 0

    def autocast(self, recipe: Recipe) -> AbstractContextManager[Any]:
        """Mixed precision where the recipe asks for it and the device is a GPU."""
        if recipe.precision == "bfloat16" and self.device.type == "cuda":
            return torch.autocast("cuda", torch.bfloat16)
        return nullcontext()

    def adjust(self, recipe: Recipe, rho: float, centre: list[Tensor] | None) -> None:
        """Clip the loss's gradient, then add the proximal term's, rho·(x - anchor)."""
        if recipe.clip_norm:
            nn.utils.clip_grad_norm_(self.parameters, recipe.clip_norm)
        if centre is not None:
            with torch.no_grad():
                for p, a in zip(self.parameters, centre, strict=True):
                    if p.grad is not None:
                        p.grad.add_(p, alpha=rho).sub_(a, alpha=rho)

    def load(self, vector: Vector) -> None:
        """Copy parameters and buffers into the model."""
        views = self.layout.views(vector)
        with torch.no_grad():
            for spec, tensor in self.tensors:
                tensor.copy_(torch.from_numpy(views[spec.name]))

    def store(self, start: Vector, out: Vector) -> None:
        """Write `start` minus the parameters, and the buffers as they are, to `out`."""
        before, after = self.layout.views(start), self.layout.views(out)
        with torch.no_grad():
            for spec, tensor in self.tensors:
                target = torch.from_numpy(after[spec.name])
                if spec.role == "parameter":
                    torch.sub(torch.from_numpy(before[spec.name]), tensor.cpu(), out=target)
                else:
                    target.copy_(tensor)

    def like_parameters(self, flat: Vector) -> list[Tensor]:
        """A trainable-sized vector as tensors on the device, shaped and strided as the parameters."""
        parts = []
        for spec, tensor in self.tensors:
            if spec.role == "parameter":
                part = torch.from_numpy(flat[spec.offset : spec.offset + spec.size].reshape(spec.shape))
                parts.append(torch.empty_like(tensor).copy_(part))
        return parts

    def on_device(self, name: str, shard: Arrays) -> tuple[Tensor, Tensor]:
        """A shard's samples on the device."""
        if name not in self.cache:
            self.cache[name] = (
                torch.from_numpy(shard["x"]).to(self.device),
                torch.from_numpy(shard["y"]).to(self.device),
            )
            while len(self.cache) > 1 and sum(x.nbytes + y.nbytes for x, y in self.cache.values()) > CACHE_BYTES:
                self.cache.popitem(last=False)
        self.cache.move_to_end(name)
        return self.cache[name]


def optimizer_of(recipe: Recipe, parameters: list[Tensor]) -> torch.optim.Optimizer:
    """A fresh local optimizer."""
    if recipe.optimizer == "adamw":
        return torch.optim.AdamW(
            parameters,
            lr=recipe.learning_rate,
            betas=recipe.betas,
            eps=recipe.epsilon,
            weight_decay=recipe.weight_decay,
            fused=True,
        )
    return torch.optim.SGD(
        parameters,
        lr=recipe.learning_rate,
        momentum=recipe.momentum,
        nesterov=recipe.nesterov,
        weight_decay=recipe.weight_decay,
        fused=True,
    )


def channels_last(x: Tensor) -> Tensor:
    """A 4-D tensor in channels-last memory, by its strides too.

    With one channel both memory orders are the same, `Tensor.contiguous` then keeps the other's strides, and the
    convolution after it answers in the slower order.
    """
    if x.shape[1] == 1 and x.is_contiguous():
        return x.as_strided(x.shape, (x.stride(0), 1, x.stride(2), 1))
    return x.contiguous(memory_format=torch.channels_last)


def scale(x: Tensor) -> Tensor:
    """The default preprocessing: bytes become floats from 0 to 1, everything else stays."""
    return x.float() / 255 if x.dtype == torch.uint8 else x


def slices(size: int, step: int) -> Iterator[slice]:
    """Consecutive slices that cover `range(size)`."""
    return (slice(start, start + step) for start in range(0, size, step))


def check_device(name: str) -> None:
    """See that PyTorch has a device of that name; `auto` always is.

    Raises:
        ConfigError: it has not.
    """
    try:
        device = torch.device("cpu" if name == "auto" else name)
        if device.type != "cuda":  # with CUDA this would take some of the GPU's memory, for as long as the run goes on
            torch.empty(0, device=device)
        elif (device.index or 0) >= torch.cuda.device_count():
            raise ConfigError(f"no device {name!r}: PyTorch sees {torch.cuda.device_count()} GPUs here")
    except (RuntimeError, AssertionError, NotImplementedError) as error:
        raise ConfigError(f"no device {name!r} here: {str(error).splitlines()[0]}") from error


def load(program: Path, device: str, number: int, threads: int) -> tuple[TorchKernel, str]:
    """The kernel of an author's pickled (model, loss, preprocess, augment), and the name of its device.

    `device` `auto` is the GPU that falls to worker `number`, or the CPU. The file must be this machine's own user's:
    unpickling executes it.
    """
    import cloudpickle

    torch.set_num_threads(threads)
    if device == "auto":
        device = f"cuda:{number % torch.cuda.device_count()}" if torch.cuda.is_available() else "cpu"
    model, loss, preprocess, augment = cloudpickle.loads(program.read_bytes())
    # PyTorch imports its compiler, a second or two, when the first optimizer is made: not in the first task's time.
    optimizer_of(Recipe(), [torch.zeros(1, requires_grad=True)]).zero_grad()
    return TorchKernel(model, loss, preprocess, device, augment=augment), device
