"""What the coordinator and its workers say to each other. Arrays travel beside these, never inside."""

import math
from typing import Annotated, Literal, TypeAlias

import msgspec
from msgspec import Meta

from trainpool.vector import Vector

__all__ = ["Optimizer", "Recipe", "Report", "Schedule", "ShardId", "Task", "Update"]

ShardId: TypeAlias = str
"""The SHA-256 of a shard's file, in hexadecimal."""

Optimizer: TypeAlias = Literal["sgd", "adamw"]
Schedule: TypeAlias = Literal["constant", "linear", "cosine"]

Positive = Annotated[float, Meta(gt=0)]
NotNegative = Annotated[float, Meta(ge=0)]
Fraction = Annotated[float, Meta(ge=0, lt=1)]
Count = Annotated[int, Meta(ge=0)]


class Recipe(msgspec.Struct, frozen=True, kw_only=True, forbid_unknown_fields=True):
    """What a worker does with a task: local optimizer, learning rate and its schedule, batch size."""

    optimizer: Optimizer = "sgd"
    """`sgd` (`momentum`, `nesterov`) or `adamw` (`betas`, `epsilon`); its state starts anew in every task."""
    learning_rate: Positive = 0.1
    """The peak learning rate."""
    batch_size: Count = 32
    """Samples a step; 0 means the whole shard."""
    momentum: Fraction = 0.0
    nesterov: bool = False
    weight_decay: NotNegative = 0.0
    """Coupled (an L2 term in the gradient) with `sgd`, decoupled with `adamw`."""
    betas: tuple[Fraction, Fraction] = (0.9, 0.999)
    epsilon: Positive = 1e-8
    clip_norm: NotNegative = 0.0
    """Rescale a step's gradient to at most this Euclidean norm; 0 leaves it alone."""
    schedule: Schedule = "cosine"
    """How the learning rate falls to zero over the run's samples: it follows global progress, not a task's."""
    warmup: Fraction = 0.0
    """The part of the run in which the learning rate rises linearly from zero."""
    precision: Literal["float32", "bfloat16"] = "float32"
    """`bfloat16` runs forward and backward under autocast on CUDA; parameters stay float32."""

    def __post_init__(self) -> None:
        for name, value in msgspec.structs.asdict(self).items():
            if isinstance(value, float) and not math.isfinite(value):
                raise ValueError(f"{name} must be a finite number, not {value}")
        if self.nesterov and self.momentum == 0:
            raise ValueError("nesterov needs a momentum above 0")

    def rate(self, progress: float) -> float:
        """The learning rate when the part `progress` (0 to 1) of the run's samples has been trained."""
        if progress < self.warmup:
            return self.learning_rate * progress / self.warmup
        rest = min(1.0, (progress - self.warmup) / (1 - self.warmup))
        match self.schedule:
            case "cosine":
                return self.learning_rate * (1 + math.cos(math.pi * rest)) / 2
            case "linear":
                return self.learning_rate * (1 - rest)
            case "constant":
                return self.learning_rate


class Task(msgspec.Struct, frozen=True, gc=False, kw_only=True, forbid_unknown_fields=True):
    """A self-contained piece of training. Its parameters, and its anchor where `anchored`, travel beside it."""

    id: Count
    version: Count
    """The version of the parameters that it carries."""
    shard: ShardId
    recipe: Recipe
    seed: Count
    """Of the shard in this run: with `offset` it fixes batch order and noise."""
    offset: Count
    """Samples that earlier accepted tasks took from this shard."""
    steps: Annotated[int, Meta(ge=1)]
    batch: Annotated[int, Meta(ge=1)]
    """Samples a step (the recipe's, or the shard's size where that is 0)."""
    progress: NotNegative = 0.0
    """The part of the run's samples that was trained before the first step."""
    pace: NotNegative = 0.0
    """How much `progress` grows with each step."""
    partial: bool = False
    """Whether an answer with fewer steps than these is welcome, of a worker that must leave."""
    anchored: bool = False
    """Whether an anchor travels along: the centre of the proximal term (rho/2)·‖x - anchor‖². Otherwise that is where
    the task begins."""
    rho: NotNegative = 0.0
    """Strength of the proximal term; 0 leaves it out."""


class Report(msgspec.Struct, frozen=True, gc=False, kw_only=True, forbid_unknown_fields=True):
    """A worker's answer to a task. The delta and the buffers travel beside it."""

    task: Count
    steps: Annotated[int, Meta(ge=1)]
    samples: Annotated[int, Meta(ge=1)]
    loss: float
    """The mean training loss over the task's samples."""
    seconds: NotNegative
    """Time spent on the steps, measured by the worker."""


class Update(msgspec.Struct, frozen=True, gc=False):
    """An answer that reached a strategy: admitted, and joined with what the coordinator knows of its task.

    A strategy reads `delta` during `merge` and copies what it keeps: the memory may belong to the caller.
    """

    delta: Vector
    """Parameters that the task carried minus parameters at its end: `[trainable]`."""
    steps: int
    samples: int
    loss: float
    version: int
    """The version that the task carried."""
    staleness: int
    """How many versions the parameters have moved since: 0 if none."""
    rate: float
    """The learning rate of the task's first step."""
    base: Vector | None = None
    """The parameters that the task carried, where its assignment asked for them: `[trainable]`."""
