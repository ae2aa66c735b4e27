"""Every shipped config, and every mistake a user can make in one: field, value, what is allowed."""

from __future__ import annotations

import math
from pathlib import Path
from typing import Any

import pytest
import yaml
from hypothesis import given, settings
from hypothesis import strategies as st
from pydantic import Field

from clsearch.axes import Space, axis_values
from clsearch.config import Config, ResourcesConfig, load_config, parse_config
from clsearch.data.digits import Digits
from clsearch.errors import InputError
from clsearch.identity import identity, without_places
from clsearch.methods.base import Method
from clsearch.models.base import Backbone
from clsearch.options import PLACE
from clsearch.plugins import discover
from clsearch.regularizers.base import Regularizer
from clsearch.regularizers.l1_param import L1Param
from clsearch.scenarios.base import Scenario
from clsearch.scenarios.sequence import Sequence
from clsearch.sequence import Search
from clsearch.store import Store
from clsearch.system import build_scenario, build_system, grid_of, resolve
from clsearch.yaml_reader import MAX_BYTES

EXPERIMENTS = sorted((Path(__file__).parents[1] / "experiments").glob("*.yaml"))
AXIS = "a list of numbers, {logspace: [low, high, n]}, {linspace: [low, high, n]} or a number"
DIGITS = {"name": "permuted", "source": "digits", "tasks": 2}


def whole(**sections: Any) -> dict[str, Any]:
    return {"scenario": DIGITS, "methods": [{"name": "clnp"}], **sections}


def refused(data: dict[str, Any]) -> InputError:
    """The error of parsing or, where it parses, of checking the whole sweep."""
    with pytest.raises(InputError) as caught:
        checked(data)
    error = caught.value
    assert error.exit_code == 2
    assert error.field in str(error)
    assert error.allowed
    assert "Input should" not in str(error)
    assert "after validation" not in error.allowed
    return error


def checked(data: dict[str, Any]) -> Search:
    search = Search(resolve(parse_config(data)), Path("unused"), Store("/tmp"))
    return search


# --- what is shipped -----------------------------------------------------------------------------


@pytest.mark.parametrize("path", EXPERIMENTS, ids=lambda p: p.stem)
def test_every_shipped_config_parses_and_resolves(path: Path) -> None:
    config = resolve(load_config(path))
    assert config.name == path.stem
    again = parse_config(yaml.safe_load(yaml.safe_dump(config.model_dump(mode="json"))))
    assert again == config
    assert resolve(again) == config
    shape = (3, 64, 64)
    for i in range(len(config.methods)):
        assert grid_of(config, build_system(config, i, shape))
    build_scenario(config)


def test_a_database_beside_a_config_is_found_from_anywhere(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    told = {
        "sqlite:///a.db": f"sqlite:///{tmp_path}/a.db",
        "sqlite:////b/a.db": "sqlite:////b/a.db",
        "http://host:5000": "http://host:5000",
    }
    for uri, expected in told.items():
        config = parse_config(whole(tracking={"uri": uri}))
        assert resolve(config).tracking.uri == expected


def test_there_is_a_shipped_config() -> None:
    assert "quickstart" in [p.stem for p in EXPERIMENTS]


# --- names and keys ------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("data", "field", "known"),
    [
        (whole(seed=[0]), "seed", ["seeds", "methods"]),
        (whole(training={"epoch": 3}), "training.epoch", ["epochs", "patience"]),
        (whole(search={"grids": {}}), "search.grids", ["grid", "protocol"]),
        (whole(selection={"m": 1}), "selection.m", ["margin", "thresholds"]),
        (whole(resources={"gpu": 1}), "resources.gpu", ["gpus", "workers"]),
        (whole(tracking={"url": ""}), "tracking.url", ["uri"]),
        (whole(methods=[{"name": "clnp", "lr": 1}]), "methods[0].lr", ["grid", "options"]),
        (
            whole(methods=[{"name": "clnp", "grid": {"lr": {"logspac": [1, 2, 3]}}}]),
            "methods[0].grid.lr.logspac",
            ["linspace", "logspace"],
        ),
        (whole(scenario={**DIGITS, "task": 3}), "scenario.task", ["tasks", "split_seed"]),
        (whole(model={"name": "mlp", "layers": [3]}), "model.layers", ["hidden"]),
        (
            whole(methods=[{"name": "ewc", "options": {"lambda": 3}}]),
            "methods[0].options.lambda",
            ["accumulate", "decay"],
        ),
        (
            whole(methods=[{"name": "clnp", "regularizers": [{"name": "l1_param", "x": 1}]}]),
            "methods[0].regularizers[0].x",
            ["layers", "mode"],
        ),
    ],
    ids=lambda v: v if isinstance(v, str) else "",
)
def test_an_unknown_key_lists_the_known(data: Any, field: str, known: list[str]) -> None:
    error = refused(data)
    assert error.field == field
    assert error.value == field.rpartition(".")[2]
    assert all(name in error.allowed for name in known)


