"""Writes the golden vectors beside this file; `scripts/vectors` runs it. README.md says what they are."""

import base64
import hashlib
import json
import shutil
import struct
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import msgspec
import numpy as np
import onnx
import torch
from onnx import TensorProto, helper
from torch import nn

import trainpool as tp
from trainpool import program as programs
from trainpool import rng, wire
from trainpool.kernels.torch import TorchKernel, layout_of, vector_of
from trainpool.lowering import lower
from trainpool.messages import Recipe, Report, Task
from trainpool.program import Baked, File, Program, Sample
from trainpool.vector import Layout

HERE = Path(__file__).parent
Arrays = tuple[np.ndarray[Any, Any], np.ndarray[Any, Any]]
SEEDS = (0, 1, 12345, 2**32 - 1, 2**32, 2**53 - 1, 2**64 - 1)


def main() -> None:
    """Write everything."""
    write("rng.json", numbers())
    write("rates.json", rates())
    write("messages.json", messages())
    write("programs.json", refused_programs())
    for case in cases():
        save(case, HERE / "tasks" / case.name)


def write(name: str, value: Any) -> None:
    """A JSON file, one item a line."""
    (HERE / name).write_text(json.dumps(value, indent=1) + "\n", encoding="utf-8")


# The generator: 64-bit numbers are decimal text, since JavaScript's own numbers end at 2**53.


def numbers() -> dict[str, Any]:
    """Known answers of rng.py."""
    return {
        "fold": [[str(s), str(d), list(rng.fold(rng.key(s), d))] for s in SEEDS for d in SEEDS],
        "derive": [[str(s), [str(d), "7"], rng.derive(s, d, 7)] for s in SEEDS for d in SEEDS],
        "bits": [
            [str(s), start, [str(n) for n in rng.bits(rng.key(s), start, 4)]]
            for s in SEEDS
            for start in (0, 2**32 - 2, 2**52)
        ],
        "uniform": [[str(s), 5, rng.uniform(rng.key(s), 5, 6).tolist()] for s in SEEDS],
        "permutation": [[str(s), n, rng.permutation(rng.key(s), n).tolist()] for s in SEEDS for n in (1, 2, 33)],
        "batches": [
            [seed, *given, [rows.tolist() for rows in rng.batches(seed, *given)]]
            for seed in (3, 2**53 - 1)
            for given in ((10, 0, 3, 4), (10, 7, 3, 4), (3, 5, 2, 8), (7, 2**52, 2, 5), (5, 5, 2, 5), (1, 0, 2, 1))
        ],
        "noise": [
            [seed, number, offset, rng.noise(seed, number, offset, 5).tolist()]
            for seed in (3, 2**53 - 1)
            for number in (0, 1, 9)
            for offset in (0, 32, 2**40)
        ],
    }


def rates() -> list[Any]:
    """Learning rates over a run."""
    recipes = [
        Recipe(schedule=schedule, warmup=warmup, learning_rate=rate)
        for schedule in ("constant", "linear", "cosine")
        for warmup, rate in ((0.0, 0.1), (0.25, 0.003))
    ]
    steps = (0.0, 0.1, 0.25, 1 / 3, 0.5, 0.999, 1.0, 1.5)
    return [[msgspec.to_builtins(recipe), [[at, recipe.rate(at)] for at in steps]] for recipe in recipes]


# Messages: whole files in base64. `refused` holds words of the error, which both readers use.

TASK = Task(
    id=7, version=3, shard="ab" * 32, recipe=Recipe(optimizer="adamw", weight_decay=0.01, clip_norm=1.0, warmup=0.1),
    seed=2**53 - 1, offset=2**40, steps=20, batch=32, progress=0.125, pace=0.001, anchored=True, rho=0.1,
)  # fmt: skip
REPORT = Report(task=7, steps=20, samples=640, loss=0.75, seconds=1.5)


