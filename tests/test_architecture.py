"""Who may import whom, what an import drags in, and how long files and functions are."""

from __future__ import annotations

import ast
import subprocess
import sys
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[1]
SOURCES = {
    ".".join(p.relative_to(ROOT).with_suffix("").parts).removesuffix(".__init__"): p
    for p in sorted((ROOT / "clsearch").rglob("*.py"))
}

ROOMS = [
    *("redaction", "errors", "rng", "records", "space", "options", "plugins"),
    *("memory", "files"),
    *("products", "signals"),
    *("addresses", "messages", "axes", "yaml_reader", "config"),
    *("metrics", "selection"),
    *("data", "scenarios", "models", "regularizers", "methods", "training", "pruning"),
    *("system", "identity", "store", "protocols", "trial", "consolidation", "jobs", "search"),
    *("held_out", "commit", "refinement"),
    *("archive", "exports"),
    *("audit", "notes", "views", "mlflow_places", "mlflow_runs"),
    *("outbox", "courier", "delivery", "delivery_process", "tracking"),
    *("report", "sequence"),
    *("folder", "selected", "reselect", "evaluate", "compare"),
    *("results", "status", "reporting"),
    *("ui", "progress", "dry_run", "doctor", "catalogue"),
    *("driver", "api", "launch", "cli", "reference", "__main__"),
]
"""From the bottom up: a room imports only from rooms before it."""

LONG_FILES: dict[str, str] = {}
LONG_FUNCTIONS: dict[str, str] = {}


def imports(path: Path) -> set[str]:
    """Every module a file imports, inside functions too, with the names taken from it."""
    found = set()
    for node in ast.walk(ast.parse(path.read_text(encoding="utf-8"))):
        if isinstance(node, ast.Import):
            found |= {alias.name for alias in node.names}
        elif isinstance(node, ast.ImportFrom):
            assert node.level == 0, f"{path} imports relatively"
            found |= {str(node.module)} | {f"{node.module}.{a.name}" for a in node.names}
        elif isinstance(node, ast.Call) and ast.unparse(node.func).endswith("import_module"):
            found |= {str(a.value) for a in node.args if isinstance(a, ast.Constant)}
    return found


def importers(package: str) -> list[str]:
    return [
        name
        for name, path in SOURCES.items()
        if any(i == package or i.startswith(f"{package}.") for i in imports(path))
    ]


def room(module: str) -> str:
    parts = module.split(".")
    return parts[1] if len(parts) > 1 else ""


@pytest.mark.parametrize(
    ("package", "module"),
    [
        ("ray", "clsearch.search._ray"),
        ("mlflow", "clsearch.mlflow_runs"),
        ("torchvision", "clsearch.data._torchvision"),
    ],
)
def test_each_edge_is_touched_by_one_module(package: str, module: str) -> None:
    assert importers(package) == [module]


def test_every_room_has_its_place() -> None:
    assert sorted(ROOMS) == sorted({room(name) for name in SOURCES} - {""})
    page = (ROOT / "docs" / "architecture.md").read_text(encoding="utf-8")
    assert [name for name in ROOMS if f"`{name}`" not in page] == ["__main__"]


@pytest.mark.parametrize("name", [name for name in SOURCES if room(name)])
def test_a_room_imports_only_from_rooms_below_it(name: str) -> None:
    used = {room(i) for i in imports(SOURCES[name]) if i.startswith("clsearch.")}
    rank = {name: i for i, name in enumerate(["", *ROOMS])}
    above = {r for r in used if r in rank and rank[r] > rank[room(name)]}
    assert not above


def test_no_module_imports_itself_through_others() -> None:
    """At import time, inside functions left aside, there is an order of all modules."""
    graph = {}
    for name, path in SOURCES.items():
        tree = ast.parse(path.read_text(encoding="utf-8"))
        used = set()
        for node in tree.body:
            if isinstance(node, ast.Import):
                used |= {a.name for a in node.names}
            elif isinstance(node, ast.ImportFrom):
                used |= {str(node.module)} | {f"{node.module}.{a.name}" for a in node.names}
        graph[name] = used & set(SOURCES) - {name}
    while leaves := [name for name, used in graph.items() if not used & set(graph)]:
        for name in leaves:
            del graph[name]
    assert not graph, f"modules that import each other: {sorted(graph)}"


