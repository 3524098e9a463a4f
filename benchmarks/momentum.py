"""Momentum carried from task to task, and batches that grow: do they beat an outer step? A loop by hand, virtual time.

A task carries parameters and nothing else, so this trains without tasks: rounds over sixteen unequal machines, steps in
proportion to each machine's speed, then a new model. A round lasts as long as its slowest machine takes.

    outer      x ← x - η (g + μ m),  m ← μ m + g,  g = mean delta: what `auto` does (Douillard et al. 2023)
    carried    local steps with momentum; x ← mean of x_i, v ← mean of v_i, and the next round's steps go on from both
               (Yu, Jin, Yang: "On the Linear Speedup Analysis of Communication Efficient Momentum SGD for Distributed
               Non-Convex Optimization", ICML 2019, algorithm 1). Twice the traffic
    anew       the same, but v is zero at the beginning of every task
    growth     the batch grows along with progress, four times in all; with the rate that falls, or instead of it (Smith
               et al.: "Don't Decay the Learning Rate, Increase the Batch Size", ICLR 2018)
"""

import argparse
import math
import statistics
from collections.abc import Iterator
from dataclasses import dataclass

import numpy as np
import torch
from rich.console import Console
from rich.table import Table
from torch import Tensor
from torch.nn.functional import cross_entropy

import trainpool as tp
from trainpool import models
from trainpool.data import default_cache
from trainpool.experiment import named_experiment


@dataclass(frozen=True)
class Rule:
    """What the tasks of a round are, and how it changes the model."""

    name: str
    rate: float = 0.1
    steps: int = 8
    """Of the fastest machine."""
    inner: float = 0.0
    """Momentum of the local steps."""
    carried: bool = False
    mu: float = 0.0
    eta: float = 1.0
    batch: int = 8
    growth: float = 1.0
    """Of the batch, from the first round to the last."""
    falls: bool = True
    """Whether the rate follows a cosine."""


RULES = (
    Rule("outer", mu=0.9, eta=1.6),
    *(Rule("carried", inner=0.9, carried=True, rate=rate) for rate in (0.05, 0.1, 0.2)),
    *(Rule("anew", inner=0.9, rate=rate) for rate in (0.05, 0.1)),
    *(Rule("carried, outer", inner=0.9, carried=True, rate=rate, mu=0.5, eta=1.0) for rate in (0.05, 0.1)),
    Rule("outer, growth", mu=0.9, eta=1.6, growth=4),
    Rule("outer, growth from 4", mu=0.9, eta=1.6, growth=4, batch=4),
    Rule("outer, growth, constant rate", mu=0.9, eta=1.6, growth=4, falls=False),
)


Data = tuple[Tensor, Tensor, Tensor, Tensor]
"""Training images `[n, 1, 28, 28]` as the network takes them and labels `[n]`; the same of the test data."""


def tensors() -> Data:
    """Fashion-MNIST."""
    experiment = named_experiment("fashion-mnist", "cnn", cache=default_cache())
    found: list[Tensor] = []
    for source in experiment.sources():
        assert source is not None
        x, y = (torch.from_numpy(part) for part in source.gather(np.arange(len(source))))
        found += [experiment.preprocess(x), y]  # type: ignore[misc]
    return found[0], found[1], found[2], found[3]


def train(rule: Rule, speeds: list[float], data: Data, epochs: float, seed: int) -> Iterator[tuple[float, float]]:
    """Virtual seconds and test accuracy, after each twentieth of the run."""
    x, y, x_test, y_test = data
    net = models.build("cnn", (1, 28, 28), 10, seed)
    torch.manual_seed(seed)
    weights = list(net.parameters())
    model = [p.detach().clone() for p in weights]
    m, v = ([torch.zeros_like(p) for p in model] for _ in range(2))
    order = torch.cat([torch.randperm(len(x)) for _ in range(math.ceil(epochs))])[: round(epochs * len(x))]
    steps = [max(1, round(rule.steps * speed / max(speeds))) for speed in speeds]
    done = evaluated = 0
    seconds = 0.0
    while done < len(order):
        progress = done / len(order)
        batch = round(rule.batch * rule.growth**progress)
        rate = rule.rate * (0.5 + 0.5 * math.cos(math.pi * progress) if rule.falls else 1.0)
        delta, velocity = ([torch.zeros_like(p) for p in model] for _ in range(2))
        for count in steps:
            own = [part.clone() if rule.carried else torch.zeros_like(part) for part in v]
            with torch.no_grad():
                torch._foreach_copy_(weights, model)
            for rows in order[done : done + count * batch].split(batch):
                if not len(rows):
                    break  # the last round: others have taken the rest
                gradients = torch.autograd.grad(cross_entropy(net(x[rows]), y[rows]), weights)
                with torch.no_grad():
                    torch._foreach_mul_(own, rule.inner)
                    torch._foreach_add_(own, gradients)
                    torch._foreach_add_(weights, own, alpha=-rate)
            done += count * batch
            with torch.no_grad():
                torch._foreach_add_(delta, torch._foreach_sub(model, weights), alpha=1 / len(steps))
                torch._foreach_add_(velocity, own, alpha=1 / len(steps))
        v = velocity
        torch._foreach_mul_(m, rule.mu)
        torch._foreach_add_(m, delta)
        torch._foreach_add_(model, torch._foreach_add(delta, m, alpha=rule.mu), alpha=-rule.eta)
        seconds += max(count * batch / speed for count, speed in zip(steps, speeds, strict=True))
        if (twentieth := done * 20 // len(order)) > evaluated:
            evaluated = twentieth
            with torch.no_grad():
                torch._foreach_copy_(weights, model)
                guesses = torch.cat([net(part).argmax(1) for part in x_test.split(500)])
                yield seconds, float((guesses == y_test).float().mean())


def main() -> None:
    """Train with every rule, then print one table."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--epochs", type=float, default=0.7)
    parser.add_argument("--seeds", type=int, default=3)
    parser.add_argument("--target", type=float, default=0.88)
    parser.add_argument("--only", help="the rules whose name begins so")
    options = parser.parse_args()
    torch.set_num_threads(1)
    data = tensors()
    speeds = [machine.speed for machine in tp.fleet(16, spread=8).machines]
    table = Table("rule", "rate", f"time to {100 * options.target:g} %", "accuracy at the end")
    for rule in RULES:
        if not rule.name.startswith(options.only or ""):
            continue
        curves = [list(train(rule, speeds, data, options.epochs, seed)) for seed in range(options.seeds)]
        times = [next((t for t, accuracy in curve if accuracy >= options.target), math.inf) for curve in curves]
        ends = sorted(100 * curve[-1][1] for curve in curves)
        time = statistics.median_high(times)
        reached = "never" if math.isinf(time) else f"{time:.1f} s"
        row = (rule.name, f"{rule.rate:g}", reached, f"{statistics.median(ends):.1f} % ({ends[0]:.1f}–{ends[-1]:.1f})")
        table.add_row(*row)
        print(*row, sep="  ", flush=True)
    Console().print(table)


if __name__ == "__main__":
    main()
