"""Kernels: each runs a task on one kind of machine."""
