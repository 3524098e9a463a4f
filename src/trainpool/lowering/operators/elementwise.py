"""Operators on elements."""

import math
from typing import Any

import torch

from trainpool.lowering.graph import Graph, Ref
from trainpool.lowering.operators.base import TABLE, UnsupportedError, common, elementwise, number, unexpanded, writes

__all__: list[str] = []


UNARY = {
    "abs": "Abs", "neg": "Neg", "exp": "Exp", "log": "Log", "sqrt": "Sqrt", "reciprocal": "Reciprocal",
    "sin": "Sin", "cos": "Cos", "tan": "Tan", "tanh": "Tanh", "sigmoid": "Sigmoid", "erf": "Erf", "floor": "Floor",
    "ceil": "Ceil", "round": "Round", "sign": "Sign", "relu": "Relu", "asin": "Asin", "acos": "Acos", "atan": "Atan",
    "sinh": "Sinh", "cosh": "Cosh", "asinh": "Asinh", "acosh": "Acosh", "atanh": "Atanh", "mish": "Mish",
    "hardswish": "HardSwish",
}  # fmt: skip
for name_, kind_ in UNARY.items():
    writes(name_)(lambda g, out, x, kind=kind_: elementwise(g, out, kind, x))

for name_, kind_ in {"maximum": "Max", "minimum": "Min", "div.Tensor": "Div", "div.Scalar": "Div"}.items():
    writes(name_)(lambda g, out, x, y, kind=kind_: elementwise(g, out, kind, x, y))

for name_, kind_ in {"eq": "Equal", "lt": "Less", "le": "LessOrEqual", "gt": "Greater", "ge": "GreaterOrEqual"}.items():
    writes(name_)(
        lambda g, out, x, y, kind=kind_: elementwise(g, out, kind, x, y, dtype=torch.bool, given=comparable(x, y))
    )


def comparable(x: Any, y: Any) -> torch.dtype:
    """A type in which ONNX compares."""
    kind = common(x, y)
    return torch.int32 if kind == torch.bool else kind


@writes("ne")
def ne(g: Graph, out: Any, x: Any, y: Any) -> Ref:
    same = elementwise(g, out, "Equal", x, y, dtype=torch.bool, given=comparable(x, y))
    return g.op("Not", same)


@writes("add", "sub")
def add(g: Graph, out: Any, x: Any, y: Any, *, alpha: Any = 1, kind: str = "Add") -> Ref:
    if alpha != 1:
        y = elementwise(g, Like(y, out.dtype), "Mul", y, alpha)
    if out.dtype == torch.bool:
        return elementwise(g, out, "Or", x, y)
    neutral = [v for v in (x, y) if isinstance(v, Ref) and v.uniform == 0]
    if kind == "Add" and len(neutral) == 1:  # the gradients' zeros
        other = y if neutral[0] is x else x
        if isinstance(other, Ref) and other.shape == tuple(out.shape):
            return g.cast(other, out.dtype)
    if g.block and kind == "Add" and isinstance(x, Ref) and isinstance(y, Ref):
        for one, other in ((x, y), (y, x)):
            if (line := straight(g, out, one, other)) is not None:
                return line
    return elementwise(g, out, kind, x, y)


def straight(g: Graph, out: Any, product: Ref, shift: Ref) -> Ref | None:
    """x·gain + shift, one gain and one shift a row or channel, in one pass: a BatchNormalization that knows them."""
    kind, factors = g.made.get(product.name, ("", ()))
    if kind != "Mul" or product.shape != tuple(out.shape) or len(out.shape) < 3 or out.dtype != torch.float32:
        return None
    (n, c), rest = out.shape[:2], out.shape[2:]
    for x, gain in (factors, factors[::-1]):
        pair = (gain, unexpanded(g, shift))
        if x.shape != out.shape or any(p.shape[1:] != (c, *[1] * len(rest)) for p in pair):
            continue
        each = max(p.shape[0] for p in pair) > 1  # of the samples has numbers of its own
        rows = n * c if each else c
        scale, bias = (g.reshape(g.expand(p, (n, *p.shape[1:])) if each else p, (rows,)) for p in pair)
        zero, one = (g.constant(torch.full((rows,), value)) for value in (0.0, 1.0))
        whole = g.reshape(x, (1, rows, *rest)) if each else x
        y = g.op("BatchNormalization", whole, scale, bias, zero, one, shape=whole.shape, epsilon=0.0)
        return g.reshape(y, out.shape)
    return None


