"""`lower`: record, write, compare."""

import copy
import hashlib
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import onnx
import torch
from torch import Tensor, nn

from trainpool import program as programs
from trainpool.data import Source
from trainpool.errors import LoweringError
from trainpool.experiment import Experiment
from trainpool.kernels.noise import Noise
from trainpool.kernels.torch import dtype_of, layout_of, scale, trained_tensors, vector_of
from trainpool.lowering.check import Comparison, compare
from trainpool.lowering.graph import Graph
from trainpool.lowering.step import evaluation, training
from trainpool.lowering.trace import Trail, placed, trace
from trainpool.lowering.write import write
from trainpool.messages import Recipe
from trainpool.program import BLOCKED, Array, Baked, File, Loaded, Program, Sample
from trainpool.vector import Layout

__all__ = ["Lowered", "lower"]

EVALUATION_BATCH = 100


@dataclass(frozen=True)
class Lowered:
    """A program in memory, compared with PyTorch."""

    loaded: Loaded
    files: dict[str, bytes]
    comparison: Comparison
    nodes: int
    """Operators of a training step."""

    @property
    def program(self) -> Program:
        """The manifest."""
        return self.loaded.program

    def save(self, folder: str | Path) -> Path:
        """Write the program's files.

        Raises:
            LoweringError: its updates are not PyTorch's.
            ProgramError: the folder cannot be written.
        """
        self.check()
        programs.save(Path(folder), self.program, self.files)
        return Path(folder)

    def check(self) -> None:
        """See that the program computes what PyTorch does.

        Raises:
            LoweringError: it does not, beyond rounding.
        """
        found = self.comparison
        if not found.agrees:
            raise LoweringError(
                f"the program is not what PyTorch computes: after {found.steps} steps the update differs by "
                f"{found.apart:.1e} of its size, the buffers by {found.buffers:.1e}, the evaluation by "
                f"{found.evaluation:.1e} (at most {found.limit:.0e}); does the model keep state outside of its "
                "buffers, or draw random numbers with another library?"
            )


def lower(experiment: Experiment, recipe: Recipe | None = None, *, proximal: bool = True, steps: int = 3) -> Lowered:
    """The program of an experiment: what a worker without PyTorch needs for its tasks.

    Args:
        experiment: model, data, loss, preprocessing and augmentation. The data give shapes and a few batches on which
            the program is compared with PyTorch; they are no part of the program.
        recipe: optimizer, clipping and batch size, which become part of the program; the learning rate does not.
        proximal: whether tasks may have a proximal term, as ADMM's, EASGD's and FedProx's do; it costs some time.
        steps: training steps of the comparison.

    Raises:
        LoweringError: a part of the training step has no ONNX form; the line says which and where.
        ModelError: model, loss and data do not fit together.
    """
    recipe = recipe or Recipe()
    source = experiment.sources()[0]
    batch = recipe.batch_size
    if not batch:
        raise LoweringError("a program has batches of one size: set batch_size above 0")
    if recipe.precision != "float32":
        raise LoweringError(f"a program computes in float32, not in {recipe.precision}")
    x, y = rows_of(source, batch, steps)
    experiment.check(x, y, 0)
    if dtype_of(experiment.model) != torch.float32:
        raise LoweringError(f"a program computes in float32; the model is {dtype_of(experiment.model)}")
    for name, module in experiment.model.named_modules():
        kept = isinstance(module, nn.modules.batchnorm._BatchNorm) and module.track_running_stats
        if kept and module.momentum is None:
            raise LoweringError(
                f"module {name}: {type(module).__name__} with momentum=None weighs a batch by how many came before, "
                "which no program can: give it a momentum"
            )
    model = copy.deepcopy(experiment.model).cpu()
    layout = layout_of(model)
    labels = y.dtype == np.int64 and y.ndim == 1
    made = Pieces(
        model, experiment.loss_function(), experiment.preprocess or scale, experiment.augment, recipe, layout, proximal
    )
    sample, target = torch.from_numpy(x[:batch].copy()), torch.from_numpy(y[:batch].copy())
    trains, noise, state = made.train(sample, target)
    shown, answers = (filled(torch.from_numpy(v), EVALUATION_BATCH) for v in (x, y))
    test, each = made.evaluate(shown, answers, labels)
    blocked = {block: onnx_bytes(graph, "train") for block, graph in trains.items() if graph.blocked}
    files = {
        "train.onnx": onnx_bytes(trains[0], "train"),
        "evaluate.onnx": onnx_bytes(test, "evaluate"),
        "layout.json": programs.encode(layout),
    }
    more = {BLOCKED[block]: data for block, data in blocked.items()}
    operators = {node.op_type for name in ("train.onnx", "evaluate.onnx") for node in nodes_of(files[name])}
    if foreign := operators - programs.OPERATORS:
        raise LoweringError(f"the graphs need operators that no program may use: {', '.join(sorted(foreign))}")
    program = Program(
        name=experiment.name,
        files={name: described(data) for name, data in files.items()},
        batch=batch,
        evaluation_batch=EVALUATION_BATCH,
        x=Sample(x.dtype.name, x.shape[1:]),
        y=Sample(y.dtype.name, y.shape[1:]),
        correct=labels,
        recipe=Baked(**{field: getattr(recipe, field) for field in Baked.__struct_fields__}),
        state=state,
        noise=noise,
        operators=tuple(sorted(operators)),
        blocked={name: described(data) for name, data in more.items()},
    )
    loaded = Loaded(program, layout, files["train.onnx"], files["evaluate.onnx"], blocked, programs.name_of(program))
    comparison = compare(loaded, experiment, vector_of(experiment.model), recipe, x, y, steps, proximal, each)
    return Lowered(loaded, files | more, comparison, len(nodes_of(files["train.onnx"])))


