"""Backward operators, and others that ONNX lacks or does slowly, in terms of simple PyTorch operators."""