@pytest.mark.parametrize(
    ("data", "field", "known"),
    [
        (whole(methods=[{"name": "x"}]), "methods[0].name", discover("clsearch.methods", Method)),
        (
            whole(methods=[{"name": "clnp"}, {"name": "ewc", "regularizers": [{"name": "x"}]}]),
            "methods[1].regularizers[0].name",
            discover("clsearch.regularizers", Regularizer),
        ),
        (whole(model={"name": "x"}), "model.name", discover("clsearch.models", Backbone)),
        (whole(scenario={"name": "x"}), "scenario.name", discover("clsearch.scenarios", Scenario)),
        (whole(methods=[{"name": "ewc", "grid": {"x": 1}}]), "methods[0].grid.x", ["strength"]),
        (whole(search={"grid": {"x": 1}}), "search.grid.x", ["l1", "lr"]),
    ],
    ids=lambda v: v if isinstance(v, str) else "",
)
def test_an_unknown_name_lists_the_known(data: Any, field: str, known: Any) -> None:
    error = refused(data)
    assert error.field == field
    assert error.value == "x"
    assert all(name in error.allowed for name in known)


# --- values --------------------------------------------------------------------------------------

SPACE = "[low, high, n]"
NAN = math.nan


@pytest.mark.parametrize(
    ("sections", "field", "value", "allowed"),
    [
        ({"selection": {"margin": -1}}, "selection.margin", -1, "at least 0"),
        ({"selection": {"margin": 101}}, "selection.margin", 101, "at most 100"),
        ({"selection": {"margin": NAN}}, "selection.margin", NAN, "a finite number"),
        ({"selection": {"margin": "small"}}, "selection.margin", "small", "a number"),
        ({"selection": {"thresholds": 0}}, "selection.thresholds", 0, "at least 1"),
        ({"methods": []}, "methods", [], "1 or more"),
        ({"methods": {"name": "clnp"}}, "methods", {"name": "clnp"}, "a list"),
        ({"methods": ["clnp"]}, "methods[0]", "clnp", "a mapping"),
        ({"methods": [{"label": "a"}]}, "methods[0].name", None, "required"),
        ({"methods": [{"name": "ewc"}] * 2}, "methods[1].name", "ewc", "label"),
        (
            {"methods": [{"name": "ewc", "label": "a"}, {"name": "mas", "label": "a"}]},
            "methods[1].label",
            "a",
            "another label",
        ),
        ({"methods": [{"name": "ewc", "label": "a b"}]}, "methods[0].label", "a b", "letters"),
        ({"methods": [{"name": "ewc", "label": "../x"}]}, "methods[0].label", "../x", "letters"),
        ({"seeds": [0, 1, 0]}, "seeds[2]", 0, "once"),
        ({"seeds": []}, "seeds", [], "1 or more"),
        ({"seeds": [-1]}, "seeds[0]", -1, "at least 0"),
        ({"seeds": [2**63]}, "seeds[0]", 2**63, "at most"),
        ({"seeds": [True]}, "seeds", [True], "true or false"),
        ({"seeds": ["a"]}, "seeds[0]", "a", "whole number"),
        ({"name": "a/b"}, "name", "a/b", "letters, digits"),
        ({"name": 3}, "name", 3, "text"),
        ({"scenario": "permuted"}, "scenario", "permuted", "a mapping"),
        ({"scenario": {}}, "scenario.name", None, "required"),
        ({"training": {"epochs": "ten"}}, "training.epochs", "ten", "a whole number"),
        ({"training": {"epochs": 1.5}}, "training.epochs", 1.5, "a whole number"),
        ({"training": {"epochs": 0}}, "training.epochs", 0, "at least 1"),
        ({"training": {"epochs": 10**6 + 1}}, "training.epochs", 10**6 + 1, "at most 1000000"),
        ({"training": {"batch_size": 2**31}}, "training.batch_size", 2**31, "at most 2147483647"),
        ({"training": {"momentum": 1.0}}, "training.momentum", 1.0, "below 1"),
        ({"training": {"optimizer": "rms"}}, "training.optimizer", "rms", "'adam' or 'sgd'"),
        ({"training": [1]}, "training", [1], "a mapping"),
        ({"resources": {"pack": 0}}, "resources.pack", 0, "at least 1 or 'auto'"),
        ({"resources": {"pack": "big"}}, "resources.pack", "big", "a whole number or 'auto'"),
        ({"resources": {"gpus": 2}}, "resources.gpus", 2, "at most 1"),
        ({"resources": {"device": "tpu"}}, "resources.device", "tpu", "'cuda'"),
        ({"tracking": {"uri": 5}}, "tracking.uri", 5, "text"),
        ({"model": {"name": "mlp", "hidden": []}}, "model.hidden", [], "1 or more"),
        ({"model": {"name": "mlp", "hidden": [0]}}, "model.hidden[0]", 0, "at least 1"),
        ({"model": {"name": "mlp", "hidden": 100}}, "model.hidden", 100, "a list"),
        ({"model": {"name": "mlp", "hidden": [True]}}, "model.hidden", [True], "true or false"),
        ({"training": {"epochs": True}}, "training.epochs", True, "true or false"),
        ({"selection": {"margin": math.inf}}, "selection.margin", math.inf, "a finite number"),
        ({"scenario": {**DIGITS, "tasks": 0}}, "scenario.tasks", 0, "at least 1"),
        ({"scenario": {**DIGITS, "tasks": 10_001}}, "scenario.tasks", 10_001, "at most 10000"),
        ({"scenario": {**DIGITS, "tasks": True}}, "scenario.tasks", True, "true or false"),
    ],
    ids=lambda v: v if isinstance(v, str) else "",
)
def test_a_wrong_value_is_named(
    sections: dict[str, Any], field: str, value: Any, allowed: str
) -> None:
    error = refused(whole(**sections))
    assert error.field == field
    assert repr(error.value) == repr(value)
    assert allowed in f"{error.allowed} {error.step}"


