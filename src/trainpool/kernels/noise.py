"""Random operators under our own numbers: dropout and augmentation give the same result on every kernel.

PyTorch draws from a generator whose order of calls no other runtime can repeat. While `Noise` is active, each random
operator asks a `Source` for uniform numbers instead; what it makes of them are ordinary operators, which autograd
differentiates and a tracer records.
"""

import math
from collections.abc import Callable, Sequence
from typing import Any

import torch
from torch import Tensor
from torch.nn import functional
from torch.overrides import TorchFunctionMode

from trainpool.errors import ModelError

__all__ = ["Noise", "Source"]

Source = Callable[[tuple[int, ...]], Tensor]
"""Float32 numbers, uniform in [0, 1), of a shape; each call gets new ones."""

ALPHA = 1.7580993408473766  # SELU's scale times its alpha: what alpha dropout sets dropped units to, negated
SMALLEST = 2.0**-25  # below the grid of the uniform numbers: the logarithm stays finite


class Noise(TorchFunctionMode):
    """Replaces random operators by functions of a source's numbers.

    Handled: dropout in all forms, `torch.rand`, `randn`, `randint`, `bernoulli`, `normal`, their `_like` forms and the
    in-place ones of a tensor, and dropout inside of attention. Operators that PyTorch runs as one compiled piece with
    noise of its own (dropout between the layers of an LSTM or GRU), and `randperm` and `multinomial`, are refused.
    """

    def __init__(self, source: Source) -> None:
        super().__init__()
        self.source = source
        self.handlers = handlers(self)

    def __torch_function__(
        self, func: Any, types: Any, args: tuple[Any, ...] = (), kwargs: dict[str, Any] | None = None
    ) -> Any:
        """Called for every PyTorch function while the mode is active."""
        handler = self.handlers.get(func)
        return func(*args, **(kwargs or {})) if handler is None else handler(*args, **(kwargs or {}))

    def uniform(self, shape: Sequence[int], like: Tensor | None = None) -> Tensor:
        """Uniform numbers of a shape; on the device and of the type of `like`."""
        numbers = self.source(tuple(int(n) for n in shape))
        return numbers if like is None else numbers.to(like.device, like.dtype)

    def normal(self, shape: Sequence[int], like: Tensor | None = None) -> Tensor:
        """Standard normal numbers by Box and Muller's transform of two uniform ones each."""
        u = self.uniform((2, *shape), like)
        radius = (-2 * torch.log(u[0] + SMALLEST)).sqrt()
        return radius * torch.cos(2 * math.pi * u[1])

    def dropped(self, x: Tensor, p: float, shape: Sequence[int]) -> Tensor:
        """`x` with parts set to zero, each with probability p, and the rest scaled up; `shape` says what is a part."""
        if not 0 <= p <= 1:
            raise ValueError(f"dropout probability has to be between 0 and 1, but got {p}")
        if p == 0:
            return x
        if p == 1:
            return x * 0
        return x * ((self.uniform(shape, x) >= p).to(x.dtype) / (1 - p))