def messages() -> list[dict[str, Any]]:
    """Good files and bad ones."""
    floats = {"vector": np.arange(6, dtype=np.float32), "anchor": np.array([-0.0, 1e-40, 3e38], np.float32)}
    every = {kind: np.array([[1, 0, 1]], kind) for kind in ("?", "u1", "i1", "i2", "u2", "i4", "f4", "f8", "i8")}
    report = wire.encode(REPORT, {"delta": np.array([0.5, -1], np.float32), "buffers": np.zeros(0, np.float32)})
    good = [
        message("task", "task", wire.encode(TASK, floats)),
        message("task with defaults", "task", wire.encode({**least(TASK), "recipe": {}}, floats)),
        message("report", "report", report),
        message("report with every type of tensor", "report", wire.encode(REPORT, every)),
    ]
    body = struct.pack("<2f", 1, 2)
    one = {"dtype": "F32", "shape": [2], "data_offsets": [0, 8]}
    text = json.dumps(msgspec.to_builtins(REPORT))
    broken: dict[str, bytes] = {
        "empty": b"",
        "no header": b"\x08\0\0\0",
        "truncated body": report[:-1],
        "truncated header": report[:40],
        "bytes after the body": report + b"\0",
        "header longer than the file": struct.pack("<Q", 1000) + report[8:],
        "huge header": struct.pack("<Q", 2**63) + report[8:],
        "header is not JSON": raw(b"{"),
        "header is a list": raw(b"[]"),
        "header is not UTF-8": raw(b'{"\xff":0}'),
        "unknown type": file(text, body, a={**one, "dtype": "F31"}),
        "wrong type": file(text, body, a={**one, "dtype": "F64"}),
        "type of many names": file(text, body, a={**one, "dtype": "constructor"}),
        "offsets beyond the file": file(text, body, a={**one, "shape": [4], "data_offsets": [0, 16]}),
        "offsets backwards": file(text, body, a={**one, "data_offsets": [8, 0]}),
        "negative shape": file(text, body, a={**one, "shape": [-2]}),
        "overlap": file(text, body, a=one, b={**one, "shape": [1], "data_offsets": [4, 8]}),
        "hole": file(text, body, a={**one, "shape": [1], "data_offsets": [4, 8]}),
        "shape overflows": file(text, body, a={**one, "shape": [2**33, 2**33]}),
        "no message": raw(json.dumps({"__metadata__": {}, "a": one}).encode(), body),
        "no metadata": raw(json.dumps({"a": one}).encode(), body),
        "message is no JSON": file("{", body, a=one),
    }
    whole, least_task = msgspec.to_builtins(REPORT), least(TASK)
    wrong = {
        "$.steps": ("report", {**whole, "steps": 0}),
        "$.loss": ("report", {**whole, "loss": None}),
        "$.task": ("report", {**whole, "task": True}),
        "$.seconds": ("report", {**whole, "seconds": -1}),
        "missing required field `loss`": ("report", {k: v for k, v in whole.items() if k != "loss"}),
        "unknown field `x`": ("report", {**whole, "x": 1}),
        "$.offset": ("task", {**least_task, "offset": -1}),
        "$.shard": ("task", {**least_task, "shard": 5}),
        "$.recipe": ("task", {**least_task, "recipe": []}),
        "$.recipe.optimizer": ("task", {**least_task, "recipe": {"optimizer": "lion"}}),
        "$.recipe.learning_rate": ("task", {**least_task, "recipe": {"learning_rate": 0}}),
        "$.recipe.momentum": ("task", {**least_task, "recipe": {"momentum": 1}}),
        "$.recipe.betas": ("task", {**least_task, "recipe": {"betas": [0.9]}}),
        "$.recipe.betas[1]": ("task", {**least_task, "recipe": {"betas": [0.9, 1.0]}}),
        "nesterov needs a momentum": ("task", {**least_task, "recipe": {"nesterov": True}}),
        "Expected": ("task", []),
    }
    return [
        *good,
        *(bad(name, "report", data, "not a trainpool message") for name, data in broken.items()),
        *(bad(f"{kind}: {words}", kind, wire.encode(value, {}), words) for words, (kind, value) in wrong.items()),
    ]


