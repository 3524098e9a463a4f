"""The functions that are lowered: one training step and one evaluation batch, as plain functions of tensors.

They must do what `trainpool.kernels.torch` does, operator by operator.
"""

import math
from collections.abc import Callable, Sequence
from typing import Any

import torch
from torch import Tensor, nn
from torch.func import functional_call

from trainpool.kernels.noise import Noise
from trainpool.kernels.torch import trained_tensors
from trainpool.messages import Recipe

__all__ = ["evaluation", "training"]

Function = Callable[..., tuple[Tensor, ...]]


def training(
    model: nn.Module,
    loss: Callable[[Any, Tensor], Tensor],
    prepare: Callable[[Tensor], Any],
    recipe: Recipe,
    watch: Callable[[Tensor], None],
    proximal: bool,
) -> Function:
    """The step (x, y, rate, rho, step, noise, parameters, buffers, state, anchor) → (loss, then the new ones).

    The last five arguments are lists in the layout's order. `watch` is told the loss before its gradient is taken.
    Without `proximal` the term of `rho` and `anchor` is left out.
    """
    names, kinds = names_of(model)

    def step(
        x: Tensor,
        y: Tensor,
        rate: Tensor,
        rho: Tensor,
        number: Tensor,
        noise: list[Tensor],
        parameters: list[Tensor],
        buffers: list[Tensor],
        state: list[Tensor],
        anchor: list[Tensor],
    ) -> tuple[Tensor, ...]:
        parameters = [p.detach().requires_grad_() for p in parameters]
        kept = [b.to(kind, copy=True) for b, kind in zip(buffers, kinds, strict=True)]
        remaining = iter(noise)
        with Noise(lambda shape: next(remaining)):
            tensors = dict(zip(names, [*parameters, *kept], strict=True))
            value = loss(functional_call(model, tensors, (prepare(x),)), y)
        watch(value)
        found = torch.autograd.grad(value, parameters, allow_unused=True)
        gradients = {i: g for i, g in enumerate(found) if g is not None}
        with torch.no_grad():
            if recipe.clip_norm:
                squares = [g.square().sum() for g in gradients.values()]
                norm = torch.stack(squares).sum().sqrt()
                scale = (recipe.clip_norm / (norm + 1e-6)).clamp(max=1.0)
                gradients = {i: g * scale for i, g in gradients.items()}
            new, moved = list(parameters), list(state)
            for i, g in gradients.items():
                p = parameters[i]
                g = g + rho * (p - anchor[i]) if proximal else g
                if recipe.optimizer == "adamw":
                    first, second = 2 * i, 2 * i + 1
                    new[i], moved[first], moved[second] = adamw(recipe, p, g, state[first], state[second], rate, number)
                elif recipe.momentum:
                    new[i], moved[i] = momentum(recipe, p, g, state[i], rate)
                else:
                    new[i] = p - rate * (g + recipe.weight_decay * p if recipe.weight_decay else g)
            return (value.detach(), *new, *(b.to(torch.float32) for b in kept), *moved)

    return step


def momentum(recipe: Recipe, p: Tensor, g: Tensor, held: Tensor, rate: Tensor) -> tuple[Tensor, Tensor]:
    """`torch.optim.SGD` with momentum: the new parameter and its momentum."""
    if recipe.weight_decay:
        g = g + recipe.weight_decay * p
    held = recipe.momentum * held + g
    return p - rate * (g + recipe.momentum * held if recipe.nesterov else held), held


def adamw(
    recipe: Recipe, p: Tensor, g: Tensor, m: Tensor, v: Tensor, rate: Tensor, number: Tensor
) -> tuple[Tensor, Tensor, Tensor]:
    """`torch.optim.AdamW`: the new parameter and both moments."""
    beta1, beta2 = recipe.betas
    p = p * (1 - rate * recipe.weight_decay) if recipe.weight_decay else p
    m = beta1 * m + (1 - beta1) * g
    v = beta2 * v + (1 - beta2) * (g * g)
    size = rate / correction(beta1, number)
    return p - size * (m / (v.sqrt() / correction(beta2, number).sqrt() + recipe.epsilon)), m, v


def correction(beta: float, number: Tensor) -> Tensor:
    """1 - βᵗ. As 2·tanh(a/2)/(1 + tanh(a/2)) with a = -t·ln β: the difference would lose most of float32's digits."""
    if beta == 0:
        return torch.ones_like(number)
    half = torch.tanh(number * (-math.log(beta) / 2))
    return 2 * half / (1 + half)


def evaluation(
    model: nn.Module,
    loss: Callable[[Any, Tensor], Tensor],
    prepare: Callable[[Tensor], Any],
    labels: bool,
    each: bool,
) -> Function:
    """The evaluation (x, y, mask, parameters, buffers) → (sum of losses, correct answers where `labels`).

    `each` takes the loss of every sample alone. Without it the batch's loss is taken, weighted by its real samples:
    right for whole batches, and for losses that are no mean over samples all that can be said.
    """
    names, kinds = names_of(model)

    def evaluate(
        x: Tensor, y: Tensor, mask: Tensor, parameters: list[Tensor], buffers: list[Tensor]
    ) -> tuple[Tensor, ...]:
        kept = [b.to(kind, copy=True) for b, kind in zip(buffers, kinds, strict=True)]
        with torch.no_grad():
            output = functional_call(model, dict(zip(names, [*parameters, *kept], strict=True)), (prepare(x),))
            if each:
                alone = torch.vmap(lambda o, t: loss(tree_unsqueeze(o), t.unsqueeze(0)))
                total = (alone(output, y) * mask).sum()
            else:
                total = loss(output, y) * mask.sum()
            correct = ((output.argmax(1) == y).to(mask.dtype) * mask).sum() if labels else torch.zeros_like(total)
        return total, correct

    return evaluate


def tree_unsqueeze(output: Any) -> Any:
    """A batch of one from one sample's output, whatever tensors it consists of."""
    return torch.utils._pytree.tree_map_only(Tensor, lambda t: t.unsqueeze(0), output)


def names_of(model: nn.Module) -> tuple[Sequence[str], list[torch.dtype]]:
    """The names of a model's parameters, then buffers, in the layout's order, and the buffers' types."""
    tensors = trained_tensors(model)
    parameters = [name for name, (_, role) in tensors.items() if role == "parameter"]
    buffers = [name for name, (_, role) in tensors.items() if role != "parameter"]
    return [*parameters, *buffers], [tensors[name][0].dtype for name in buffers]
