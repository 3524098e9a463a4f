"""The rules of the layers, of imports and of the public names."""

import ast
import importlib
import inspect
import pkgutil
import re
import subprocess
import sys
from fnmatch import fnmatch
from pathlib import Path

import pytest

import trainpool

SOURCE = Path(trainpool.__file__).parent
LEVELS = {
    **dict.fromkeys(("errors", "rng", "vector", "messages", "events"), 0),
    **dict.fromkeys(("strategies", "data", "admission", "statistics", "pace", "wire", "onnx_file", "program"), 1),
    **dict.fromkeys(("coordinator", "dispatch", "memory", "units"), 2),
    "auto": 4,
    **dict.fromkeys(("journal", "kernels", "pools", "drive", "worker", "models"), 3),
    **dict.fromkeys(("experiment", "record", "plots", "display", "config", "training", "cli"), 4),
    **dict.fromkeys(("lowering", "augment", "cli_lower"), 4),
    **dict.fromkeys(("machines", "trial", "question", "crew", "compare", "results", "tables", "screen"), 4),
    **dict.fromkeys(("report", "report_plots", "simulation", "cli_options", "cli_simulate"), 4),
    "testing": 3,
    "__init__": 4,
}
TORCH_FREE_TOPS = {name for name, level in LEVELS.items() if level <= 2} | {"worker", "journal", "drive", "pools"}
MODULES = sorted(SOURCE.rglob("*.py"))


def top(module: Path) -> str:
    """The part of the package that a file belongs to."""
    return module.relative_to(SOURCE).parts[0].removesuffix(".py")


def imports(module: Path) -> set[str]:
    """Every module that a file imports, anywhere in it."""
    found = set()
    for node in ast.walk(ast.parse(module.read_text())):
        if isinstance(node, ast.Import):
            found |= {alias.name for alias in node.names}
        elif isinstance(node, ast.ImportFrom) and node.module:
            found |= {node.module} | {f"{node.module}.{alias.name}" for alias in node.names}
    return found


def test_the_design_page_has_the_same_levels() -> None:
    page = (Path(__file__).parent.parent / "docs" / "design.md").read_text()
    rows = re.findall(r"^\| (\d) \w+ \| (.*?) \|", page, re.MULTILINE)
    named = [(pattern, int(level)) for level, cells in rows for pattern in re.findall(r"`([\w*]+)(?:\.py|/)`", cells)]
    for name, level in LEVELS.items():
        if name != "__init__":
            assert [place for pattern, place in named if fnmatch(name, pattern)] == [level], name


@pytest.mark.parametrize("module", MODULES, ids=lambda path: str(path.relative_to(SOURCE)))
def test_imports_point_downwards(module: Path) -> None:
    assert top(module) in LEVELS, f"{module.name} has no layer yet: give it one"
    for name in imports(module):
        parts = name.split(".")
        if parts[0] == "trainpool" and len(parts) > 1 and parts[1] in LEVELS:
            assert LEVELS[parts[1]] <= LEVELS[top(module)], f"{module.name} imports {name} from a layer above"


@pytest.mark.parametrize("module", MODULES, ids=lambda path: str(path.relative_to(SOURCE)))
def test_the_torch_free_part_names_no_torch(module: Path) -> None:
    if top(module) in TORCH_FREE_TOPS:
        assert not {name for name in imports(module) if name.split(".")[0] in ("torch", "cloudpickle")}


def test_importing_the_torch_free_part_loads_no_torch() -> None:
    names = sorted(
        ".".join(("trainpool", *path.relative_to(SOURCE).with_suffix("").parts)).removesuffix(".__init__")
        for path in MODULES
        if top(path) in TORCH_FREE_TOPS
    )
    code = f"import importlib, sys\nfor n in {names!r}: importlib.import_module(n)\nsys.exit('torch' in sys.modules)"
    assert subprocess.run([sys.executable, "-c", code], check=False).returncode == 0


@pytest.mark.parametrize("arguments", [["-c", "import trainpool"], ["-m", "trainpool.cli", "--help"]])
def test_no_torch_for_help_or_a_bare_import(arguments: list[str]) -> None:
    run = subprocess.run([sys.executable, "-X", "importtime", *arguments], capture_output=True, text=True, check=True)
    loaded = {line.rpartition("|")[2].strip() for line in run.stderr.splitlines()}
    assert not loaded & {"torch", "matplotlib", "sklearn", "scipy"}


def public_modules() -> list[str]:
    return [
        module.name
        for module in pkgutil.walk_packages(trainpool.__path__, "trainpool.")
        if not module.name.endswith("__main__")
    ]


@pytest.mark.parametrize("name", public_modules())
def test_public_names_have_docstrings(name: str) -> None:
    module = importlib.import_module(name)
    assert module.__doc__, f"{name} has no docstring"
    for exported in getattr(module, "__all__", []):
        thing = getattr(module, exported)
        if inspect.isclass(thing) or inspect.isfunction(thing):
            assert inspect.getdoc(thing), f"{name}.{exported} has no docstring"
        if inspect.isclass(thing) and thing.__module__ == name:
            for method, value in vars(thing).items():
                if inspect.isfunction(value) and not method.startswith("_") and value.__module__ == name:
                    assert inspect.getdoc(value), f"{name}.{exported}.{method} has no docstring"


def test_every_public_name_loads() -> None:
    for name in trainpool.__all__:
        assert getattr(trainpool, name) is not None
    assert set(trainpool.__all__) == set(trainpool.PLACES)
    with pytest.raises(AttributeError, match="nonsense"):
        trainpool.nonsense  # noqa: B018


def test_nothing_is_unpickled_but_the_authors_own_program() -> None:
    users = {
        str(path.relative_to(SOURCE))
        for path in MODULES
        if {name.split(".")[0] for name in imports(path)}
        & {"pickle", "cloudpickle", "dill", "joblib", "marshal", "shelve"}
    }
    assert {Path(user).as_posix() for user in users} == {"kernels/torch.py", "training.py"}
