"""Convolutions in ONNX Runtime's blocked memory order: with blocks of 8 and of 16, whatever this processor has."""

import base64
import hashlib
from pathlib import Path
from typing import Any

import msgspec
import numpy as np
import onnx
import onnxruntime
import pytest
import torch
from onnx import TensorProto, helper
from onnx.reference import ReferenceEvaluator
from onnx.reference.op_run import OpRun
from torch import nn

import trainpool as tp
from lowered import task_of
from trainpool import program
from trainpool.errors import ProgramError
from trainpool.kernels import onnx as kernels
from trainpool.kernels.onnx import OnnxKernel, block
from trainpool.lowering import Lowered, lower
from trainpool.lowering.check import relative
from trainpool.lowering.graph import BLOCKS, Graph
from trainpool.lowering.operators.base import Shaped
from trainpool.lowering.operators.gradients import convolution_backward
from trainpool.lowering.operators.products import convolution
from trainpool.messages import Recipe


def spread(x: np.ndarray, size: int) -> np.ndarray:
    """From the plain order to the blocked one, under the same shape."""
    n, c, h, w = x.shape
    return np.ascontiguousarray(x.reshape(n, c // size, size, h, w).transpose(0, 1, 3, 4, 2)).reshape(x.shape)


def gathered(x: np.ndarray, size: int) -> np.ndarray:
    """Back."""
    n, c, h, w = x.shape
    return np.ascontiguousarray(x.reshape(n, c // size, h, w, size).transpose(0, 1, 4, 2, 3)).reshape(x.shape)


def reference(size: int) -> list[type[OpRun]]:
    """What ONNX Runtime's operators do, with blocks of a size, in a few lines each."""

    class ReorderInput(OpRun):
        op_domain = BLOCKS

        def _run(self, x: np.ndarray) -> tuple[np.ndarray]:
            return (spread(x, size),)

    class ReorderOutput(OpRun):
        op_domain = BLOCKS

        def _run(self, x: np.ndarray, channels: int) -> tuple[np.ndarray]:
            assert channels == x.shape[1]
            return (gathered(x, size),)

    class Conv(OpRun):
        op_domain = BLOCKS

        def _run(self, x: np.ndarray, w: np.ndarray, b: Any = None, **how: Any) -> tuple[np.ndarray]:
            o, i, height, width = w.shape
            plain = w.reshape(o // size, i // size, height, width, size, size).transpose(0, 5, 1, 4, 2, 3)
            top, left, bottom, right = how["pads"]
            wide = nn.functional.pad(torch.from_numpy(gathered(x, size)), (left, right, top, bottom))
            weight = torch.from_numpy(np.ascontiguousarray(plain).reshape(w.shape))
            bias = None if b is None else torch.from_numpy(b)
            y = nn.functional.conv2d(wide, weight, bias, how["strides"], dilation=how["dilations"])
            return (spread(y.numpy(), size),)

    class Pad(OpRun):
        """The package's reference does not know that padding may be negative."""

        op_domain = ""

        def _run(self, x: np.ndarray, pads: np.ndarray, mode: str) -> tuple[np.ndarray]:
            assert mode == "constant"
            both = np.asarray(pads).reshape(2, -1).T
            cut = tuple(slice(max(0, -a), n - max(0, -b)) for n, (a, b) in zip(x.shape, both, strict=True))
            return (np.pad(x[cut], np.maximum(both, 0)),)

    return [ReorderInput, ReorderOutput, Conv, Pad]


def run(model: onnx.ModelProto, size: int, feed: dict[str, np.ndarray], how: str) -> list[np.ndarray]:
    """The graph's results, of ONNX Runtime or of the reference."""
    if how == "reference":
        return list(ReferenceEvaluator(model, new_ops=reference(size)).run(None, feed))
    return list(onnxruntime.InferenceSession(model.SerializeToString()).run(None, feed))


CASES = {
    "usual": ((16, 32, 3), (32, 8, 8), {"padding": 1}),
    "odd kernel and sizes": ((32, 16, (5, 3)), (16, 9, 11), {"padding": (2, 1)}),
    "no padding": ((16, 16, 3), (4, 12, 10), {}),
    "little padding": ((16, 16, 5), (4, 12, 16), {"padding": 1}),
    "dilated": ((16, 48, 3), (2, 12, 20), {"padding": 2, "dilation": 2}),
    "one by one": ((48, 16, 1), (3, 5, 32), {}),
    "wide": ((16, 16, 3), (1, 4, 40), {"padding": 1}),
    "narrow": ((16, 16, 3), (16, 6, 1), {"padding": 1}),
    "a bias": ((16, 16, 3), (2, 8, 8), {"padding": 1, "bias": True}),
    "steps of two": ((16, 32, 3), (2, 8, 8), {"padding": 1, "stride": 2}),
    "steps of three": ((16, 32, (4, 5)), (8, 11, 23), {"padding": 2, "stride": 3, "dilation": (1, 2)}),
    "steps of two and one": ((16, 16, 3), (4, 8, 32), {"stride": (1, 2), "dilation": 2}),
    "steps of two in wide rows": ((16, 16, 3), (4, 8, 64), {"padding": 1, "stride": 2}),
    "much padding": ((16, 16, 3), (2, 8, 8), {"padding": 4}),
    "few channels": ((3, 16, 3), (16, 8, 8), {"padding": 1}),
    "batch that makes no blocks": ((16, 16, 3), (3, 8, 4), {"padding": 1}),
}


FORMS = [("reference", 8), ("reference", 16), *([("here", block())] if block() in program.BLOCKED else [])]
"""Who runs a graph with blocks of which size: ONNX Runtime runs this processor's alone."""


@pytest.mark.parametrize(("how", "size"), FORMS)
@pytest.mark.parametrize("case", CASES)
def test_a_convolution_and_its_gradients_are_pytorchs(case: str, size: int, how: str) -> None:
    (inner, outer, kernel), (samples, height, width), options = CASES[case]
    torch.manual_seed(0)
    layer = nn.Conv2d(inner, outer, kernel, **{"bias": False, **options}).double()
    x = torch.randn(samples, inner, height, width, dtype=torch.float64, requires_grad=True)
    y = layer(x)
    dy = torch.randn_like(y)
    wanted = [y, *torch.autograd.grad(y, [x, *layer.parameters()], dy)]

    graph = Graph(size)
    refs = [graph.input(n, t.shape, torch.float32) for n, t in (("x", x), ("w", layer.weight), ("dy", dy))]
    bias = None if layer.bias is None else graph.input("b", layer.bias.shape, torch.float32)
    how_far = [list(getattr(layer, name)) for name in ("stride", "padding", "dilation")]
    forward = convolution(graph, Shaped(y.shape), refs[0], refs[1], bias, *how_far, False, [0, 0], 1)
    shapes = [Shaped(t.shape) for t in (x, layer.weight)] + [Shaped((outer,))]
    back = convolution_backward(
        graph, shapes, refs[2], refs[0], refs[1], None, *how_far, False, [0, 0], 1, [True, True, bias is not None]
    )
    graph.outputs = [forward, *(ref for ref in back if ref is not None)]
    model = graph.model("convolution")
    products = [node.op_type for node in model.graph.node if node.domain == BLOCKS and node.op_type == "Conv"]
    columns = layer.kernel_size[1]
    none = {
        "one by one",
        "batch that makes no blocks",
        "steps of two in wide rows",
        *(["steps of two"] if size > 8 else []),
    }
    whole = inner % size == 0
    turned = layer.stride == (1, 1) and case != "much padding"
    assert len(products) == whole * (1 + turned) + columns * (case not in none)

    feed = {"x": x, "w": layer.weight, "dy": dy, "b": layer.bias}
    arrays = {name: value.detach().float().numpy() for name, value in feed.items() if value is not None}
    found = run(model, size, {node.name: arrays[node.name] for node in model.graph.input}, how)
    for one, other in zip(found, wanted, strict=True):
        assert relative(one, other.detach().numpy()) < 2e-6


@pytest.mark.parametrize("layer", [nn.Conv2d(16, 16, 3, groups=2), nn.Conv2d(12, 16, 3), nn.Conv1d(16, 16, 3)])
def test_what_does_not_fit_stays_plain(layer: nn.Conv2d | nn.Conv1d) -> None:
    graph = Graph(8)
    shape = [5] * (len(layer.weight.shape) - 2)
    x = graph.input("x", (2, layer.in_channels, *shape), torch.float32)
    w = graph.input("w", layer.weight.shape, torch.float32)
    one, none = list(layer.stride), list(layer.padding)
    out = Shaped(layer(torch.zeros(x.shape)).shape)
    convolution(graph, out, x, w, None, one, none, one, False, none, layer.groups)  # type: ignore[arg-type]
    assert not graph.blocked


def test_the_probe_is_one_operator() -> None:
    values = [helper.make_tensor_value_info(name, TensorProto.FLOAT, [1, 16, 1, 2]) for name in "xy"]
    node = helper.make_node("ReorderInput", ["x"], ["y"], domain=BLOCKS)
    graph = helper.make_graph([node], "g", values[:1], values[1:])
    opsets = [helper.make_opsetid("", 20), helper.make_opsetid(BLOCKS, 1)]
    model = helper.make_model(graph, opset_imports=opsets, ir_version=9)
    assert base64.b64encode(model.SerializeToString(deterministic=True)) == base64.b64encode(kernels.PROBE)
    assert block() in (1, 8, 16)


@pytest.fixture(scope="module")
def lowered() -> Lowered:
    generator = np.random.default_rng(0)
    x = generator.integers(0, 255, (64, 3, 8, 8)).astype(np.uint8)
    torch.manual_seed(0)
    model = nn.Sequential(
        *(nn.Conv2d(3, 16, 3), nn.ReLU(), nn.Conv2d(16, 32, 3, padding=1), nn.ReLU()),
        *(nn.Conv2d(32, 16, 3, stride=2), nn.Flatten(), nn.Linear(64, 4)),
    )
    return lower(tp.Experiment(model, (x, np.arange(64) % 4)), Recipe(batch_size=8), proximal=False)


def test_both_forms_of_a_program_train_alike(lowered: Lowered, tmp_path: Path) -> None:
    assert lowered.comparison.agrees
    loaded = program.load(lowered.save(tmp_path / "program"))
    assert set(loaded.blocked) == set(program.BLOCKED)
    generator = np.random.default_rng(1)
    shard = {"x": generator.integers(0, 255, (64, 3, 8, 8)).astype(np.uint8), "y": np.arange(64) % 4}
    vector = (0.1 * generator.standard_normal(loaded.layout.size)).astype(np.float32)
    outs = [np.empty_like(vector) for _ in range(2)]
    for plain, out in zip((False, True), outs, strict=True):
        OnnxKernel(loaded, plain=plain).run(task_of(Recipe(batch_size=8), 20, 8), vector, None, shard, out)
    assert 0 <= relative(*outs) < 1e-5
    if block() in program.BLOCKED:
        assert outs[0].tobytes() != outs[1].tobytes()  # it was another sum


def forged(folder: Path, change: Any) -> None:
    """Change a program's blocked step, and seal it."""
    name = program.BLOCKED[16]
    model = onnx.load(folder / name)
    change(model)
    data = model.SerializeToString()
    (folder / name).write_bytes(data)
    manifest = msgspec.json.decode((folder / "program.json").read_bytes(), type=program.Program)
    blocked = {**manifest.blocked, name: program.File(hashlib.sha256(data).hexdigest(), len(data))}
    (folder / "program.json").write_bytes(program.encode(msgspec.structs.replace(manifest, blocked=blocked)))


def foreign_domain(model: onnx.ModelProto) -> None:
    model.graph.node[0].domain = "com.microsoft"


def foreign_operator(model: onnx.ModelProto) -> None:
    model.graph.node[0].op_type = "Upsample"


def other_inputs(model: onnx.ModelProto) -> None:
    del model.graph.input[-1]


@pytest.mark.parametrize(
    ("change", "words"),
    [
        (foreign_domain, "uses the domain 'com.microsoft'"),
        (foreign_operator, "no program may use the operators Upsample"),
        (other_inputs, "train.16.onnx takes or gives something else than train.onnx"),
    ],
)
def test_a_forged_step_is_refused(lowered: Lowered, tmp_path: Path, change: Any, words: str) -> None:
    folder = lowered.save(tmp_path / "program")
    forged(folder, change)
    with pytest.raises(ProgramError, match=words):
        program.load(folder)


def test_the_plain_step_may_have_no_blocks(lowered: Lowered, tmp_path: Path) -> None:
    folder = lowered.save(tmp_path / "program")
    data = (folder / program.BLOCKED[16]).read_bytes()
    (folder / "train.onnx").write_bytes(data)
    manifest = msgspec.json.decode((folder / "program.json").read_bytes(), type=program.Program)
    files = {**manifest.files, "train.onnx": program.File(hashlib.sha256(data).hexdigest(), len(data))}
    (folder / "program.json").write_bytes(program.encode(msgspec.structs.replace(manifest, files=files)))
    with pytest.raises(ProgramError, match=r"domain 'com\.microsoft\.nchwc'"):
        program.load(folder)


def test_a_blocked_step_that_does_not_load_is_left_alone(lowered: Lowered, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(kernels, "block", lambda: 16)
    broken = msgspec.structs.replace(lowered.loaded, blocked={16: b"of another version"})
    assert [node.name for node in OnnxKernel(broken).train.get_inputs()][:2] == ["x", "y"]
    with pytest.raises(ProgramError, match="cannot load the program"):
        OnnxKernel(msgspec.structs.replace(broken, train=b"of another version"))