@pytest.mark.parametrize(
    ("method", "options", "field"),
    [
        ("lwf", {"temperature": math.inf}, "temperature"),
        ("si", {"damping": math.inf}, "damping"),
        ("si", {"damping": 1e-60}, "damping"),
        ("ebll", {"code_lr": math.inf}, "code_lr"),
        ("ebll", {"warm_up": True}, "warm_up"),
        ("mas", {"adapt": [{"task": True}]}, "adapt[0].task"),
    ],
)
def test_options_of_methods_are_finite_numbers(
    method: str, options: dict[str, Any], field: str
) -> None:
    error = refused(whole(methods=[{"name": method, "options": options}]))
    assert error.field == f"methods[0].options.{field}"


@pytest.mark.parametrize(
    ("axis", "field", "allowed"),
    [
        ("fast", "", AXIS),
        (None, "", AXIS),
        (True, "", AXIS),
        (math.inf, "", AXIS),
        ([], "", "1 or more"),
        ([0.1, "x"], "[1]", "a number"),
        ([0.1, None], "[1]", "a number"),
        ([0.1, True], "[1]", "a number"),
        ([[0.1]], "[0]", "a number"),
        ([0.1, NAN], "[1]", "a finite number"),
        ([0.1, -0.1], "", "numbers above 0"),
        (0, "", "numbers above 0"),
        ({}, "", "logspace or linspace"),
        ({"logspace": [0.1, 1, 3], "linspace": [0.1, 1, 3]}, "", "logspace or linspace"),
        ({"logspace": [0, 1, 3]}, "", "low > 0"),
        ({"logspace": [-1, 1, 3]}, "", "low > 0"),
        ({"logspace": [1, 0.1, 3]}, "", "low <= high"),
        ({"logspace": [0.1, 1, 0]}, "", "n from 1"),
        ({"logspace": [0.1, 1, 10**9]}, "", "n from 1 to"),
        ({"linspace": [0.1, math.inf, 3]}, ".linspace[1]", SPACE),
        ({"linspace": [NAN, 1, 3]}, ".linspace[0]", SPACE),
        ({"linspace": [True, 1, 3]}, ".linspace", SPACE),
        ({"linspace": [0.1, 1]}, ".linspace[2]", SPACE),
        ({"linspace": [0.1, 1, 2, 3]}, ".linspace", SPACE),
        ({"linspace": [0.1, 1, 2.5]}, ".linspace[2]", SPACE),
        ({"linspace": ["a", 1, 2]}, ".linspace[0]", SPACE),
        ({"logspace": "0.1 to 1"}, ".logspace", SPACE),
    ],
    ids=str,
)
@pytest.mark.parametrize("shared", [True, False])
def test_a_wrong_axis_says_what_an_axis_is(
    axis: Any, field: str, allowed: str, shared: bool
) -> None:
    if shared:
        data, root = whole(search={"grid": {"lr": axis}}), "search.grid.lr"
    else:
        data = whole(methods=[{"name": "ewc"}, {"name": "clnp", "grid": {"lr": axis}}])
        root = "methods[1].grid.lr"
    error = refused(data)
    assert error.field == root + field
    assert allowed in error.allowed