def described(data: bytes) -> File:
    """What a manifest says of a file."""
    return File(hashlib.sha256(data).hexdigest(), len(data))


def rows_of(source: Source, batch: int, steps: int) -> tuple[np.ndarray[Any, Any], np.ndarray[Any, Any]]:
    """Enough samples for some steps, as a shard stores them; repeated where there are fewer.

    From the whole source, in equal distances: where it is sorted, its first samples are of one class.
    """
    count = min(len(source), max(batch * steps, EVALUATION_BATCH + 1))
    rows = np.arange(count) * len(source) // count
    x, y = source.gather(rows)
    wanted = np.arange(max(batch, len(rows))) % len(rows)
    return np.asarray(x)[wanted], np.asarray(y)[wanted]


def filled(values: Tensor, count: int) -> Tensor:
    """So many samples in equal distances, repeated where there are fewer."""
    return values[torch.arange(count) * len(values) // count]


@dataclass(frozen=True)
class Pieces:
    """What the two graphs are made from."""

    model: nn.Module
    loss: Callable[[Any, Tensor], Tensor]
    preprocess: Callable[[Tensor], Any]
    augment: Callable[[Tensor], Tensor] | None
    recipe: Recipe
    layout: Layout
    proximal: bool

    def prepare(self, training: bool) -> Callable[[Tensor], Any]:
        """From a stored batch to the model's input."""
        augment = self.augment if training else None

        def run(x: Tensor) -> Any:
            prepared = self.preprocess(x if augment is None else augment(x))
            return prepared.float() if isinstance(prepared, Tensor) and prepared.is_floating_point() else prepared

        return run

    def tensors(self) -> tuple[list[str], list[Tensor], list[str], list[Tensor]]:
        """Names and values of the parameters and of the buffers, in the layout's order, as float32."""
        found = trained_tensors(self.model)
        names: tuple[list[str], list[str]] = ([], [])
        values: tuple[list[Tensor], list[Tensor]] = ([], [])
        for spec in self.layout.tensors:
            side = int(spec.role != "parameter")
            names[side].append(spec.name)
            values[side].append(found[spec.name][0].detach().float().clone())
        return names[0], values[0], names[1], values[1]

    def train(self, x: Tensor, y: Tensor) -> tuple[dict[int, Graph], tuple[Array, ...], tuple[Array, ...]]:
        """The training step's graphs by the size of blocks (0: plain), its noise and its optimizer's state."""
        self.model.train()
        noise = [Array(f"noise.{k}", shape) for k, shape in enumerate(self.noise(x, y))]
        names, parameters, buffer_names, buffers = self.tensors()
        state = [
            Array(f"{kind}.{name}", tuple(p.shape))
            for name, p in zip(names, parameters, strict=True)
            for kind in state_of(self.recipe)
        ]
        scalars = [torch.tensor(v, dtype=torch.float32) for v in (0.1, 0.0, 1.0)]
        lists = [
            [torch.rand(array.shape) for array in noise],
            parameters,
            buffers,
            [torch.zeros(array.shape) for array in state],
            [p.clone() for p in parameters],
        ]
        trail = Trail(self.model)
        step = training(self.model, self.loss, self.prepare(True), self.recipe, trail.watch, self.proximal)
        recorded = trace(step, [x, y, *scalars, *lists], self.model, trail)
        labels, outputs = programs.names([a.name for a in noise], names, buffer_names, [a.name for a in state])
        leaves = [x, y, *scalars, *(tensor for part in lists for tensor in part)]
        inputs = list(zip(labels, leaves, strict=True))
        graphs = {block: write(recorded, inputs, outputs, block) for block in (0, *BLOCKED)}
        return graphs, tuple(noise), tuple(state)

    def noise(self, x: Tensor, y: Tensor) -> list[tuple[int, ...]]:
        """The shapes of the random numbers that a step draws, in order.

        Raises:
            LoweringError: it draws some that no kernel can repeat.
        """
        shapes: list[tuple[int, ...]] = []

        def source(shape: tuple[int, ...]) -> Tensor:
            shapes.append(shape)
            return torch.full(shape, 0.5)

        model = copy.deepcopy(self.model)
        with Noise(source), placed(model, Trail(model)), torch.no_grad():  # the trail sees an operator first
            self.loss(model(self.prepare(True)(x)), y)
        return shapes

    def evaluate(self, x: Tensor, y: Tensor, labels: bool) -> tuple[Graph, bool]:
        """The evaluation's graph; whether it takes each sample's own loss, as where the loss is a mean of them."""
        self.model.eval()
        names, parameters, buffer_names, buffers = self.tensors()
        mask = torch.ones(len(x))
        arguments = [x, y, mask, parameters, buffers]
        each = self.separates(x, y, labels)
        function = evaluation(self.model, self.loss, self.prepare(False), labels, each)
        recorded = trace(function, arguments, self.model, Trail(self.model))
        labels_ = ["x", "y", "mask", *(f"p.{n}" for n in names), *(f"b.{n}" for n in buffer_names)]
        leaves = [x, y, mask, *parameters, *buffers]
        return write(recorded, list(zip(labels_, leaves, strict=True)), ["loss", "correct"]), each

    def separates(self, x: Tensor, y: Tensor, labels: bool) -> bool:
        """Whether the loss is the mean of the samples' own, found by trying.

        With labels, every class is tried, as the samples may lack one that weighs more, or that the loss ignores.
        """
        with torch.no_grad():
            output = self.model(self.prepare(False)(x))
            targets = [y]
            if labels and isinstance(output, Tensor) and output.dim() == 2:
                classes = output.shape[1]
                targets += [torch.arange(k, k + len(y)) % classes for k in range(0, classes, len(y))]
            elif bool((y == y[0]).all()):  # one target shows nothing
                return False
            alone = torch.vmap(lambda o, t: self.loss(torch.utils._pytree.tree_map(lambda v: v[None], o), t[None]))
            try:
                for target in targets:
                    whole = self.loss(output, target)
                    if not (whole.isfinite() and torch.isclose(alone(output, target).mean(), whole, rtol=1e-4)):
                        return False
            except Exception:  # whatever the author's code does with a batch of one
                return False
        return True


def state_of(recipe: Recipe) -> tuple[str, ...]:
    """What a local optimizer keeps for each parameter."""
    if recipe.optimizer == "adamw":
        return ("first", "second")
    return ("momentum",) if recipe.momentum else ()


def onnx_bytes(graph: Graph, name: str) -> bytes:
    """A checked file."""
    model = graph.model(name)
    onnx.checker.check_model(model)
    return bytes(model.SerializeToString(deterministic=True))


def nodes_of(data: bytes) -> list[onnx.NodeProto]:
    """The operators of a file."""
    return list(onnx.load_from_string(data).graph.node)
