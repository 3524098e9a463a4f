"""Augmentation: random changes of training images, the same on every kernel.

Each takes and gives a batch as stored, `[n, C, H, W]`, of bytes or floats. They are functions of `torch.rand`'s numbers
and plain products, so that they become part of a lowered program.

    tp.Experiment(net, data, augment=nn.Sequential(RandomCrop(4), RandomFlip()))
"""

import torch
from torch import Tensor, nn

__all__ = ["Noise", "RandomCrop", "RandomFlip"]


class RandomCrop(nn.Module):
    """Each image moved by up to `padding` pixels along both axes; what comes in at the edges is zero."""

    def __init__(self, padding: int) -> None:
        super().__init__()
        self.padding = padding

    def forward(self, x: Tensor) -> Tensor:
        """`[n, C, H, W]` to the same shape and type."""
        n, height, width = x.shape[0], x.shape[2], x.shape[3]
        shifts = torch.floor(torch.rand(2, n, device=x.device) * (2 * self.padding + 1)) - self.padding
        rows, columns = self.moving(shifts[0], height), self.moving(shifts[1], width)
        moved = rows.unsqueeze(1) @ x.to(torch.float32) @ columns.unsqueeze(1).transpose(2, 3)
        return moved.to(x.dtype)

    def moving(self, shift: Tensor, size: int) -> Tensor:
        """Matrices that move by whole pixels: 1 where row = column - shift, `[n, size, size]`."""
        place = torch.arange(size, device=shift.device, dtype=torch.float32)
        return (place.view(1, -1, 1) + shift.view(-1, 1, 1) == place.view(1, 1, -1)).to(torch.float32)


class RandomFlip(nn.Module):
    """Left and right exchanged, of each image with probability `p`."""

    def __init__(self, p: float = 0.5) -> None:
        super().__init__()
        self.p = p

    def forward(self, x: Tensor) -> Tensor:
        """`[n, C, H, W]` to the same shape and type."""
        flipped = (torch.rand(x.shape[0], 1, 1, 1, device=x.device) < self.p).to(torch.float32)
        y = x.to(torch.float32)
        return (y * (1 - flipped) + y.flip(3) * flipped).to(x.dtype)


class Noise(nn.Module):
    """Normal noise of a standard deviation, in the units of the stored images: bytes stay within 0 to 255."""

    def __init__(self, deviation: float) -> None:
        super().__init__()
        self.deviation = deviation

    def forward(self, x: Tensor) -> Tensor:
        """Any shape to the same shape and type."""
        y = x.to(torch.float32) + self.deviation * torch.randn(x.shape, device=x.device)
        return y.round().clamp(0, 255).to(x.dtype) if x.dtype == torch.uint8 else y.to(x.dtype)