def test_a_number_that_yaml_reads_as_text_is_a_number() -> None:
    """YAML 1.1 takes `1e-3` for text; nobody means that."""
    config = parse_config(yaml.safe_load("{scenario: {name: permuted}, methods: [{name: clnp, grid: {lr: [1e-3, 3e-3], l1: 1e-5}}]}"))  # fmt: skip  # noqa: E501
    grid = grid_of(config, build_system(config, 0, (1, 2, 3)))
    assert grid == [{"lr": 0.001, "l1": 1e-5}, {"lr": 0.003, "l1": 1e-5}]


@pytest.mark.parametrize(
    "layers", [[], [1.0], [1.0] * 4, [1.0, -1.0, 1.0], [NAN, 1.0, 1.0], "x", [1.0, "x", 1.0]]
)
def test_wrong_layer_factors_of_l1(layers: Any) -> None:
    entry = {"name": "clnp", "regularizers": [{"name": "l1_param", "layers": layers}]}
    error = refused(whole(methods=[entry]))
    assert "layers" in error.field


def test_a_regulariser_twice_is_refused() -> None:
    entry = {"name": "ewc", "regularizers": [{"name": "l1_param"}, {"name": "l1_param"}]}
    error = refused(whole(methods=[entry]))
    assert error.field == "methods[0].regularizers"


def test_a_method_may_be_given_its_own_regularisers_options() -> None:
    entry = {"name": "clnp", "regularizers": [{"name": "l1_param", "mode": "proximal"}]}
    (system,) = checked(whole(methods=[entry])).systems
    assert [r.options.mode for r in system.regularizers] == ["proximal"]  # type: ignore[attr-defined]


def test_a_grid_of_too_many_trials_is_refused_before_it_is_spanned() -> None:
    axis = {"linspace": [0.1, 1, 10_000]}
    error = refused(whole(methods=[{"name": "clnp", "grid": {"lr": axis, "l1": axis}}]))
    assert error.field == "methods[0].grid"
    assert "100000000" in str(error)


def test_a_huge_value_does_not_flood_the_message() -> None:
    assert len(str(refused(whole(name="x" * 100_000)))) < 1000
    assert len(str(refused(whole(seeds="x" * 100_000)))) < 1000


# --- grids ---------------------------------------------------------------------------------------


def test_spaces_by_hand() -> None:
    assert Space(logspace=(1e-3, 10.0, 5)).values() == pytest.approx([1e-3, 1e-2, 0.1, 1, 10])
    assert Space(linspace=(0.0, 1.0, 5)).values() == [0.0, 0.25, 0.5, 0.75, 1.0]
    assert Space(linspace=(-1.0, 1.0, 2)).values() == [-1.0, 1.0]
    assert Space(logspace=(0.3, 7.0, 1)).values() == [0.3]