def bad(name: str, kind: str, data: bytes, words: str) -> dict[str, Any]:
    """A file that is refused."""
    return {"name": name, "kind": kind, "file": b64(data), "refused": words}


def message(name: str, kind: str, data: bytes) -> dict[str, Any]:
    """A good file, and what is in it."""
    read, tensors = wire.decode(data, {"task": Task, "report": Report}[kind])
    values = {k: {"shape": list(v.shape), "values": [str(n) for n in v.ravel().tolist()]} for k, v in tensors.items()}
    return {"name": name, "kind": kind, "file": b64(data), "message": msgspec.to_builtins(read), "tensors": values}


def least(task: Task) -> dict[str, Any]:
    """A task's required fields."""
    return {k: getattr(task, k) for k in ("id", "version", "shard", "recipe", "seed", "offset", "steps", "batch")}


def raw(header: bytes, body: bytes = b"") -> bytes:
    """A file of any header."""
    return struct.pack("<Q", len(header)) + header + body


def file(text: str, body: bytes, **tensors: Mapping[str, Any]) -> bytes:
    """A file with any tensors' entries."""
    return raw(json.dumps({"__metadata__": {"message": text}, **tensors}).encode(), body)


def b64(data: bytes) -> str:
    """Bytes as JSON carries them."""
    return base64.b64encode(data).decode()


# Programs: one good program of a handful of operators, and what no worker may run, each with hashes that are right.


def refused_programs() -> list[dict[str, Any]]:
    """Programs, and the words of the error that refuses each (none for the good one)."""
    good = toy()
    node = helper.make_node
    return [
        {"name": "good", "files": packed(good), "id": sha256(good["program.json"]), "refused": None},
        refused("damaged", "train.onnx is damaged", {**good, "train.onnx": good["train.onnx"][:-1] + b"\x7f"}),
        refused("another size", "evaluate.onnx has", {**good, "evaluate.onnx": good["evaluate.onnx"] + b"\0"}),
        refused("no layout", "layout.json: No such file", {k: v for k, v in good.items() if k != "layout.json"}),
        refused("cut short", "cut short", toy(change=lambda model: model.SerializeToString()[:-3])),
        refused("no ONNX file", "not an ONNX file", toy(change=lambda model: b"PK\x03\x04" + bytes(40))),
        refused("empty graph file", "not an ONNX file: 0 graphs", toy(change=lambda model: b"\x08\x0a")),
        refused("unknown operator", "no program may use the operators RandomUniform",
                toy(extra=[node("RandomUniform", [], ["r"], shape=[1])])),
        refused("unlisted operator", "operators are not those", toy(extra=[node("Neg", ["x"], ["r"])], listed=["Sub"])),
        refused("foreign domain", "uses the domain 'com.microsoft'",
                toy(extra=[node("Gelu", ["x"], ["r"], domain="com.microsoft")])),
        refused("imported domain", "imports the domain 'com.microsoft'", toy(change=import_domain)),
        refused("external data", "keeps tensors in other files", toy(change=external)),
        refused("external data in an attribute", "keeps tensors in other files", toy(change=external_constant)),
        refused("nested graph", "a graph inside of a graph", toy(extra=[nested()])),
        refused("functions", "functions of its own", toy(change=functions)),
        refused("operator under a long tag", "a field number of more than 29 bits", toy(change=long_tag)),
        refused("field number 0", "field number 0", toy(change=lambda m: m.SerializeToString() + b"\2\0")),
        refused("number of eleven bytes", "a number of more than ten bytes",
                toy(change=lambda m: m.SerializeToString() + b"\x08" + b"\x80" * 10 + b"\0")),
        refused("another format in disguise", "ONNX Runtime's own format", toy(change=disguised)),
        refused("unknown input", "takes inputs that no worker has", toy(change=lambda m: renamed(m, "rate", "speed"))),
        refused("other outputs", "outputs are not those", toy(change=lambda m: renamed(m, "loss", "cost"))),
        refused("unknown field", "unknown field `extra`", manifest(good, extra=1)),
        refused("format of the future", "$.format", manifest(good, format=2)),
        refused("negative shape", "$.x.shape[0]", manifest(good, x={"dtype": "float32", "shape": [-2]})),
        refused("unknown type", "$.x.dtype", manifest(good, x={"dtype": "complex64", "shape": [2]})),
        refused("no hash", "$.files", manifest(good, files={"train.onnx": {"sha256": "0", "bytes": 1}})),
        refused("no JSON", "program.json", {**good, "program.json": b"{"}),
        refused("huge batches", "more than 17,179,869,184 bytes of memory",
                manifest(good, batch=2**20, x={"dtype": "float32", "shape": [2**31]})),
        refused("huge numbers", "more than 17,179,869,184 bytes of memory",
                manifest(good, noise=[{"name": "noise.0", "shape": [2**31, 2**31]}])),
        refused("huge state", "more than 17,179,869,184 bytes of memory",
                manifest(good, state=[{"name": "momentum.w", "shape": [2**30, 2]}])),
        refused("numbers for nothing", "does not take the random numbers noise.0",
                manifest(good, noise=[{"name": "noise.0", "shape": [2]}])),
        refused("layout with a hole", "is not where it belongs", toy(offset=1)),
    ]  # fmt: skip


