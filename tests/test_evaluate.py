"""Exported models measured: on their own task's test data, and on any other."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import onnx
import pytest
import torch
import yaml
from command import refused
from helpers import searched
from layouts import FACTS, INSECTS, LAYOUTS, facts, noise
from sklearn.datasets import load_digits

from clsearch import __main__ as program
from clsearch import export
from clsearch.errors import InputError
from clsearch.evaluate import evaluate
from clsearch.exports.files import load_export
from clsearch.exports.formats.base import formats

SPLIT = {"name": "split", "classes_per_task": 3, "class_order": [3, 1, 4, 0, 5, 9]}


@pytest.fixture(scope="module")
def permuted(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return searched(tmp_path_factory.mktemp("permuted") / "out")


@pytest.fixture(scope="module")
def split(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return searched(tmp_path_factory.mktemp("split") / "out", scenario=SPLIT)


@pytest.fixture(scope="module")
def model(split: Path) -> Path:
    """Of digits 0, 5 and 9."""
    file = split / "m.safetensors"
    export(split, "clnp", 2, file)
    return file


def matrix(out: Path) -> Any:
    return json.loads((out / "accuracy_matrix.json").read_text())


@pytest.mark.parametrize("name", sorted(formats()))
def test_on_its_own_test_data_a_model_has_the_accuracy_of_the_matrix(
    permuted: Path, split: Path, tmp_path: Path, name: str
) -> None:
    """Of the second task, whose pixels are permuted: the file takes them as they are stored."""
    for out in (permuted, split):
        export(out, "clnp", 2, tmp_path / f"m.{name}", compact=True, force=True)
        found = evaluate(tmp_path / f"m.{name}")
        assert found.value == matrix(out)["clnp"]["0"][1][1]
        assert found.images == sum(each.images for each in found.classes)
        assert found.value == sum(each.right for each in found.classes) / found.images


@pytest.mark.parametrize("older", [False, True])
def test_a_task_with_another_order_of_pixels_is_refused(
    permuted: Path, tmp_path: Path, call: Any, older: bool
) -> None:
    """The model would apply its own order: what it reached would be told as another task's.

    Older files do not say which order theirs is.
    """
    config, reached = permuted / "config.yaml", matrix(permuted)["finetune"]["0"]
    for own, other in ((1, 2), (2, 1)):
        file = tmp_path / f"m{own}.safetensors"
        export(permuted, "finetune", own, file)
        if older:
            beside = file.with_name(f"{file.name}.json")
            said = json.loads(beside.read_text())
            del said["input"]["order"]
            beside.write_text(json.dumps(said))
        assert evaluate(file, str(config), task=own).value == reached[own - 1][own - 1]
        ended = call("evaluate", file, "--data", config, "--task", other)
        refused(ended, f"--task: {other}", f"permuted-{own}", "give the data set alone")
        assert evaluate(file, "digits").images > 0


def test_another_order_of_the_same_task_is_refused(permuted: Path, tmp_path: Path) -> None:
    export(permuted, "finetune", 2, tmp_path / "m.safetensors")
    given = yaml.safe_load((permuted / "config.yaml").read_text())["scenario"]
    (tmp_path / "own.yaml").write_text(yaml.safe_dump({**given, "split_seed": 1}))
    with pytest.raises(InputError, match="order of pixels"):
        evaluate(tmp_path / "m.safetensors", str(tmp_path / "own.yaml"), task=2)


def test_the_images_of_a_data_set_by_name(model: Path) -> None:
    """Of all digits there are, those the model knows: counted here by its answers."""
    found = evaluate(model, "digits", part="all")
    bunch = load_digits()
    answer, described = load_export(model)
    guess = answer(torch.from_numpy(bunch.images).float()[:, None]).argmax(1)
    named = np.array(described["task"]["classes"])[guess.numpy()]
    own = np.isin(bunch.target, [0, 5, 9])
    right = named[own] == bunch.target[own].astype(str)
    assert (found.images, found.value) == (own.sum(), right.mean())
    counts = {c.name: (c.images, c.right) for c in found.classes}
    for digit in (0, 5, 9):
        this = bunch.target[own] == digit
        assert counts[str(digit)] == (this.sum(), right[this].sum())
    assert found.left_out == {str(d): (bunch.target == d).sum() for d in (1, 2, 3, 4, 6, 7, 8)}
    assert found.without == ()
    one = evaluate(model, "digits", part="all", classes=["5"])
    assert [(c.name, c.images, c.right) for c in one.classes] == [("5", *counts["5"])]
    parts = [
        evaluate(model, "digits", part=part).images for part in ("train", "validation", "test")
    ]
    assert sum(parts) == found.images


def test_a_folder_of_photographs(tmp_path: Path, call: Any) -> None:
    """Trained on six insects, measured on all eight: by file, as text and as JSON."""
    LAYOUTS["folder"](tmp_path)
    source = {"name": "folder", "path": "photos", "size": 8, "corrupt": "skip"}
    out = searched(
        tmp_path / "out",
        scenario={"name": "split", "root": str(tmp_path), "source": source,
                  "task_classes": [INSECTS[:3], INSECTS[5:2:-1]]},
        methods=[{"name": "finetune"}],
    )  # fmt: skip
    file = tmp_path / "m.safetensors"
    export(out, "finetune", 2, file)
    data = tmp_path / "photos.yaml"
    data.write_text(yaml.safe_dump(source))
    ended = call("evaluate", file, "--data", data, "--root", tmp_path, "--json")
    assert (ended.code, ended.err) == (0, "")
    found = json.loads(ended.out)
    assert found["value"] == matrix(out)["finetune"]["0"][1][1]
    assert [c["name"] for c in found["classes"]] == INSECTS[5:2:-1]
    assert found["left_out"] == dict.fromkeys([*INSECTS[:3], *INSECTS[6:]], 4)
    ended = call("evaluate", file, "--data", data, "--root", tmp_path, "--classes", "fly,hornet")
    assert "of 8 images (folder-1 of folder, part test)" in ended.out
    assert "Left out: 24 images of ant" in ended.out
    wrong = {"name": "folder", "path": "pictures"}
    data.write_text(yaml.safe_dump(wrong))
    refused(call("evaluate", file, "--data", data, "--root", tmp_path), "data.path", "pictures")


def test_facts_are_measured_by_average_precision(tmp_path: Path) -> None:
    facts(tmp_path)
    out = searched(
        tmp_path / "out",
        scenario={"name": "facts", "root": str(tmp_path), **FACTS},
        methods=[{"name": "finetune"}],
    )
    export(out, "finetune", 2, tmp_path / "m.pt2")
    found = evaluate(tmp_path / "m.pt2", root=tmp_path)
    assert (found.measure, found.classes) == ("mean average precision", ())
    assert found.value == pytest.approx(matrix(out)["finetune"]["0"][1][1], abs=1e-6)


@pytest.mark.parametrize(
    ("options", "words"),
    [
        (("--data", "owls"), ("--data", "'owls'", "digits", "split")),
        (("--data", "none.yaml"), ("--data", "none.yaml", "a readable YAML file")),
        (("--data", "list.yaml"), ("--data", "a section with its name")),
        (("--data", "numbers.yaml"), ("--data", "a section with its name")),
        (("--data", "digits", "--classes", "0,7"), ("--classes", "'7'", "the model knows 0, 5, 9")),
        (("--data", "digits", "--task", "2"), ("--task", "1 to 1")),
        (("--task", "0"), ("--task", "1 to 2")),
        (("--data", "two.yaml"), ("--task is missing. Give 1 to 2", "several tasks")),
        (("--data", "digits", "--part", "half"), ("--part", "all, test, train, validation")),
        (("--data", "letters.yaml"), ("--data", "classes that the model knows", "0, 5, 9")),
        (("--data", "large.yaml"), ("--data", "images of 1x9x9", "images of 1x8x8", "`size`")),
        (("--data", "bright.yaml"), ("--data", "pixels from 0 to 255", "pixels from 0 to 16")),
    ],
    ids="-".join,
)  # fmt: skip
def test_what_is_refused(
    model: Path,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    call: Any,
    options: tuple[str, ...],
    words: tuple[str, ...],
) -> None:
    monkeypatch.chdir(tmp_path)
    labels = np.array(["0", "5"])[np.arange(40) % 2]
    for name, side in (("large", 9), ("bright", 8)):
        np.savez(f"{name}.npz", images=noise(40, side, side), labels=labels)
        given = {"name": "arrays", "path": str(tmp_path / f"{name}.npz")}
        Path(f"{name}.yaml").write_text(yaml.safe_dump(given))
    letters = {"name": "split", "task_classes": [[1, 2]]}
    Path("letters.yaml").write_text(yaml.safe_dump(letters))
    Path("two.yaml").write_text(yaml.safe_dump({"scenario": {"name": "permuted", "tasks": 2}}))
    Path("list.yaml").write_text("- digits")
    Path("numbers.yaml").write_text("{name: digits, 1: 2}")
    refused(call("evaluate", model, *options), *words)


@pytest.mark.parametrize("part", ["task", "input", "output"])
def test_a_model_that_does_not_describe_itself_is_refused(
    permuted: Path, tmp_path: Path, call: Any, part: str
) -> None:
    file = tmp_path / "m.safetensors"
    export(permuted, "finetune", 1, file)
    beside = file.with_name(f"{file.name}.json")
    said = json.loads(beside.read_text())
    said[part].pop("is" if part == "output" else list(said[part])[0 if part == "task" else 1])
    beside.write_text(json.dumps(said))
    ended = call("evaluate", file)
    assert ended.code in (1, 2), ended.err
    assert len(ended.err.splitlines()) == 1
    assert "descri" in ended.err


def test_a_number_that_no_model_has_is_not_repeated(
    permuted: Path, tmp_path: Path, call: Any
) -> None:
    file = tmp_path / "m.onnx"
    export(permuted, "finetune", 1, file)
    rewired(file, kept, output={"shape": ["N", 10**400]})
    ended = call("evaluate", file, "--data", "digits")
    refused(ended, "no whole `output`", "output.shape.1")
    assert len(ended.err) < 500


ODD = [None, 7, "x", [], {}, [1], -1, True, 1e300, "/etc/passwd"]


@pytest.mark.parametrize("suffix", ["safetensors", "onnx"])
def test_a_description_with_odd_values_is_no_traceback(
    permuted: Path, tmp_path: Path, call: Any, suffix: str
) -> None:
    """Each value of it in turn is another; what stands in an ONNX file is made anew."""
    file = tmp_path / f"m.{suffix}"
    export(permuted, "finetune", 1, file)
    beside = file.with_name(f"{file.name}.json")
    whole = json.loads(beside.read_text())
    places = [
        (part, key)
        for part in ("architecture", "task", "input", "output", "config")
        for key in whole[part]
    ]
    for i, (part, key) in enumerate(places):
        said = {**whole, part: {**whole[part], key: ODD[i % len(ODD)]}}
        if suffix == "onnx":
            said.pop("sha256")
            loaded = onnx.load(file)
            loaded.metadata_props[0].value = json.dumps(said)
            odd = tmp_path / "odd.onnx"
            onnx.save(loaded, odd)
            ended = call("evaluate", odd)
        else:
            beside.write_text(json.dumps(said))
            ended = call("evaluate", file)
        assert ended.code in (0, 1, 2), (part, key, ended.err)
        assert len(ended.err.splitlines()) == bool(ended.code), (part, key, ended.err)


@pytest.mark.parametrize("place", ["weights", "../{}/weights", "{}/weights"])
def test_an_onnx_file_with_weights_elsewhere_is_refused(
    permuted: Path, tmp_path: Path, call: Any, monkeypatch: pytest.MonkeyPatch, place: str
) -> None:
    """They would be read from the folder one stands in, or from anywhere."""
    file = tmp_path / "m.onnx"
    export(permuted, "finetune", 1, file)
    odd, loaded = tmp_path / "odd.onnx", onnx.load(file)
    onnx.save(loaded, odd, save_as_external_data=True, location="weights", size_threshold=1000)
    assert (tmp_path / "weights").stat().st_size > 0
    described = onnx.load(odd, load_external_data=False)
    folder = tmp_path if place.startswith("{") else tmp_path.name
    for tensor in described.graph.initializer:
        for said in tensor.external_data:
            if said.key == "location":
                said.value = place.format(folder)
    odd.write_bytes(described.SerializeToString())
    monkeypatch.chdir(tmp_path)
    refused(call("evaluate", odd), "model", "no model that onnxruntime can run")


def rewired(file: Path, change: Callable[[Any], None], **described: Any) -> None:
    """Changes the graph of an ONNX file, and parts of its description."""
    model = onnx.load(file)
    said = json.loads(model.metadata_props[0].value)
    for part, changes in described.items():
        said[part] |= changes
    said.pop("sha256", None)
    model.metadata_props[0].value = json.dumps(said)
    change(model.graph)
    onnx.save(model, file)
    file.with_name(f"{file.name}.json").unlink(missing_ok=True)


def reshaped(*shape: int) -> Callable[[Any], None]:
    """Puts another shape on the outputs."""

    def change(graph: Any) -> None:
        (last,) = graph.output
        (before,) = (n for n in graph.node if last.name in n.output)
        before.output[:] = ["as_they_were"]
        sizes = onnx.numpy_helper.from_array(np.array(shape, np.int64), "sizes")
        graph.initializer.append(sizes)
        graph.node.append(onnx.helper.make_node("Reshape", ["as_they_were", "sizes"], [last.name]))
        del last.type.tensor_type.shape.dim[:]
        last.type.tensor_type.ClearField("shape")

    return change


def then(kind: str, **attributes: Any) -> Callable[[Any], None]:
    """Puts an operator behind the outputs."""

    def change(graph: Any) -> None:
        (last,) = graph.output
        (before,) = (n for n in graph.node if last.name in n.output)
        before.output[:] = ["as_they_were"]
        graph.node.append(onnx.helper.make_node(kind, ["as_they_were"], [last.name], **attributes))
        last.type.tensor_type.elem_type = attributes.get("to", last.type.tensor_type.elem_type)

    return change


def kept(graph: Any) -> None:
    """The graph as it is."""


NAMES = [str(i) for i in range(10)]
LIARS: dict[str, tuple[Callable[[Any], None], dict[str, Any], str]] = {
    "outputs in a row": (reshaped(-1), {}, "answers with"),
    "two rows an image": (reshaped(-1, 5), {}, "answers with"),
    "another batch than any": (reshaped(7, 10), {}, "cannot be run on images of"),
    "truths": (then("Cast", to=onnx.TensorProto.BOOL), {}, "answers with torch.bool"),
    "no numbers": (then("Log"), {}, "numbers that are not finite"),
    "fewer classes": (kept, {"task": {"classes": NAMES[:3]}}, "10 outputs for 3 classes"),
    "more classes": (kept, {"task": {"classes": [*NAMES, "x"]}}, "10 outputs for 11 classes"),
    "one class ten times": (kept, {"task": {"classes": ["0"] * 10}}, "two classes of the name '0'"),
    "other outputs": (
        kept,
        {"task": {"classes": NAMES[:3]}, "output": {"shape": ["N", 3]}},
        "answers with",
    ),
}


@pytest.mark.parametrize("what", LIARS)
def test_a_model_that_is_not_as_it_describes_is_no_figure(
    permuted: Path, tmp_path: Path, call: Any, what: str
) -> None:
    change, described, words = LIARS[what]
    file = tmp_path / "m.onnx"
    export(permuted, "finetune", 1, file)
    rewired(file, change, **described)
    ended = call("evaluate", file, "--data", "digits")
    assert ended.code == 1, ended.err
    assert ended.out == ""
    assert len(ended.err.splitlines()) == 1
    assert words in ended.err
    assert str(file) in ended.err


def test_a_model_names_no_folder_that_is_read_or_written(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """It may come from somebody else: where data lies is for who measures to say."""
    monkeypatch.setenv("CLSEARCH_CACHE", str(tmp_path / "own"))
    data, there, file = (tmp_path / name for name in ("data", "there", "m.safetensors"))
    LAYOUTS["folder"](data)
    source = {"name": "folder", "path": "photos", "size": 12}
    scenario = {"name": "split", "source": source, "classes_per_task": 4, "root": str(data)}
    out = searched(tmp_path / "out", scenario=scenario, methods=[{"name": "finetune"}])
    described = export(out, "finetune", 1, file)
    told = {**described["config"]["scenario"], "memory": 0, "root": str(data), "cache": str(there)}
    beside = file.with_name(f"{file.name}.json")
    beside.write_text(json.dumps({**described, "config": {"scenario": told}}))
    with pytest.raises(InputError, match=r"source\.path: 'photos'.*`root` says where"):
        evaluate(file)
    assert not (tmp_path / "own").exists()
    assert evaluate(file, root=data).images == 16
    assert list((tmp_path / "own").rglob("*.images"))
    assert not there.exists()


def test_odd_values_of_a_models_scenario_are_named_as_its_own(
    permuted: Path, tmp_path: Path, call: Any
) -> None:
    file = tmp_path / "m.safetensors"
    described = export(permuted, "finetune", 1, file)
    scenario = {**described["config"]["scenario"], "tasks": -1}
    beside = file.with_name(f"{file.name}.json")
    beside.write_text(json.dumps({**described, "config": {"scenario": scenario}}))
    refused(call("evaluate", file), "the model's scenario.tasks: -1", "at least 1")


def test_what_is_no_model_is_refused(tmp_path: Path, call: Any) -> None:
    refused(call("evaluate", tmp_path / "m.pth"), "model", "m.pth", ".onnx, .pt2, .safetensors")
    for suffix in formats():
        refused(call("evaluate", tmp_path / f"m.{suffix}"), "model", f"m.{suffix}")
    for suffix in ("onnx", "pt2", "safetensors"):
        (tmp_path / f"m.{suffix}").write_text("x")
        refused(call("evaluate", tmp_path / f"m.{suffix}"), "model", f"m.{suffix}")


def test_a_field_is_no_option_of_a_command_that_has_none_of_its_name(
    tmp_path: Path, call: Any, monkeypatch: pytest.MonkeyPatch
) -> None:
    """`--to` is one of other commands alone, whatever a file is called."""
    monkeypatch.setattr("clsearch.exports.formats.onnx.find_spec", lambda name: None)
    (tmp_path / "export.onnx").touch()
    ended = call("evaluate", tmp_path / "export.onnx")
    refused(ended, "clsearch: model: '.onnx'", "onnxruntime installed")
    error = InputError("to", "x", "y")
    monkeypatch.setattr("sys.argv", ["clsearch", "evaluate", "export"])
    assert str(program._as_option(error)).startswith("to: ")
    monkeypatch.setattr("sys.argv", ["clsearch", "export", "evaluate"])
    assert str(program._as_option(error)).startswith("--to: ")
