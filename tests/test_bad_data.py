"""Data that cannot be: one message, exit code 2, nothing written, through the command line."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from command import clsearch, environment, refused, write_config
from layouts import LAYOUTS, encode, noise, save, table

FOLDER = {"name": "folder", "path": "photos"}
PARQUET = {"name": "parquet", "path": "bad.parquet", "names": ["x", "y"]}
ARRAYS = {"name": "arrays", "path": "bad.npz", "names": ["x", "y"]}


def split(source: dict[str, Any], **options: Any) -> dict[str, Any]:
    return {"scenario": {"name": "split", "source": source, **options}}


def mixed(root: Path) -> None:
    for i, name in enumerate(("ant", "bee")):
        save(root / "photos" / name / "1.png", noise(4 + i, 4, 3))


def one_each(root: Path) -> None:
    for i, name in enumerate(("ant", "bee")):
        save(root / "photos" / name / "1.png", noise(4, 4, 3, seed=i))


def corrupt(root: Path) -> None:
    """A JPEG that ends too early, and a class of which nothing can be decoded."""
    for name in ("ant", "bee", "cat"):
        for i in range(5):
            file = root / "photos" / name / f"{i}.jpg"
            save(file, noise(40, 40, 3, seed=i), "JPEG")
            if name == "cat" or (name, i) == ("ant", 3):
                file.write_bytes(file.read_bytes()[:300])


def labels(*found: Any) -> Callable[[Path], None]:
    """Four images of each of these labels, in a Parquet file and in an .npz file."""

    def write(root: Path) -> None:
        root.mkdir()
        table(root / "bad.parquet", [encode(noise(4, 4))] * 4 * len(found), list(found) * 4)
        if None not in found:
            every = np.array(found * 4)
            np.savez(root / "bad.npz", images=noise(len(every), 4, 4), labels=every)

    return write


def weights_of_alexnet(root: Path) -> None:
    LAYOUTS["folder"](root)
    first = {"features.0.weight": torch.zeros(5, 3, 11, 11), "features.0.bias": torch.zeros(5)}
    torch.save(first, root / "weights.pth")


def weights_of_vgg16(root: Path) -> None:
    LAYOUTS["folder"](root)
    first = {"features.0.weight": torch.zeros(5, 3, 3, 3), "features.0.bias": torch.zeros(5)}
    torch.save(first, root / "weights.pth")


def network(name: str) -> dict[str, Any]:
    model = {"name": name, "channels": [5, 4, 6, 3, 8], "dense": [9, 7], "weights": "weights.pth"}
    return {**split({**FOLDER, "size": 70}), "model": model}


def sequence(*classes: list[Any]) -> dict[str, Any]:
    return {"scenario": {"name": "sequence", "tasks": [
        {"source": FOLDER, "classes": chosen} for chosen in classes
    ]}}  # fmt: skip


BAD: dict[str, tuple[Callable[[Path], object], dict[str, Any], tuple[str, ...]]] = {
    "images of mixed size": (
        mixed, split(FOLDER), ("source.size", "ant/1.png has 4x4, bee/1.png has 5x4"),
    ),
    "a class in two tasks": (
        LAYOUTS["folder"], split(FOLDER, task_classes=[[0, "bee"], ["bee", "fly"]]),
        ("scenario.task_classes", "every class in one task", "Twice: bee"),
    ),
    "a class in two tasks, by name and by number": (
        LAYOUTS["folder"], split(FOLDER, task_classes=[["ant", "bee"], [0, "fly"]]),
        ("scenario.task_classes", "every class in one task", "Twice: 0"),
    ),
    "a class in two tasks of a sequence": (
        LAYOUTS["folder"], sequence([0, 1], ["bee", "fly"]),
        ("scenario.tasks[1].classes", "Twice: bee"),
    ),
    "a task without classes": (
        LAYOUTS["folder"], split(FOLDER, task_classes=[[], [1, 2]]),
        ("scenario.task_classes[0]", "[]"),
    ),
    "a task of a sequence without classes": (
        LAYOUTS["folder"], sequence([]), ("scenario.tasks[0].classes", "[]"),
    ),
    "no tasks": (LAYOUTS["folder"], split(FOLDER, task_classes=[]), ("scenario.task_classes",)),
    "a class that is not there": (
        LAYOUTS["folder"], split(FOLDER, task_classes=[["ant", "bear"]]), ("'bear'", "ant, bee"),
    ),
    "no validation sample left": (
        one_each, split(FOLDER), ("scenario.validation", "'split-1'", "too few images"),
    ),
    "corrupt images": (
        corrupt, split(FOLDER, classes_per_task=3),
        ("source.corrupt", "6 of 15 images cannot be decoded: ant/3.jpg (", "`corrupt: skip`"),
    ),
    "a class of which corrupt images leave nothing": (
        corrupt, split({**FOLDER, "corrupt": "skip"}, classes_per_task=3),
        ("scenario.source", "'cat'", "'split-1'", "6 of 15 images"),
    ),
    "labels beyond the classes": (
        labels(0, 1, 7), split(PARQUET), ("source.label: 7", "from 0 to 1", "4 of 12 images"),
    ),
    "negative labels": (labels(0, 1, -1), split(PARQUET), ("source.label: -1", "from 0 to 1")),
    "negative labels of classes without names": (
        labels(0, 1, -1), split({k: v for k, v in PARQUET.items() if k != "names"}),
        ("source.label: -1", "labels of 0 or more", "4 of 12"),
    ),
    "labels that are no whole numbers": (labels(0.0, 0.5), split(PARQUET), ("label", "double")),
    "labels that are missing": (labels(0, None), split(PARQUET), ("label", "4 missing")),
    "labels of arrays beyond the classes": (labels(0, 7), split(ARRAYS), ("7", "from 0 to 1")),
    "negative labels of arrays": (labels(0, -1), split(ARRAYS), ("-1", "from 0 to 1")),
    "labels of arrays that are no whole numbers": (
        labels(0.0, float("nan")), split(ARRAYS), ("whole numbers", "float64"),
    ),
    "weights of AlexNet for VGG-16": (
        weights_of_alexnet, network("vgg16"),
        ("model.weights", "vgg16 with features.0.weight of 5x3x3x3", "5x3x11x11"),
    ),
    "weights of VGG-16 for AlexNet": (
        weights_of_vgg16, network("alexnet"),
        ("model.weights", "alexnet with features.0.weight of 5x3x11x11", "5x3x3x3"),
    ),
    "sets of object recognition that are not there": (
        Path.mkdir, {"scenario": {"name": "object_recognition", "tasks": ["birds", "scenes"]}},
        ("scenario.root", "CUB_200_2011 holds images, images.txt", "`download: true`"),
    ),
    "a set of object recognition twice": (
        Path.mkdir, {"scenario": {"name": "object_recognition", "tasks": ["birds", "birds"]}},
        ("scenario.tasks", "Twice: birds"),
    ),
}  # fmt: skip


@pytest.mark.parametrize("what", BAD)
def test_it_is_refused_in_a_word(
    call: Any, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, what: str
) -> None:
    write, sections, words = BAD[what]
    root, methods = tmp_path / "data", [{"name": "finetune"}]
    write(root)
    monkeypatch.chdir(root)
    config = write_config(tmp_path / "c.yaml", **{"methods": methods, **sections})
    refused(call("run", config, "--out", tmp_path / "out", "--data", root), *words)
    assert sorted(file.name for file in tmp_path.iterdir()) == ["c.yaml", "data"]


def test_a_process_says_it_alike(tmp_path: Path) -> None:
    corrupt(tmp_path / "data")
    scenario = {"name": "split", "source": FOLDER, "classes_per_task": 3, "memory": 0}
    config = write_config(tmp_path / "c.yaml", scenario=scenario)
    env = environment(CLSEARCH_CACHE=str(tmp_path / "cache"))
    done = clsearch("run", config, "--out", tmp_path / "out", "--data", tmp_path / "data", env=env)
    assert done.returncode == 2
    assert done.stdout == ""
    assert done.stderr.startswith("clsearch: scenario.source.corrupt: 'refuse' is not allowed.")
    assert done.stderr.count("\n") == 1
    assert not (tmp_path / "out").exists()
    assert not list((tmp_path / "cache").glob("*"))
