"""Lowering: from an experiment to a program, which workers without PyTorch run.

The training step as the PyTorch kernel does it (preprocessing, augmentation, model, loss, gradient, clipping, proximal
term, optimizer) is recorded once, taken apart into simple operators, and written as one ONNX graph of static shapes.
"""

from trainpool.lowering.lowered import Lowered, lower

__all__ = ["Lowered", "lower"]
