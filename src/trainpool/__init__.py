"""Train PyTorch networks on computers you do not control."""

__version__ = "0.1.0"
