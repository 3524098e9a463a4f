"""Train PyTorch networks on computers you do not control.

    import trainpool as tp

    experiment = tp.Experiment(model=net, train=(x, y), test=(x_test, y_test))
    result = tp.train(experiment, strategy=tp.Downpour(), pool=tp.LocalPool(workers=2), epochs=3, out="runs/a")

Names are loaded when they are first used: importing the package imports neither PyTorch nor anything heavy.
"""

import importlib
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from trainpool.errors import (
        ConfigError,
        DataError,
        LoweringError,
        ModelError,
        ProgramError,
        RunError,
        TrainpoolError,
    )
    from trainpool.experiment import Experiment, Normalize
    from trainpool.lowering import Lowered, lower
    from trainpool.messages import Recipe
    from trainpool.pace import Pace
    from trainpool.pools.fleet import fleet
    from trainpool.pools.local import LocalPool
    from trainpool.pools.simulated import SimulatedPool
    from trainpool.strategies import (
        ADMM,
        DCASGD,
        EASGD,
        DelayedNesterov,
        DiLoCo,
        Downpour,
        FedAsync,
        FedAvg,
        FedBuff,
        FedOpt,
        FedProx,
        LocalSGD,
        ParallelSGD,
        Ringmaster,
        Serial,
        StalenessAware,
    )
    from trainpool.training import Result, resume, train

__version__ = "0.1.0"

PLACES = {
    "ADMM": "strategies",
    "ConfigError": "errors",
    "DCASGD": "strategies",
    "DataError": "errors",
    "DelayedNesterov": "strategies",
    "DiLoCo": "strategies",
    "Downpour": "strategies",
    "EASGD": "strategies",
    "Experiment": "experiment",
    "FedAsync": "strategies",
    "FedAvg": "strategies",
    "FedBuff": "strategies",
    "FedOpt": "strategies",
    "FedProx": "strategies",
    "LocalPool": "pools.local",
    "LocalSGD": "strategies",
    "Lowered": "lowering",
    "LoweringError": "errors",
    "ModelError": "errors",
    "Normalize": "experiment",
    "Pace": "pace",
    "ParallelSGD": "strategies",
    "ProgramError": "errors",
    "Recipe": "messages",
    "Result": "training",
    "Ringmaster": "strategies",
    "RunError": "errors",
    "Serial": "strategies",
    "SimulatedPool": "pools.simulated",
    "StalenessAware": "strategies",
    "TrainpoolError": "errors",
    "fleet": "pools.fleet",
    "lower": "lowering",
    "resume": "training",
    "train": "training",
}

__all__ = [
    "ADMM",
    "DCASGD",
    "EASGD",
    "ConfigError",
    "DataError",
    "DelayedNesterov",
    "DiLoCo",
    "Downpour",
    "Experiment",
    "FedAsync",
    "FedAvg",
    "FedBuff",
    "FedOpt",
    "FedProx",
    "LocalPool",
    "LocalSGD",
    "Lowered",
    "LoweringError",
    "ModelError",
    "Normalize",
    "Pace",
    "ParallelSGD",
    "ProgramError",
    "Recipe",
    "Result",
    "Ringmaster",
    "RunError",
    "Serial",
    "SimulatedPool",
    "StalenessAware",
    "TrainpoolError",
    "fleet",
    "lower",
    "resume",
    "train",
]


def __getattr__(name: str) -> Any:
    if name not in PLACES:
        raise AttributeError(f"module 'trainpool' has no attribute {name!r}")
    try:
        value = getattr(importlib.import_module(f"trainpool.{PLACES[name]}"), name)
    except ModuleNotFoundError as error:
        if error.name in ("torch", "cloudpickle", "onnx"):
            raise ImportError(f"trainpool.{name} needs PyTorch: pip install 'trainpool[torch]'") from error
        raise
    globals()[name] = value
    return value


def __dir__() -> list[str]:
    return sorted([*globals(), *__all__])