@given(
    st.floats(1e-12, 1e6), st.floats(1, 1e6), st.integers(2, 60), st.sampled_from(["log", "lin"])
)
@settings(max_examples=100, deadline=None, derandomize=True)
def test_spaces_keep_their_ends_and_rise(low: float, ratio: float, n: int, kind: str) -> None:
    high = low * ratio
    values = Space.model_validate({f"{kind}space": [low, high, n]}).values()
    assert len(values) == n
    assert (values[0], values[-1]) == (low, high)
    assert all(low * (1 - 1e-12) <= v <= high * (1 + 1e-12) for v in values)
    assert sorted(values) == pytest.approx(values)


def test_axis_values_are_distinct_floats_in_order() -> None:
    assert axis_values([3, 1, 3.0, 2]) == [3.0, 1.0, 2.0]
    assert axis_values(5) == [5.0]
    assert all(type(v) is float for v in axis_values([1, 2]))
    assert axis_values(Space(linspace=(1.0, 1.0, 4))) == [1.0]


def test_grids_a_methods_own_axis_over_the_shared_and_defaults_elsewhere() -> None:
    search = checked(
        whole(
            methods=[{"name": "ewc", "grid": {"lr": [0.5, 0.6]}}, {"name": "clnp"}],
            search={"grid": {"lr": 0.1, "l1": [0.0, 1.0]}},
        )
    )
    ewc, clnp = search.systems
    assert grid_of(search.config, ewc) == [
        {"lr": 0.5, "strength": 100.0},
        {"lr": 0.6, "strength": 100.0},
    ]
    assert grid_of(search.config, clnp) == [{"lr": 0.1, "l1": 0.0}, {"lr": 0.1, "l1": 1.0}]


def test_a_layers_own_strength_is_an_axis_where_a_grid_names_it() -> None:
    """For a method that has it; unknown layers are refused with the known ones listed."""
    data = whole(
        methods=[{"name": "ewc"}, {"name": "clnp", "grid": {"l1.head": [0.5, 2.0]}}],
        search={"grid": {"lr": 0.1, "l1": 0.2, "l1.fc2": 0.3}},
    )
    ewc, clnp = (grid_of(parse_config(data), system) for system in checked(data).systems)
    common = {"lr": 0.1, "l1": 0.2, "l1.fc2": 0.3}
    assert clnp == [{**common, "l1.head": 0.5}, {**common, "l1.head": 2.0}]
    assert ewc == [{"lr": 0.1, "strength": 100.0}]
    error = refused(whole(methods=[{"name": "clnp", "grid": {"l1.conv1": 0.1}}]))
    assert error.field == "methods[0].grid.l1.conv1"
    assert error.allowed == "one of l1, l1.fc1, l1.fc2, l1.head, lr"
    error = refused(whole(search={"grid": {"l1.fc1": -1.0}}))
    assert (error.field, error.value) == ("search.grid.l1.fc1", -1.0)


# --- files ---------------------------------------------------------------------------------------


def bomb(levels: int) -> str:
    lines = ["a0: &a0 [x, x]"]
    lines += [f"a{i}: &a{i} [{', '.join([f'*a{i - 1}'] * 9)}]" for i in range(1, levels)]
    return "\n".join(lines)


