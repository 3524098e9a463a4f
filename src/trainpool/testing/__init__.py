"""For those who write strategies, kernels and pools: fakes, virtual time, contract checks."""

from trainpool.pools.fleet import fleet
from trainpool.pools.simulated import SimulatedPool
from trainpool.pools.timing import carry, timing
from trainpool.testing.contract import CHECKS, CONVERGENCE, check_ledger, check_strategy, simulate
from trainpool.testing.pools import Fault, InProcessPool
from trainpool.testing.problems import Logistic, Quadratic

__all__ = [
    "CHECKS",
    "CONVERGENCE",
    "Fault",
    "InProcessPool",
    "Logistic",
    "Quadratic",
    "SimulatedPool",
    "carry",
    "check_ledger",
    "check_strategy",
    "fleet",
    "simulate",
    "timing",
]
