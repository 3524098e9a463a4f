"""Outer optimizers: how a server steps along a mean delta as if it were a gradient.

Rules, with g the mean delta, w the parameters, elementwise; m, v and D begin at 0, but v at τ² where it is a divisor:

    sgd                m ← μm + g;   w ← w - ηm
    nesterov           m ← μm + g;   w ← w - η(g + μm)
    delayed-nesterov   D ← D + g;    every N-th step   m ← μm + D/N;   w ← w - η((1 - cN + c)μm + g/N);   D ← 0
                                     otherwise         w ← w - η(cμm + g/N)
    adam               m ← μm + (1-μ)g;   v ← βv + (1-β)g²;              w ← w - ηm/(√v + τ)
    adagrad            m ← μm + (1-μ)g;   v ← v + g²;                    w ← w - ηm/(√v + τ)
    yogi               m ← μm + (1-μ)g;   v ← v - (1-β)g² sign(v - g²);  w ← w - ηm/(√v + τ)

With momentum, a constant g moves w by ηg/(1-μ) a step in the long run.
"""

from dataclasses import dataclass
from typing import Literal, TypeAlias

import numpy as np

from trainpool.vector import Vector

__all__ = ["Outer", "Rule"]

Rule: TypeAlias = Literal["sgd", "nesterov", "delayed-nesterov", "adam", "adagrad", "yogi"]


@dataclass(frozen=True)
class Outer:
    """An outer optimizer: a rule with its settings. Not every rule uses all of them."""

    rule: Rule = "sgd"
    learning_rate: float = 1.0
    """η."""
    momentum: float = 0.0
    """μ."""
    beta2: float = 0.99
    """β."""
    tau: float = 1e-3
    """τ."""
    period: int = 1
    """N."""
    c: float = 0.0

    def moments(self, like: Vector) -> tuple[Vector, Vector]:
        """m, and v or D: `[trainable]`, or empty where the rule has none."""
        adaptive, delayed = self.rule in ("adam", "adagrad", "yogi"), self.rule == "delayed-nesterov"
        m = np.zeros_like(like if self.momentum or adaptive or delayed else like[:0])
        return m, np.full_like(like if adaptive or delayed else like[:0], self.tau**2 if adaptive else 0)

    def step(self, w: Vector, g: Vector, m: Vector, v: Vector, other: Vector, closes: bool) -> None:
        """One step in place, on any part of the vectors; g and `other` are scratch. An N-th step `closes` a period."""
        number = w.dtype.type
        mu, beta = number(self.momentum), number(self.beta2)
        match self.rule:
            case "sgd" | "nesterov":
                if self.momentum:
                    m *= mu
                    m += g
                    g = np.add(g, np.multiply(m, mu, out=other), out=g) if self.rule == "nesterov" else m
            case "delayed-nesterov":
                part = 1 - self.c * self.period + self.c if closes else self.c
                v += g
                g /= number(self.period)
                if closes:
                    m *= mu
                    m += np.divide(v, number(self.period), out=other)
                    v.fill(0)
                if part:
                    g += np.multiply(m, number(part) * mu, out=other)
            case _:
                m *= mu
                m += np.multiply(g, 1 - mu, out=other)
                g *= g
                if self.rule == "adagrad":
                    v += g
                elif self.rule == "adam":
                    v *= beta
                    v += np.multiply(g, 1 - beta, out=other)
                else:
                    np.sign(np.subtract(v, g, out=other), out=other)
                    g *= other
                    g *= 1 - beta
                    v -= g
                np.sqrt(v, out=g)
                g += number(self.tau)
                g = np.divide(m, g, out=g)
        w -= g if self.learning_rate == 1 else np.multiply(g, number(self.learning_rate), out=other)