FILES: dict[str, tuple[bytes, str]] = {
    "nothing": (b"", "mapping"),
    "list": (b"- a\n- b\n", "mapping"),
    "text": (b"hello", "mapping"),
    "open bracket": (b"methods: [", "valid YAML"),
    "tab": (b"a:\n\t- b", "valid YAML"),
    "not UTF-8": (b"name: \xff\xfe", "valid YAML"),
    "UTF-16": ("name: x".encode("utf-16"), "valid YAML"),
    "control characters": (b"name: \x00\x01", "valid YAML"),
    "python object": (b"name: !!python/object/apply:os.system [echo]", "without a tag"),
    "no such day": (b"name: 2024-13-45", "valid YAML"),
    "no such int": (b"seeds: [!!int x]", "valid YAML"),
    "no such time": (b"name: !!timestamp x", "valid YAML"),
    "too many digits": (b"seeds: [" + b"9" * 5000 + b"]", "400 characters"),
    "two documents": (b"a: 1\n---\nb: 2", "valid YAML"),
    "unknown alias": (b"a: *b", "valid YAML"),
    "list as key": (b"[a]: 1\n? {b: 1}\n: 2", "valid YAML"),
    "deep": (b"a: " + b"[" * 20_000, "nested"),
    "deep mapping": (b"{a: " * 20_000, "nested"),
    "bomb": (bomb(12).encode(), "aliases unfolded"),
    "merge bomb": (
        b"a0: &a0 {k: v}\n"
        + b"".join(
            f"a{i}: &a{i} {{<<: [*a{i - 1}, *a{i - 1}, *a{i - 1}]}}\n".encode()
            for i in range(1, 25)
        ),
        "mappings of at most",
    ),
    "own child": (b"a: &a [*a]", "aliases unfolded"),
    "key twice": (b"seeds: [0]\nname: x\nseeds: [1]\n", "each key once"),
    "too large": (b"#" * (MAX_BYTES + 1), "at most 1 MB"),
}


@pytest.mark.parametrize("name", FILES)
@pytest.mark.timeout(20)
def test_a_file_that_is_no_config(name: str, tmp_path: Path) -> None:
    raw, allowed = FILES[name]
    path = tmp_path / "config.yaml"
    path.write_bytes(raw)
    with pytest.raises(InputError) as caught:
        load_config(path)
    assert allowed in caught.value.allowed
    assert len(str(caught.value)) < 2000


def test_a_file_that_is_not_there(tmp_path: Path) -> None:
    for path in (tmp_path / "none.yaml", tmp_path):
        with pytest.raises(InputError, match="readable YAML file"):
            load_config(path)


def test_anchors_are_fine(tmp_path: Path) -> None:
    path = tmp_path / "config.yaml"
    path.write_text(
        "scenario: {name: permuted}\nmethods:\n"
        "  - {name: ewc, grid: &g {lr: [0.1, 0.2]}}\n  - {name: mas, grid: *g}\n"
    )
    assert load_config(path).methods[1].grid == {"lr": [0.1, 0.2]}


@given(st.recursive(
    st.none() | st.booleans() | st.integers() | st.floats() | st.text(max_size=5),
    lambda inner: st.lists(inner, max_size=3)
    | st.dictionaries(
        st.sampled_from(["name", "grid", "lr", "logspace", "label", "x", "tasks"]), inner,
        max_size=3,
    ),
    max_leaves=8,
), st.sampled_from(sorted(Config.model_fields)))  # fmt: skip
@settings(max_examples=150, deadline=None, derandomize=True)
def test_whatever_stands_in_a_section_it_parses_or_is_refused(value: Any, section: str) -> None:
    found = None
    try:
        parse_config(whole(**{section: value}))
    except InputError as error:
        found = error
    assert found is None or (found.allowed and found.field.startswith(section))


def test_identity_leaves_out_what_may_change_between_runs() -> None:
    config = parse_config(whole())
    same = [
        whole(selection={"margin": 3}),
        whole(seeds=[0, 1]),
        whole(methods=[{"name": "ewc"}]),
        whole(scenario={**DIGITS, "tasks": 9}),
        whole(resources={"workers": 3}),
        whole(search={"grid": {"lr": 0.1}}),
        whole(tracking={"uri": "http://x"}),
    ]
    other = [
        whole(name="b"),
        whole(training={"epochs": 3}),
        whole(model={"name": "mlp", "hidden": [3]}),
        whole(scenario={**DIGITS, "split_seed": 1}),
    ]
    assert all(identity(parse_config(d)) == identity(config) for d in same)
    ours = identity(config)
    parts = ["name", "training", "model", "scenario"]
    for data, part in zip(other, parts, strict=True):
        theirs = identity(parse_config(data))
        assert [name for name in ours if ours[name] != theirs[name]] == [part]


