"""Every layer and network that programs are promised to know, trained in Chromium: on WebAssembly and on WebGPU."""

import copy
import json
import os
import shutil
from concurrent.futures import ProcessPoolExecutor
from multiprocessing import get_context
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch

from layer_cases import LAYERS, TIES
from lowered import Case, task_of
from network_cases import AUGMENTATIONS, BODIES, LOSSES, NETWORKS, WAYS
from node import run
from trainpool import wire
from trainpool.kernels.torch import TorchKernel, layout_of, vector_of
from trainpool.lowering import lower
from trainpool.lowering.check import in_float64, relative

CASES: dict[str, Case] = {
    **LAYERS,
    **TIES,
    **{f"network: {name}": case for name, case in NETWORKS.items()},
    **{f"loss: {name}": case for name, case in LOSSES.items()},
    **{f"augmentation: {name}": case for name, case in AUGMENTATIONS.items()},
}
THOROUGH = bool(os.environ.get("THOROUGH"))
"""Every case on WebGPU as well, all of its steps: half an hour more."""
SEEDS = (5, 6, 7)
"""Of the tasks of a ResNet of which one must agree: in a deep network rounding decides now and then on which side of a
ReLU a number is, a mistake always."""
LARGE = 5
"""Steps of a ResNet on WebGPU, of which twenty take minutes without a GPU."""
ALWAYS = ("convolution: 3d stride groups", "convolution: 3d transposed", "pooling: max 3d overlapping")
"""Written without what WebGPU's provider lacks: transposed and grouped convolutions in three dimensions."""
SAMPLES = 100
"""As many as a program evaluates at once, so that losses that are no mean over samples agree as well."""


def write(name: str, folder: Path) -> list[dict[str, Any]]:
    """A case's files: program, task, shard, samples to evaluate on, float64's answer. Returns its entries in the index:
    a second one where WebGPU gets fewer steps.

    `rounding` says how far PyTorch in float32 is from that answer, of the answer's size.
    """
    torch.set_num_threads(1)
    case = CASES[name]
    lowered = lower(case.experiment(), case.recipe, proximal=case.rho > 0, steps=1)
    lowered.save(folder / "program")
    entry = {"name": name, "operators": lowered.program.operators, "backends": ["wasm", "webgpu"]}
    if not name.startswith("network: resnet20"):
        return [entry | {"tasks": [fill(case, folder, case.steps)]}]
    tasks = []
    for seed in SEEDS:
        copied = shutil.copytree(folder / "program", folder.with_name(f"{folder.name}.{seed}") / "program").parent
        tasks.append(fill(case, copied, case.steps, seed))
    entry["tasks"] = tasks
    if THOROUGH:
        return [entry]
    short = {"tasks": [fill(case, folder, LARGE)], "backends": ["webgpu"]}
    return [entry | {"backends": ["wasm"]}, entry | short]


def fill(case: Case, folder: Path, steps: int, seed: int = SEEDS[0]) -> dict[str, Any]:
    """A task of so many steps, beside its program."""
    experiment = case.experiment()
    vector, cut = vector_of(experiment.model), layout_of(experiment.model).trainable
    anchor = vector[:cut] * np.float32(0.9)
    task = task_of(case.recipe, steps, case.recipe.batch_size, case.rho, seed)
    shard = {"x": case.x, "y": case.y}

    kernel = TorchKernel(
        copy.deepcopy(experiment.model), experiment.loss_function(), experiment.preprocess, augment=case.augment
    )
    found = np.empty_like(vector)
    report = kernel.run(task, vector, anchor, shard, found)
    exact = in_float64(experiment, task, vector, anchor, shard)
    assert exact is not None
    assert np.linalg.norm(exact[:cut]) > 1e-6, "nothing was trained"
    rows = np.arange(SAMPLES) % len(case.y)
    test = {"x": case.x[rows], "y": case.y[rows]}

    answer = exact.astype(np.float32)
    files = {
        "task": wire.encode(task, {"vector": vector} | ({"anchor": anchor} if case.rho else {})),
        "shard": wire.encode({"copy": 0}, shard),
        "test": wire.encode({"copy": 0}, test),
        "report": wire.encode(report, {"delta": answer[:cut], "buffers": answer[cut:]}),
    }
    for file, data in files.items():
        (folder / f"{file}.safetensors").write_bytes(data)
    return {
        "folder": folder.name,
        "rounding": {
            "delta": relative(found[:cut], exact[:cut]),
            "buffers": relative(found[cut:], exact[cut:]),
        },
        "evaluation": kernel.evaluate(vector, test).loss,
    }


def on_webgpu(index: list[dict[str, Any]]) -> set[str]:
    """Shaders take seconds to compile without a GPU: each network in one of the ways, each operator at least once."""
    ways = {f"network: {name}, {[*WAYS][k % len(WAYS)]}" for k, name in enumerate(BODIES)}
    others = {f"network: {name}, {way}" for name in BODIES for way in WAYS} - ways
    chosen: set[str] = set()
    seen: set[str] = set()
    for case in sorted(index, key=lambda case: case["name"].split(": ")[0] != "network"):
        name, operators = case["name"], set(case["operators"])
        network = name.startswith("network: ") and name not in others
        if THOROUGH or name in ALWAYS or network or not operators <= seen:
            chosen.add(name)
            seen |= operators
    return chosen


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """All cases' files and their index."""
    root = tmp_path_factory.mktemp("coverage")
    folders = [root / str(number) for number in range(len(CASES))]
    with ProcessPoolExecutor(mp_context=get_context("spawn")) as pool:
        index = [entry for entries in pool.map(write, CASES, folders) for entry in entries]
    chosen = on_webgpu(index)
    for case in index:
        case["backends"] = [b for b in case["backends"] if b == "wasm" or case["name"] in chosen]
    (root / "index.json").write_text(json.dumps(index))
    return root


@pytest.mark.usefixtures("chromium")
def test_every_layer_and_network_trains_in_chromium(npm: str, folder: Path) -> None:
    run(npm, "run", "test:coverage", COVERAGE=str(folder))
