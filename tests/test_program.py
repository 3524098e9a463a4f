"""Programs: verified when they are read, and everything that is wrong said in one line."""

import hashlib
from collections.abc import Callable
from contextlib import suppress
from pathlib import Path

import msgspec
import numpy as np
import onnx
import pytest
from onnx import TensorProto, helper, numpy_helper

import trainpool as tp
from trainpool import models, program
from trainpool.errors import ProgramError
from trainpool.lowering import Lowered, lower
from trainpool.messages import Recipe
from trainpool.onnx_file import contents
from trainpool.program import OPERATORS, File, Program

X = np.zeros((20, 1, 4, 4), np.uint8)
Y = np.arange(20) % 3


@pytest.fixture(scope="module")
def lowered() -> Lowered:
    model = models.build("logistic", (1, 4, 4), 3)
    return lower(tp.Experiment(model, (X, Y)), Recipe(batch_size=4, momentum=0.5))


@pytest.fixture
def folder(lowered: Lowered, tmp_path: Path) -> Path:
    return lowered.save(tmp_path / "program")


def reseal(folder: Path, **changes: object) -> None:
    """Write a manifest that fits the changed files."""
    manifest = msgspec.json.decode((folder / "program.json").read_bytes(), type=Program)
    files = {}
    for name in (*manifest.files, *manifest.blocked):
        data = (folder / name).read_bytes()
        files[name] = File(hashlib.sha256(data).hexdigest(), len(data))
    blocked = {name: files.pop(name) for name in manifest.blocked}
    sealed = msgspec.structs.replace(manifest, files=files, blocked=blocked)
    (folder / "program.json").write_bytes(program.encode(msgspec.structs.replace(sealed, **changes)))


def test_what_was_saved_is_what_is_loaded(lowered: Lowered, folder: Path) -> None:
    loaded = program.load(folder)
    assert loaded.program == lowered.program
    assert loaded.name == lowered.loaded.name == hashlib.sha256((folder / "program.json").read_bytes()).hexdigest()
    assert [array.name for array in loaded.program.state] == ["momentum.output.weight", "momentum.output.bias"]
    text = (folder / "program.json").read_text()
    assert text.index('"batch"') < text.index('"files"') < text.index('"recipe"')
    found = contents(loaded.train)
    assert found.inputs[:5] == ["x", "y", "rate", "rho", "p.output.weight"]
    assert found.outputs[0] == "loss"
    assert found.operators | contents(loaded.evaluate).operators == set(loaded.program.operators)


def test_the_reader_agrees_with_the_onnx_package(folder: Path) -> None:
    for name in ("train.onnx", "evaluate.onnx"):
        model = onnx.load(folder / name)
        found = contents((folder / name).read_bytes())
        assert found.operators == {node.op_type for node in model.graph.node}
        assert found.nodes == len(model.graph.node)
        assert found.inputs == [value.name for value in model.graph.input]
        assert found.outputs == [value.name for value in model.graph.output]


def test_the_list_of_operators_is_of_standard_ones_that_only_compute() -> None:
    for name in OPERATORS:
        schema = onnx.defs.get_schema(name)
        assert schema.domain == ""
        assert not any(a.type in (onnx.defs.OpSchema.AttrType.GRAPH,) for a in schema.attributes.values())
    assert not OPERATORS & {"If", "Loop", "Scan", "RandomNormal", "RandomUniform", "Bernoulli", "Multinomial"}


@pytest.mark.parametrize("cut", [0, 1, 7, 100, -1, -50])
def test_a_file_cut_short_is_refused(folder: Path, cut: int) -> None:
    path = folder / "train.onnx"
    path.write_bytes(path.read_bytes()[:cut])
    with pytest.raises(ProgramError, match="but the manifest says"):
        program.load(folder)
    if cut == 0:
        return  # a manifest cannot name an empty file
    reseal(folder)
    with pytest.raises(ProgramError, match=r"cut short|not an ONNX file|list"):
        program.load(folder)