def refused(name: str, words: str, files: dict[str, bytes]) -> dict[str, Any]:
    """A program that no worker may run."""
    return {"name": name, "files": packed(files), "refused": words}


def sha256(data: bytes) -> str:
    """In hexadecimal."""
    return hashlib.sha256(data).hexdigest()


def packed(files: dict[str, bytes]) -> dict[str, str]:
    """Files as JSON carries them."""
    return {name: b64(data) for name, data in files.items()}


def toy(
    extra: list[onnx.NodeProto] | None = None,
    change: Callable[[onnx.ModelProto], bytes] = onnx.ModelProto.SerializeToString,
    listed: list[str] | None = None,
    offset: int = 0,
) -> dict[str, bytes]:
    """A program with one parameter w [2]: its loss is Σ x·w, and it knows no data but x."""
    nodes = [
        helper.make_node("Mul", ["x", "p.w"], ["product"]),
        helper.make_node("ReduceSum", ["product"], ["loss"], keepdims=0),
        helper.make_node("Mul", ["x", "rate"], ["change"]),
        helper.make_node("Sub", ["p.w", "change"], ["new.p.w"]),
        *(extra or []),
    ]
    train = change(model(nodes, {"x": [1, 2], "rate": [], "p.w": [2]}, {"loss": [], "new.p.w": [1, 2]}))
    score = helper.make_node("ReduceSum", ["x"], ["correct"], keepdims=0)
    test = model([*nodes[:2], score], {"x": [1, 2], "p.w": [2]}, {"loss": [], "correct": []}).SerializeToString()
    layout = {"tensors": [{"name": "w", "shape": [2], "offset": offset, "role": "parameter"}]}
    files = {"train.onnx": train, "evaluate.onnx": test, "layout.json": programs.encode(layout)}
    used = {item.op_type for item in nodes}
    found = Program(
        name="toy", files={n: File(sha256(d), len(d)) for n, d in files.items()}, batch=1,
        evaluation_batch=1, x=Sample("float32", (2,)), y=Sample("int64", ()), correct=True,
        recipe=Baked(**{field: getattr(Recipe(), field) for field in Baked.__struct_fields__}), state=(), noise=(),
        operators=tuple(listed or sorted(used)),
    )  # fmt: skip
    return {"program.json": programs.encode(found), **files}