def handlers(noise: Noise) -> dict[Any, Callable[..., Any]]:
    """What stands in for each random operator."""

    def dropout(input: Tensor, p: float = 0.5, training: bool = True, inplace: bool = False) -> Tensor:
        return noise.dropped(input, p, input.shape) if training else input

    def feature_dropout(axes: int) -> Callable[..., Tensor]:
        def drop(input: Tensor, p: float = 0.5, training: bool = True, inplace: bool = False) -> Tensor:
            if not training:
                return input
            kept = 2 if axes == 2 else max(1, input.dim() - axes)  # as PyTorch: dropout2d takes [n, C, ...]
            return noise.dropped(input, p, (*input.shape[:kept], *[1] * (input.dim() - kept)))

        return drop

    def alpha(features: bool) -> Callable[..., Tensor]:
        def drop(input: Tensor, p: float = 0.5, training: bool = False, inplace: bool = False) -> Tensor:
            if not training or p == 0:
                return input
            shape = (*input.shape[:2], *[1] * (input.dim() - 2)) if features else input.shape
            kept = (noise.uniform(shape, input) >= p).to(input.dtype)
            a = ((1 - p) * (1 + p * ALPHA**2)) ** -0.5
            return a * (input * kept - ALPHA * (1 - kept)) + a * ALPHA * p

        return drop

    def made(draw: Callable[[Sequence[int]], Tensor]) -> Callable[..., Tensor]:
        def create(*size: Any, dtype: Any = None, device: Any = None, **other: Any) -> Tensor:
            shape = other.get("size", size[0] if len(size) == 1 and not isinstance(size[0], int) else size)
            return draw(shape).to(device=device, dtype=dtype)

        return create

    def made_like(draw: Callable[..., Tensor]) -> Callable[..., Tensor]:
        def create(input: Tensor, *, dtype: Any = None, **other: Any) -> Tensor:
            return draw(input.shape, input).to(dtype or input.dtype)

        return create

    def integers(shape: Sequence[int], low: int, high: int) -> Tensor:
        return torch.floor(noise.uniform(shape) * (high - low)).to(torch.int64) + low  # float32 would round the sum

    def randint(low: int, high: Any, size: Any = None, **other: Any) -> Tensor:
        if size is None and "size" not in other:
            low, high, size = 0, low, high
        return integers(size, low, high).to(device=other.get("device"), dtype=other.get("dtype"))

    def randint_like(input: Tensor, low: int, high: int | None = None, **other: Any) -> Tensor:
        low, high = (0, low) if high is None else (low, high)
        return integers(input.shape, low, high).to(input.device, other.get("dtype") or input.dtype)

    def bernoulli(input: Tensor, p: float | None = None, **other: Any) -> Tensor:
        chance = input if p is None else p
        return (noise.uniform(input.shape, input) < chance).to(input.dtype)

    def bernoulli_(self: Tensor, p: Any = 0.5, **other: Any) -> Tensor:
        return self.copy_((noise.uniform(self.shape) < p).to(self.dtype))

    def uniform_(self: Tensor, low: float = 0.0, high: float = 1.0, **other: Any) -> Tensor:
        return self.copy_(noise.uniform(self.shape, self) * (high - low) + low)

    def normal_(self: Tensor, mean: float = 0.0, std: float = 1.0, **other: Any) -> Tensor:
        return self.copy_(noise.normal(self.shape, self) * std + mean)

    def random_(self: Tensor, low: int, high: int | None = None, **other: Any) -> Tensor:
        low, high = (0, low) if high is None else (low, high)
        return self.copy_(integers(self.shape, low, high))

    def exponential_(self: Tensor, rate: float = 1.0, **other: Any) -> Tensor:
        return self.copy_(-torch.log(1 - noise.uniform(self.shape, self)) / rate)

    def normal(mean: Any = 0.0, std: Any = 1.0, size: Any = None, **other: Any) -> Tensor:
        shape = size if size is not None else torch.broadcast_shapes(*(getattr(v, "shape", ()) for v in (mean, std)))
        return noise.normal(shape) * std + mean

    def attention(query: Tensor, key: Tensor, value: Tensor, attn_mask: Tensor | None = None, dropout_p: float = 0.0,
                  is_causal: bool = False, scale: float | None = None, enable_gqa: bool = False) -> Tensor:  # fmt: skip
        if dropout_p == 0:
            return functional.scaled_dot_product_attention(
                query, key, value, attn_mask, 0.0, is_causal, scale=scale, enable_gqa=enable_gqa
            )
        if enable_gqa:
            key, value = (t.repeat_interleave(query.shape[-3] // t.shape[-3], -3) for t in (key, value))
        scores = query @ key.transpose(-2, -1) * (query.shape[-1] ** -0.5 if scale is None else scale)
        if is_causal:
            attn_mask = torch.ones(scores.shape[-2:], dtype=torch.bool, device=query.device).tril()
        if attn_mask is not None and attn_mask.dtype == torch.bool:
            scores = scores.masked_fill(~attn_mask, float("-inf"))
        elif attn_mask is not None:
            scores = scores + attn_mask
        weights = scores.softmax(-1)
        return noise.dropped(weights, dropout_p, weights.shape) @ value

    def heads(query: Tensor, key: Tensor, value: Tensor, width: int, count: int, in_weight: Tensor | None,
              in_bias: Tensor | None, bias_k: Any, bias_v: Any, add_zero_attn: bool, dropout_p: float,
              out_weight: Tensor, out_bias: Tensor | None, training: bool = True,
              key_padding_mask: Tensor | None = None, need_weights: bool = True,
              attn_mask: Tensor | None = None, use_separate_proj_weight: bool = False,
              q_proj_weight: Tensor | None = None, k_proj_weight: Tensor | None = None,
              v_proj_weight: Tensor | None = None, static_k: Any = None, static_v: Any = None,
              average_attn_weights: bool = True, is_causal: bool = False) -> tuple[Tensor, Tensor | None]:  # fmt: skip
        # Inside of PyTorch's own function no mode is active, so that its dropout would not be seen.
        if dropout_p == 0 or not training:
            return functional.multi_head_attention_forward(
                query, key, value, width, count, in_weight, in_bias, bias_k, bias_v, add_zero_attn, dropout_p,
                out_weight, out_bias, training, key_padding_mask, need_weights, attn_mask, use_separate_proj_weight,
                q_proj_weight, k_proj_weight, v_proj_weight, static_k, static_v, average_attn_weights, is_causal,
            )  # fmt: skip
        if bias_k is not None or bias_v is not None or add_zero_attn or query.dim() == 2:
            raise ModelError("attention with dropout must be batched, without add_bias_kv and add_zero_attn")
        if use_separate_proj_weight:
            weights: Any = (q_proj_weight, k_proj_weight, v_proj_weight)
        else:
            assert in_weight is not None
            weights = in_weight.chunk(3)
        biases = (None, None, None) if in_bias is None else in_bias.chunk(3)
        q, k, v = (
            functional.linear(t, w, b).unflatten(2, (count, -1)).permute(1, 2, 0, 3)  # [n, heads, length, width]
            for t, w, b in zip((query, key, value), weights, biases, strict=True)
        )
        scores = q @ k.transpose(-2, -1) * q.shape[-1] ** -0.5
        for mask in (
            attn_mask if attn_mask is None or attn_mask.dim() == 2 else attn_mask.unflatten(0, (-1, count)),
            None if key_padding_mask is None else key_padding_mask[:, None, None, :],
        ):
            if mask is not None:
                added = mask.dtype != torch.bool
                scores = scores + mask if added else scores.masked_fill(mask, float("-inf"))
        chances = scores.softmax(-1)
        chances = noise.dropped(chances, dropout_p, chances.shape)
        found = functional.linear((chances @ v).permute(2, 0, 1, 3).flatten(2), out_weight, out_bias)
        if not need_weights:
            return found, None
        return found, chances.mean(1) if average_attn_weights else chances

    def refused(name: str, instead: str) -> Callable[..., Any]:
        def refuse(*args: Any, **kwargs: Any) -> Any:
            raise ModelError(f"{name} in training has no numbers that every kernel can repeat: {instead}")

        return refuse

    def recurrent(original: Callable[..., Any], name: str) -> Callable[..., Any]:
        def run(*args: Any, **kwargs: Any) -> Any:
            # (input, hidden, weights, bias, layers, dropout, train, ...), packed: (data, sizes, hidden, weights, ...)
            start = next(i for i, a in enumerate(args) if isinstance(a, bool))
            if args[start + 2] and args[start + 3]:
                raise ModelError(
                    f"{name} with dropout between its layers has no numbers that every kernel can repeat: use one "
                    f"{name} a layer, with nn.Dropout between them"
                )
            return original(*args, **kwargs)

        return run

    functions: dict[Any, Callable[..., Any]] = {
        torch.rand: made(noise.uniform),
        torch.randn: made(noise.normal),
        torch.rand_like: made_like(noise.uniform),
        torch.randn_like: made_like(noise.normal),
        torch.randint: randint,
        torch.randint_like: randint_like,
        torch.normal: normal,
        functional.scaled_dot_product_attention: attention,
        functional.multi_head_attention_forward: heads,
        functional.rrelu: refused("rrelu", "use leaky_relu"),
        functional.gumbel_softmax: refused("gumbel_softmax", "write it with torch.rand and softmax"),
        functional.fractional_max_pool2d_with_indices: refused("fractional_max_pool2d", "use max_pool2d"),
        functional.fractional_max_pool3d_with_indices: refused("fractional_max_pool3d", "use max_pool3d"),
        torch.randperm: refused("torch.randperm", "sort torch.rand(n) instead"),
        torch.multinomial: refused("torch.multinomial", "compare torch.rand with the summed probabilities instead"),
        Tensor.multinomial: refused("Tensor.multinomial", "compare torch.rand with the summed probabilities instead"),
        Tensor.uniform_: uniform_,
        Tensor.normal_: normal_,
        Tensor.random_: random_,
        Tensor.exponential_: exponential_,
        Tensor.bernoulli_: bernoulli_,
        torch.lstm: recurrent(torch.lstm, "nn.LSTM"),
        torch.gru: recurrent(torch.gru, "nn.GRU"),
        torch.rnn_tanh: recurrent(torch.rnn_tanh, "nn.RNN"),
        torch.rnn_relu: recurrent(torch.rnn_relu, "nn.RNN"),
    }
    for kinds, handler in (
        ((functional.dropout, torch.dropout, torch.dropout_, torch.native_dropout), dropout),
        ((functional.dropout1d,), feature_dropout(1)),
        ((functional.dropout2d,), feature_dropout(2)),
        ((functional.dropout3d,), feature_dropout(3)),
        ((functional.alpha_dropout, torch.alpha_dropout), alpha(False)),
        ((functional.feature_alpha_dropout,), alpha(True)),
        ((torch.bernoulli, Tensor.bernoulli), bernoulli),
    ):
        functions |= dict.fromkeys(kinds, handler)
    return functions