def test_no_damage_of_a_byte_goes_unnoticed_or_ends_in_another_error(folder: Path) -> None:
    data = (folder / "evaluate.onnx").read_bytes()
    for place in range(0, len(data), max(1, len(data) // 60)):
        broken = bytearray(data)
        broken[place] ^= 0xFF
        (folder / "evaluate.onnx").write_bytes(broken)
        with pytest.raises(ProgramError, match=r"evaluate.onnx is damaged"):
            program.load(folder)
        with suppress(ProgramError):  # nothing but this may come of it
            contents(bytes(broken))


@pytest.mark.parametrize("name", ["program.json", *program.FILES])
def test_a_missing_file_is_named(folder: Path, name: str) -> None:
    (folder / name).unlink()
    with pytest.raises(ProgramError, match=name):
        program.load(folder)


def test_a_file_of_nothing_but_small_fields_is_refused_before_its_end() -> None:
    with pytest.raises(ProgramError, match="more than 2,000,000 fields"):
        contents(b"\x08\0" * 2_000_000 + b"\x08\0?")


def model_with(**changes: object) -> onnx.ModelProto:
    node = helper.make_node("Relu", ["x"], ["loss"], domain=str(changes.get("domain", "")))
    tensor = numpy_helper.from_array(np.ones(1, np.float32), "w")
    if "external" in changes:
        onnx.external_data_helper.set_external_data(tensor, "weights.bin")
    nodes = [node]
    if "inner" in changes:
        value = helper.make_tensor_value_info("o", TensorProto.FLOAT, [1])
        inner = helper.make_graph([helper.make_node("Relu", ["x"], ["o"])], "inner", [], [value])
        nodes.append(helper.make_node("If", ["c"], ["z"], then_branch=inner, else_branch=inner))
    graph = helper.make_graph(nodes, "g", [], [], [tensor])
    functions = []
    if "function" in changes:
        functions = [
            helper.make_function("own", "F", ["x"], ["y"], [helper.make_node("Relu", ["x"], ["y"])], [
                helper.make_opsetid("", 20)
            ])
        ]  # fmt: skip
    opsets = [helper.make_opsetid(str(changes.get("opset", "")), 20)]
    return helper.make_model(graph, opset_imports=opsets, functions=functions)


@pytest.mark.parametrize(
    ("changes", "words"),
    [
        ({"domain": "com.microsoft"}, "uses the domain 'com.microsoft'"),
        ({"opset": "evil"}, "imports the domain 'evil'"),
        ({"external": True}, "keeps tensors in other files"),
        ({"inner": True}, "a graph inside of a graph"),
        ({"function": True}, "functions of its own"),
    ],
)
def test_what_no_program_may_hold_is_refused(changes: dict[str, object], words: str) -> None:
    assert contents(model_with().SerializeToString()).operators == {"Relu"}
    with pytest.raises(ProgramError, match=words):
        contents(model_with(**changes).SerializeToString())


@pytest.mark.parametrize(
    ("change", "words"),
    [
        (
            lambda m: m.graph.node[0].__setattr__("op_type", "RandomNormalLike"),
            "may use the operators RandomNormalLike",
        ),
        (lambda m: m.graph.node[0].__setattr__("op_type", "Tanh"), "not those that the manifest lists"),
        (lambda m: m.graph.input[0].__setattr__("name", "secret"), "inputs that no worker has"),
        (lambda m: m.graph.output[0].__setattr__("name", "gain"), "outputs are not those of a program"),
    ],
)
def test_a_changed_graph_is_refused_even_with_a_fitting_manifest(
    folder: Path, change: Callable[[onnx.ModelProto], None], words: str
) -> None:
    model = onnx.load(folder / "train.onnx")
    change(model)
    (folder / "train.onnx").write_bytes(model.SerializeToString())
    reseal(folder)
    with pytest.raises(ProgramError, match=words):
        program.load(folder)


def test_a_layout_with_gaps_is_refused(folder: Path) -> None:
    layout = (folder / "layout.json").read_text()
    (folder / "layout.json").write_text(layout.replace('"offset":48', '"offset":49'))
    reseal(folder)
    with pytest.raises(ProgramError, match=r"not where it belongs"):
        program.load(folder)


def test_unknown_fields_and_other_formats_are_refused(folder: Path) -> None:
    text = (folder / "program.json").read_text()
    for changed in (text.replace('"format":1', '"format":2'), text.replace('"batch":4', '"batch":4,"more":1')):
        (folder / "program.json").write_text(changed)
        with pytest.raises(ProgramError, match=r"program\.json"):
            program.load(folder)


def test_a_folder_with_other_files_is_left_alone(lowered: Lowered, tmp_path: Path) -> None:
    (tmp_path / "mine.txt").write_text("precious")
    with pytest.raises(ProgramError, match="other files"):
        lowered.save(tmp_path)
