"""Interpolation and padding modes as one matrix an axis."""

from typing import Any

import torch
from torch import Tensor
from torch.nn import functional

from trainpool.lowering.decompositions.base import aten, constant, instead_of, separable

__all__: list[str] = []


@constant
def axis_matrix(size: int, places: int, mode: str, corners: bool | None, scale: float | None) -> Tensor:
    """What interpolation does along one axis, found by asking PyTorch: `[places, size]`."""
    eye = torch.eye(size).unsqueeze(0)  # [1, channels, size]: unit vectors as channels
    if mode == "linear":
        return aten.upsample_linear1d(eye, [places], bool(corners), scale)[0].t()
    if mode == "cubic":
        return aten.upsample_bicubic2d(eye.unsqueeze(2), [1, places], bool(corners), None, scale)[0, :, 0].t()
    operator = aten._upsample_nearest_exact1d if mode == "nearest-exact" else aten.upsample_nearest1d
    return operator(eye, [places], scale)[0].t()


def resizing(mode: str, n: int, backward: bool) -> Any:
    """Interpolation, or its gradient, as one matrix an axis."""
    cornered = mode in ("linear", "cubic")

    def run(x: Tensor, size: list[int], *rest: Any) -> Any:
        places = list(size)
        rest_ = list(rest)
        sizes = list(rest_.pop(0))[2:] if backward else list(x.shape[2:])
        corners = rest_.pop(0) if cornered else None
        scales = [*rest_, *[None] * n][:n]
        if mode == "nearest" and not backward and all(p % s == 0 for s, p in zip(sizes, places, strict=True)):
            return NotImplemented  # a repetition, which ONNX's Resize does
        if mode == "nearest" and backward and all(p % s == 0 for s, p in zip(sizes, places, strict=True)):
            factors = [p // s for s, p in zip(sizes, places, strict=True)]
            split = [v for s, f in zip(sizes, factors, strict=True) for v in (s, f)]
            axes = [3 + 2 * axis for axis in range(n)]
            return x.reshape(*x.shape[:2], *split).sum(axes)
        matrices = [axis_matrix(s, p, mode, corners, scale) for s, p, scale in zip(sizes, places, scales, strict=True)]
        return separable(x, [m.t() for m in matrices] if backward else matrices)

    return run


for mode_, names_ in {
    "nearest": ("upsample_nearest1d", "upsample_nearest2d", "upsample_nearest3d"),
    "nearest-exact": ("_upsample_nearest_exact1d", "_upsample_nearest_exact2d", "_upsample_nearest_exact3d"),
    "linear": ("upsample_linear1d", "upsample_bilinear2d", "upsample_trilinear3d"),
    "cubic": ("", "upsample_bicubic2d", ""),
}.items():
    for axes_, name_ in enumerate(names_, 1):
        if name_:
            instead_of(getattr(aten, name_).default)(resizing(mode_, axes_, False))
            instead_of(getattr(aten, name_ + "_backward").default)(resizing(mode_, axes_, True))


@constant
def padding_matrix(size: int, before: int, after: int, mode: str) -> Tensor:
    """What padding does along one axis: `[before + size + after, size]`."""
    eye = torch.eye(size).unsqueeze(0)
    return functional.pad(eye, (before, after), mode=mode)[0].t()


def padding(mode: str, backward: bool) -> Any:
    """Reflecting or repeating the edge, or its gradient."""

    def run(x: Tensor, *rest: Any) -> Any:
        source, pads = (rest[0], rest[1]) if backward else (x, rest[0])
        n = len(pads) // 2
        matrices = [
            padding_matrix(source.shape[-1 - axis], pads[2 * axis], pads[2 * axis + 1], mode)
            for axis in reversed(range(n))
        ]
        return separable(x, [m.t() for m in matrices] if backward else matrices)

    return run


for mode_, word_ in (("reflect", "reflection"), ("replicate", "replication")):
    for axes_ in (1, 2, 3):
        instead_of(getattr(aten, f"{word_}_pad{axes_}d").default)(padding(mode_, False))
        instead_of(getattr(aten, f"{word_}_pad{axes_}d_backward").default)(padding(mode_, True))
