"""For those who write strategies, kernels and pools: fakes, a virtual clock, contract checks."""

from trainpool.testing.pools import Fault, InProcessPool

__all__ = ["Fault", "InProcessPool"]