FORBIDDEN = {
    "torch.manual_seed", "np.random.seed", "random.seed", "os.chdir", "eval", "exec",
}  # fmt: skip
DRAWS = {"rand", "randn", "randint", "randperm", "bernoulli", "multinomial", "uniform_", "normal_"}
"""Functions and methods that draw from a global generator unless they are given one."""

MODULES = [
    name
    for name in SOURCES
    if ROOMS.index(room(name) or "errors") <= ROOMS.index("trial")
    and name != "clsearch.data._torchvision"
]


def test_the_library_is_used_without_ray_and_mlflow() -> None:
    """And importing it leaves the process as it was: no seed drawn, no folder changed."""
    code = f"""
import os, random, sys
import numpy, torch
where, seed, python = os.getcwd(), torch.random.get_rng_state(), random.getstate()
threads = torch.get_num_threads()
for name in {MODULES!r}:
    __import__(name)
from clsearch.plugins import discover
from clsearch.methods.base import Method
assert discover("clsearch.methods", Method)
heavy = {{"ray", "mlflow", "torchvision", "matplotlib"}} & set(sys.modules)
assert not heavy, heavy
assert os.getcwd() == where
assert random.getstate() == python
assert torch.equal(torch.random.get_rng_state(), seed)
assert torch.get_num_threads() == threads
"""
    done = subprocess.run(
        [sys.executable, "-c", code], capture_output=True, text=True, cwd=ROOT, check=False
    )
    assert done.returncode == 0, done.stderr


def test_the_package_alone_imports_nothing() -> None:
    """Its API is imported when first used: `clsearch --help` does not wait for torch."""
    code = """
import sys
import clsearch
assert set(clsearch.__all__) <= set(dir(clsearch))
assert not [name for name in sys.modules if name.startswith("clsearch.")]
assert clsearch.load_config.__module__ == "clsearch.config"
"""
    done = subprocess.run(
        [sys.executable, "-c", code], capture_output=True, text=True, cwd=ROOT, check=False
    )
    assert done.returncode == 0, done.stderr


def test_files_stay_under_400_lines() -> None:
    long = {n for n, p in SOURCES.items() if len(p.read_text("utf-8").splitlines()) > 400}
    assert long <= set(LONG_FILES), f"over 400 lines without a reason: {long - set(LONG_FILES)}"


def test_functions_stay_under_60_lines() -> None:
    long = {
        f"{name}.{node.name}"
        for name, path in SOURCES.items()
        for node in ast.walk(ast.parse(path.read_text(encoding="utf-8")))
        if isinstance(node, ast.FunctionDef | ast.AsyncFunctionDef)
        and (node.end_lineno or 0) - node.lineno + 1 > 60
    }
    assert long <= set(LONG_FUNCTIONS), f"over 60 lines: {long - set(LONG_FUNCTIONS)}"


@pytest.mark.parametrize("name", SOURCES)
def test_every_module_says_what_it_is_for(name: str) -> None:
    text = SOURCES[name].read_text(encoding="utf-8")
    assert ast.get_docstring(ast.parse(text)), f"{name} has no docstring"


@pytest.mark.parametrize("name", SOURCES)
def test_nothing_unpickles_draws_globally_or_excepts_blindly(name: str) -> None:
    tree = ast.parse(SOURCES[name].read_text(encoding="utf-8"))
    used = imports(SOURCES[name]) - {"pickle", "pickle.UnpicklingError"}  # an error to catch
    assert not {i for i in used if i.split(".")[0] in {"pickle", "cloudpickle", "dill", "joblib"}}
    for node in ast.walk(tree):
        assert not (isinstance(node, ast.ExceptHandler) and node.type is None), "a bare except"
        if isinstance(node, ast.Call):
            called = ast.unparse(node.func)
            assert called not in FORBIDDEN, called
            assert called != "torch.load" or "weights_only=True" in ast.unparse(node)
            assert called != "np.load" or "allow_pickle=False" in ast.unparse(node)
            assert called not in {"pickle.load", "pickle.loads"}
            given = {keyword.arg for keyword in node.keywords}
            drawn = called.rpartition(".")[2] in DRAWS and "generator" not in given
            assert not drawn, f"{called} draws from the global generator"
            assert not called.startswith(("random.", "np.random.", "numpy.random.")), called