TABLE["sub"] = lambda g, out, x, y, *, alpha=1: add(g, out, x, y, alpha=alpha, kind="Sub")
TABLE["rsub"] = lambda g, out, x, y, alpha=1: add(g, out, y, x, alpha=alpha, kind="Sub")


class Like:
    """The shape of a value with another type."""

    def __init__(self, x: Any, dtype: torch.dtype) -> None:
        self.shape: tuple[int, ...] = tuple(x.shape) if isinstance(x, Ref) else ()
        self.dtype = dtype


@writes("mul")
def mul(g: Graph, out: Any, x: Any, y: Any) -> Ref:
    if out.dtype == torch.bool:
        return elementwise(g, out, "And", x, y)
    for one, other in ((x, y), (y, x)):
        value = one.uniform if isinstance(one, Ref) else one
        if value == 1 and isinstance(other, Ref) and other.shape == tuple(out.shape):
            return g.cast(other, out.dtype)
    return elementwise(g, out, "Mul", x, y)


@writes("div.Tensor_mode", "div.Scalar_mode")
def div_mode(g: Graph, out: Any, x: Any, y: Any, *, rounding_mode: str | None) -> Ref:
    kind = out.dtype if out.dtype.is_floating_point else torch.float64
    ratio = elementwise(g, Like(Ref("", tuple(out.shape), kind), kind), "Div", x, y)
    if rounding_mode == "floor":
        ratio = g.op("Floor", ratio)
    elif rounding_mode == "trunc":
        ratio = g.op("Mul", g.op("Sign", ratio), g.op("Floor", g.op("Abs", ratio)))
    return g.cast(ratio, out.dtype)


@writes("trunc")
def trunc(g: Graph, out: Any, x: Ref) -> Ref:
    return g.op("Mul", g.op("Sign", x), g.op("Floor", g.op("Abs", x)))


@writes("pow")
def power(g: Graph, out: Any, x: Any, y: Any) -> Ref:
    if not isinstance(y, Ref):
        if y == 1:
            return g.cast(x, out.dtype)
        if y == 2:
            return elementwise(g, out, "Mul", x, x)
        if y == 3:
            return elementwise(g, out, "Mul", elementwise(g, out, "Mul", x, x), x)
        if y == 0.5:
            return elementwise(g, out, "Sqrt", x)
        if y == -0.5:
            return g.op("Reciprocal", elementwise(g, out, "Sqrt", x))
        if y == -1:
            return elementwise(g, out, "Reciprocal", x)
    return elementwise(g, out, "Pow", x, y)


@writes("rsqrt")
def rsqrt(g: Graph, out: Any, x: Ref) -> Ref:
    return g.op("Reciprocal", g.op("Sqrt", x))


@writes("expm1")
def expm1(g: Graph, out: Any, x: Ref) -> Ref:
    half = g.op("Tanh", g.op("Mul", x, g.constant(0.5)))  # tanh(x/2)·(eˣ + 1) keeps the digits of small results
    return g.op("Mul", half, g.op("Add", g.op("Exp", x), g.constant(1.0)))


@writes("log1p")
def log1p(g: Graph, out: Any, x: Ref) -> Ref:
    one, bounds = g.constant(1.0, x.dtype), torch.finfo(x.dtype)  # the bounds keep ∞ and -1 from 0/0 and ∞ - ∞
    u = g.op("Min", g.op("Add", x, one), g.constant(bounds.max, x.dtype))
    lost = g.op("Sub", x, g.op("Sub", u, one))  # what rounding took from x in 1 + x
    return g.op("Add", g.op("Log", u), g.op("Div", lost, g.op("Max", u, g.constant(bounds.tiny, x.dtype))))


@writes("exp2")
def exp2(g: Graph, out: Any, x: Ref) -> Ref:
    return g.op("Exp", g.op("Mul", x, g.constant(math.log(2))))