def test_a_place_is_what_an_option_is_declared_to_be_and_no_matter_of_its_name(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    """Of a scenario and of a source within a list."""

    class Own(Digits.Options):  # type: ignore[name-defined,misc]
        images: int = 3
        somewhere: str = Field("here", json_schema_extra=PLACE)

    class Sequences(Sequence.Options):  # type: ignore[name-defined,misc]
        images: int = 3
        somewhere: str = Field("here", json_schema_extra=PLACE)

    monkeypatch.setattr(Digits, "Options", Own)
    monkeypatch.setattr(Sequence, "Options", Sequences)
    both = {"images": 4, "somewhere": "there"}
    source = {"name": "digits", "path": "unknown", **both}
    scenario = {"name": "sequence", **both, "tasks": [{"source": source}, {"source": "digits"}]}
    assert without_places(scenario) == {
        "name": "sequence",
        "images": 4,
        "tasks": [
            {"source": {"name": "digits", "path": "unknown", "images": 4}},
            {"source": "digits"},
        ],
    }
    scenario["tasks"] = [{"source": {"name": "digit"}}]
    with pytest.raises(InputError, match=r"scenario\.tasks\[0\]\.source.*digits"):
        without_places(scenario)


def test_hyperparameters_of_one_name_are_refused() -> None:
    """Two parts would share one value without saying so."""

    class Twin(L1Param):
        name = "twin"
        space = {"strength": L1Param.space["l1"]}  # noqa: RUF012

    known = discover("clsearch.regularizers", Regularizer) | {"twin": Twin}
    data = whole(methods=[{"name": "ewc", "regularizers": [{"name": "twin"}]}])
    config = parse_config(data)
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr("clsearch.plugins.discover", lambda package, base: known | METHODS_AND_MODELS)
        with pytest.raises(InputError) as caught:
            build_system(config, 0, (1, 2, 3))
    assert caught.value.field == "methods[0].regularizers"
    assert "ewc has 'strength' too" in str(caught.value)


METHODS_AND_MODELS = {
    **discover("clsearch.methods", Method),
    **discover("clsearch.models", Backbone),
}


def test_momentum_belongs_to_sgd() -> None:
    with pytest.raises(InputError, match="optimizer: sgd") as caught:
        parse_config(whole(training={"optimizer": "adam", "momentum": 0.9}))
    assert caught.value.field == "training.momentum"
    assert parse_config(whole(training={"optimizer": "sgd", "momentum": 0.9})).training.momentum


@pytest.mark.parametrize(
    "options",
    [
        "endpoint_override=host:9000",
        "endpoint%5Foverride=host%3A9000",
        "endpoint_override=127.0.0.1:9000&endpoint_override=host:9000",
        "endpoint_override=127.0.0.1.host:9000",
        "endpoint_override=127.0.0.1:9000@host",
        "endpoint_override=host%5C@127.0.0.1",
        "endpoint_override=",
        "endpoint_override=[::1",
        "scheme=http",
        "scheme=HTTP",
    ],
)
def test_googles_token_is_for_google(options: str) -> None:
    """It is sent with every request, and opens what its owner may open."""
    said = "with anonymous@ before BUCKET.*would send Google's token elsewhere"
    with pytest.raises(InputError, match=said):
        ResourcesConfig.model_validate({"storage": f"gs://bucket/x?{options}"})


@pytest.mark.parametrize(
    ("storage", "fine"),
    [
        ("file:///folder/with%20space", True),
        ("s3://bucket/search?endpoint_override=127.0.0.1:9000", True),
        ("gs://bucket", True),
        ("gs://bucket?endpoint_override=127.0.0.1:9000&scheme=http", True),
        ("gs://bucket?endpoint_override=[::1]:9000", True),
        ("gs://anonymous@bucket?endpoint_override=host:9000&scheme=http", True),
        ("file:///folder/../other", False),
        ("file:///folder/%2e%2e/other", False),
        ("file:///folder?one", False),
        ("file:///folder#one", False),
        ("s3:///bucket", False),
        ("s3://bucket/%2E%2E/x", False),
        ("folder", False),
    ],
)
def test_a_storage_is_an_address_that_means_what_it_says(storage: str, fine: bool) -> None:
    data = {"storage": storage}
    if fine:
        assert ResourcesConfig.model_validate(data).storage == storage
    else:
        with pytest.raises(InputError, match=r"storage: .* Allowed: s3://BUCKET/PATH"):
            ResourcesConfig.model_validate(data)