def model(nodes: list[onnx.NodeProto], inputs: dict[str, list[int]], outputs: dict[str, list[int]]) -> onnx.ModelProto:
    """An ONNX model of float32 tensors."""
    given, told = (
        [helper.make_tensor_value_info(name, TensorProto.FLOAT, shape) for name, shape in values.items()]
        for values in (inputs, outputs)
    )
    two = helper.make_tensor("two", TensorProto.FLOAT, [2], [2.0, 2.0])
    graph = helper.make_graph(nodes, "toy", given, told, [two])
    return helper.make_model(graph, opset_imports=[helper.make_opsetid("", 18)], ir_version=8)


def import_domain(found: onnx.ModelProto) -> bytes:
    """A model that names another set of operators."""
    found.opset_import.append(helper.make_opsetid("com.microsoft", 1))
    return found.SerializeToString()


def external(found: onnx.ModelProto) -> bytes:
    """A model whose constant is another file's."""
    found.graph.initializer[0].data_location = TensorProto.EXTERNAL
    return found.SerializeToString()


def external_constant(found: onnx.ModelProto) -> bytes:
    """A model whose operator holds a constant of another file."""
    value = TensorProto(data_type=TensorProto.FLOAT, dims=[1])
    entry = value.external_data.add()
    entry.key, entry.value = "location", "secret"
    found.graph.node.append(helper.make_node("Constant", [], ["c"], value=value))
    return found.SerializeToString()


def nested() -> onnx.NodeProto:
    """An operator that runs one of two graphs."""
    branch = helper.make_graph([], "branch", [], [])
    return helper.make_node("If", ["x"], ["r"], then_branch=branch, else_branch=branch)


def functions(found: onnx.ModelProto) -> bytes:
    """A model with a function of its own."""
    found.functions.append(helper.make_function("", "Mine", [], [], [], [helper.make_opsetid("", 18)]))
    return found.SerializeToString()


def long_tag(found: onnx.ModelProto) -> bytes:
    """A model with an operator whose type is under a tag of 35 bits, of which some readers see 32."""
    tag = b"\xa2\x80\x80\x80\x10"  # 2³² + (4 << 3 | 2): NodeProto.op_type
    node = helper.make_node("", [], ["r"], shape=[1]).SerializeToString() + tag + b"\x0dRandomUniform"
    graph = found.graph.SerializeToString() + field(1, node)
    found.ClearField("graph")
    return found.SerializeToString() + field(7, graph)


def disguised(found: onnx.ModelProto) -> bytes:
    """A model that begins with a producer's name, and is a file of ONNX Runtime's own format as well."""
    return b"\x12\x84\x80\0ORTM" + found.SerializeToString()


def field(number: int, data: bytes) -> bytes:
    """A field of a protocol-buffers message, of fewer than 2¹⁴ bytes."""
    return bytes([number << 3 | 2, len(data) & 127 | 128, len(data) >> 7]) + data


def renamed(found: onnx.ModelProto, old: str, new: str) -> bytes:
    """A model with another name for an input or output."""
    for info in (*found.graph.input, *found.graph.output):
        info.name = new if info.name == old else info.name
    return found.SerializeToString()


def manifest(of: dict[str, bytes], **changes: Any) -> dict[str, bytes]:
    """A program with another manifest."""
    return {**of, "program.json": programs.encode({**json.loads(of["program.json"]), **changes})}


# Whole tasks: program, task, shard, and the update that PyTorch gives.


@dataclass(frozen=True)
class Case:
    """A task of an experiment."""

    name: str
    experiment: tp.Experiment
    task: Task
    anchored: bool
    arrays: Arrays

    def kernel(self) -> TorchKernel:
        """PyTorch's kernel for it."""
        e = self.experiment
        return TorchKernel(e.model, e.loss_function(), e.preprocess, augment=e.augment)


def cases() -> list[Case]:
    """Small, and between them every part of a recipe, dropout, buffers, and a shard that ends amid a task."""
    return [convolution(), dense()]