@writes("remainder")
def remainder(g: Graph, out: Any, x: Any, y: Any) -> Ref:
    if not out.dtype.is_floating_point:
        return elementwise(g, out, "Mod", x, y)
    a, b = number(g, x, out.dtype), number(g, y, out.dtype)
    return g.op("Sub", a, g.op("Mul", b, g.op("Floor", g.op("Div", a, b))))


@writes("fmod")
def fmod(g: Graph, out: Any, x: Any, y: Any) -> Ref:
    return g.op("Mod", number(g, x, out.dtype), number(g, y, out.dtype), fmod=1)


for name_, kind_ in {
    "logical_and": "And", "logical_or": "Or", "logical_xor": "Xor",
    "bitwise_and": "And", "bitwise_or": "Or", "bitwise_xor": "Xor",
}.items():  # fmt: skip

    def logical(g: Graph, out: Any, x: Any, y: Any, kind: str = kind_) -> Ref:
        if out.dtype != torch.bool:
            return elementwise(g, out, f"Bitwise{kind}", x, y)
        return elementwise(g, out, kind, x, y, dtype=torch.bool, given=torch.bool)

    writes(name_)(logical)


@writes("logical_not", "bitwise_not")
def logical_not(g: Graph, out: Any, x: Ref) -> Ref:
    return g.op("Not", g.cast(x, torch.bool))


@writes("isnan")
def isnan(g: Graph, out: Any, x: Ref) -> Ref:
    return g.op("IsNaN", x, dtype=torch.bool)


@writes("isinf")
def isinf(g: Graph, out: Any, x: Ref) -> Ref:
    return g.op("IsInf", x, dtype=torch.bool)


@writes("where")
def where(g: Graph, out: Any, condition: Ref, x: Any, y: Any) -> Ref:
    refs = [number(g, v, out.dtype) for v in (x, y)]
    return g.expand(g.op("Where", number(g, condition, torch.bool), *refs, dtype=out.dtype), out.shape)


@writes("clamp")
def clamp(g: Graph, out: Any, x: Any, low: Any = None, high: Any = None) -> Ref:
    if low == 0 and high is None and not isinstance(low, Ref):
        return elementwise(g, out, "Relu", x)
    for bound, kind in ((low, "Max"), (high, "Min")):
        if bound is not None:
            x = elementwise(g, out, kind, x, bound)
    return x


TABLE["clamp_min"] = lambda g, out, x, low: clamp(g, out, x, low)
TABLE["clamp_max"] = lambda g, out, x, high: clamp(g, out, x, None, high)
TABLE["hardtanh"] = lambda g, out, x, low=-1.0, high=1.0: clamp(g, out, x, low, high)


@writes("leaky_relu")
def leaky_relu(g: Graph, out: Any, x: Ref, slope: float = 0.01) -> Ref:
    return g.op("LeakyRelu", x, alpha=float(slope))


@writes("elu")
def elu(g: Graph, out: Any, x: Ref, alpha: float = 1, scale: float = 1, inner: float = 1) -> Ref:
    if inner != 1:
        raise UnsupportedError("elu with an input scale")
    y = g.op("Elu", x, alpha=float(alpha))
    return y if scale == 1 else g.op("Mul", y, g.constant(float(scale)))


@writes("gelu")
def gelu(g: Graph, out: Any, x: Ref, *, approximate: str = "none") -> Ref:
    return g.op("Gelu", x, approximate=approximate)


@writes("hardsigmoid")
def hardsigmoid(g: Graph, out: Any, x: Ref) -> Ref:
    return g.op("HardSigmoid", x, alpha=1 / 6, beta=0.5)


@writes("_softmax", "_log_softmax")
def softmax(g: Graph, out: Any, x: Ref, axis: int, half: bool, kind: str = "Softmax") -> Ref:
    return g.op(kind, x, axis=axis) if x.shape else g.op("Mul", x, g.constant(0.0))


TABLE["_log_softmax"] = lambda g, out, x, axis, half: softmax(g, out, x, axis, half, "LogSoftmax")
