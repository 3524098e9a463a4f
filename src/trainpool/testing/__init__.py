"""For those who write strategies, kernels and pools: fakes, a virtual clock, contract checks."""

from trainpool.testing.contract import CHECKS, CONVERGENCE, check_strategy, simulate
from trainpool.testing.pools import Fault, InProcessPool
from trainpool.testing.problems import Logistic, Quadratic

__all__ = ["CHECKS", "CONVERGENCE", "Fault", "InProcessPool", "Logistic", "Quadratic", "check_strategy", "simulate"]