def convolution() -> Case:
    """Convolution, BatchNorm, pooling, dropout; SGD with Nesterov's momentum and weight decay."""
    torch.manual_seed(1)
    net = nn.Sequential(
        nn.Conv2d(1, 4, 3, padding=1), nn.BatchNorm2d(4), nn.ReLU(), nn.MaxPool2d(2), nn.Dropout(0.3),
        nn.Conv2d(4, 6, 3), nn.ReLU(), nn.Flatten(), nn.Linear(24, 12), nn.ReLU(), nn.Dropout(0.2), nn.Linear(12, 4),
    )  # fmt: skip
    generator = np.random.default_rng(1)
    y = generator.integers(0, 4, 50)
    x = generator.integers(0, 120, (50, 1, 8, 8), dtype=np.uint8)
    x[np.arange(50), 0, 2 * y] += 100
    recipe = Recipe(learning_rate=0.05, batch_size=8, momentum=0.9, nesterov=True, weight_decay=1e-3, warmup=0.2)
    return case("convolution", net, (x, y), recipe, None)


def dense() -> Case:
    """Two layers on numbers; AdamW, clipping, and the proximal term's anchor."""
    torch.manual_seed(2)
    net = nn.Sequential(nn.Linear(6, 16), nn.GELU(), nn.LayerNorm(16), nn.Linear(16, 3))
    generator = np.random.default_rng(2)
    x = generator.standard_normal((37, 6), dtype=np.float32)
    y = np.abs(x[:, :3]).argmax(1)
    recipe = Recipe(
        optimizer="adamw", learning_rate=0.01, batch_size=10, weight_decay=0.05, betas=(0.8, 0.95), epsilon=1e-6,
        clip_norm=0.5, schedule="linear",
    )  # fmt: skip
    return case("dense", net, (x, y), recipe, 0.3)


def case(
    name: str,
    net: nn.Module,
    arrays: tuple[np.ndarray[Any, Any], np.ndarray[Any, Any]],
    recipe: Recipe,
    rho: float | None,
) -> Case:
    """Twenty steps that begin amid a pass."""
    shard = sha256(shard_file(*arrays))
    task = Task(
        id=5, version=2, shard=shard, recipe=recipe, seed=rng.derive(9, len(name)), offset=64, steps=20,
        batch=recipe.batch_size, progress=0.1, pace=0.01, anchored=rho is not None, rho=rho or 0.0,
    )  # fmt: skip
    return Case(name, tp.Experiment(net, arrays, arrays, name=name), task, rho is not None, arrays)


def shard_file(x: np.ndarray[Any, Any], y: np.ndarray[Any, Any]) -> bytes:
    """A shard's file."""
    return wire.encode({"copy": 0}, {"x": x, "y": y})


def save(case: Case, folder: Path) -> None:
    """Write a task's files."""
    shutil.rmtree(folder, ignore_errors=True)
    folder.mkdir(parents=True)
    (x, y), layout = case.arrays, layout_of(case.experiment.model)
    vector = vector_of(case.experiment.model)
    anchor = anchor_of(vector, layout) if case.anchored else None
    lower(case.experiment, case.task.recipe).save(folder / "program")
    out = np.zeros_like(vector)
    kernel = case.kernel()
    report = kernel.run(case.task, vector, anchor, {"x": x, "y": y}, out)
    evaluation = kernel.evaluate(vector, {"x": x, "y": y})
    tensors = {"delta": out[: layout.trainable], "buffers": out[layout.trainable :]}
    carried = {"vector": vector} | ({} if anchor is None else {"anchor": anchor})
    (folder / "task.safetensors").write_bytes(wire.encode(case.task, carried))
    (folder / "shard.safetensors").write_bytes(shard_file(x, y))
    (folder / "report.safetensors").write_bytes(wire.encode(msgspec.structs.replace(report, seconds=0.0), tensors))
    (folder / "evaluation.json").write_bytes(msgspec.json.encode(evaluation))


def anchor_of(vector: np.ndarray[Any, Any], layout: Layout) -> np.ndarray[Any, Any]:
    """A centre near the parameters."""
    return vector[: layout.trainable] + rng.uniform(rng.key(4), 0, layout.trainable) * np.float32(0.1)


if __name__ == "__main__":
    main()
