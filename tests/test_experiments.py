"""Every experiment file is planned on small sets in the sets' layouts, some on the real ones."""

from __future__ import annotations

import re
import struct
from pathlib import Path
from typing import Any

import layouts
import pytest
import torch
import yaml
from helpers import shared_data
from typer.testing import CliRunner

from clsearch import dry_run
from clsearch.cli import app
from clsearch.models.alexnet import AlexNet, AlexNetOptions

EXPERIMENTS = Path(__file__).parents[1] / "experiments"
SMALL: dict[str, dict[str, Any]] = {
    "alexnet": {"channels": [4, 5, 6, 5, 4], "dense": [8, 7], "weights": "alexnet.pth"},
    "clnp_narrow": {"channels": [2, 3, 4, 5], "dense": 6},
    "clnp_wide": {"channels": [2, 3, 4, 5, 6]},
    "mlp": {"hidden": [8, 7]},
    "vgg16": {"channels": [2, 3, 4, 5, 6], "dense": [8, 7]},
}
"""The networks of the files, with layers of a few neurons."""

TABLE = {
    **{"finetune": 10, "l1": 20, "l2": 20, "ewc": 20, "ewc-true": 20, "mas": 20, "mas-local": 20},
    **{"si": 20, "imm-mean": 20, "imm-mode": 20, "lwf": 20, "ebll": 20, "clnp": 20},
    **{"joint": 10, "from_scratch": 10},
}
EVERY_MAS = ["mas-train", "mas-test", "mas-both", "mas-vector"]
EVERY_MAS += ["local-train", "local-test", "local-both"]
ADDED = ["l1_param", "l2_wd", "orthreg", "l1_rep", "decov", "slni"]

TRIALS: dict[str, tuple[int, dict[str, int]]] = {
    "clnp_fig4": (6, {"clnp-1": 30, "clnp-2": 30, "clnp-4-ft": 60, "si": 90, "from_scratch": 30}),
    "clnp_fig5": (10, {"clnp": 300, "joint": 100, "from_scratch": 100}),
    "slni_fig2_cifar100": (10, {"mas": 60, "l1_rep": 180, "decov": 180, "slni": 180}),
    "slni_fig2_tiny_imagenet": (10, {"mas": 30, "l1_rep": 90, "decov": 90, "slni": 60}),
    "mas_table1": (2, {"finetune": 12, "lwf": 12, "imm": 24, "si": 24, "mas": 12}),
    "mas_fig5": (8, {"finetune": 16, "lwf": 16, "imm": 32, "si": 32, "mas": 16}),
    "mas_table2": (5, dict.fromkeys(["finetune", *EVERY_MAS], 10)),
    "method_table_permuted": (5, TABLE),
    "method_table_split": (5, TABLE),
    "permuted_mnist_clnp": (10, {"clnp": 50}),
    "permuted_mnist_reduced": (3, {"finetune": 6, "ewc": 6, "mas": 6, "clnp": 6}),
    "quickstart": (5, {"finetune": 40, "ewc": 40, "mas": 40, "clnp": 40}),
    "slni_fig1": (5, {"mas": 15, **dict.fromkeys(ADDED, 30)}),
    "split_cifar10": (5, {"clnp": 15, "from_scratch": 5}),
}
"""Of every file: tasks, and each method's trials: grid × tasks × seeds, and as many again to
fine-tune."""

REAL = {"mas_table2": ["MNIST"], "split_cifar10": ["cifar10_parquet", "cifar-10-batches-bin"]}
"""Files that are planned on the real images too, as they are, and where these lie: in one of the
folders. Other files have one of the same sets, or sets that few have."""


@pytest.fixture(scope="session")
def sets(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A folder with every set of the files, small."""
    root = tmp_path_factory.mktemp("sets")
    for name, write in layouts.LAYOUTS.items():
        if name != "tiny_imagenet":
            write(root)
    tiny_imagenet(root / "tiny-imagenet-200")
    mnist(root / "MNIST" / "raw")
    return root


def mnist(folder: Path) -> None:
    """200 training and 50 test images of noise, in IDX files."""
    folder.mkdir(parents=True)
    for part, count in (("train", 200), ("t10k", 50)):
        images, labels = layouts.noise(count, 28, 28), bytes(i % 10 for i in range(count))
        header = struct.pack(">4i", 0x803, count, 28, 28)
        (folder / f"{part}-images-idx3-ubyte").write_bytes(header + images.tobytes())
        (folder / f"{part}-labels-idx1-ubyte").write_bytes(
            struct.pack(">2i", 0x801, count) + labels
        )


def tiny_imagenet(folder: Path) -> None:
    """All 200 classes, two training images and a validation image each."""
    numbers = [f"n{i:08d}" for i in range(200)]
    for i, number in enumerate(numbers):
        image = layouts.encode(layouts.noise(64, 64, 3, seed=i), "JPEG")
        places = [f"train/{number}/images/{number}_{j}.JPEG" for j in range(2)]
        for place in (*places, f"val/images/val_{i}.JPEG"):
            (folder / place).parent.mkdir(parents=True, exist_ok=True)
            (folder / place).write_bytes(image)
    found = [f"val_{i}.JPEG\t{number}\t0\t0\t63\t63" for i, number in enumerate(numbers)]
    layouts.lists(folder, wnids=numbers, words=[f"{n}\tthing {n}" for n in numbers])
    layouts.lists(folder / "val", val_annotations=found)


def alexnet_weights(path: Path) -> None:
    """Random weights in torchvision's layout."""
    options = SMALL["alexnet"]
    backbone = AlexNet(
        AlexNetOptions(channels=options["channels"], dense=options["dense"]), (3, 64, 64)
    )
    rng = torch.Generator().manual_seed(0)
    state = {}
    for unit, source in zip(backbone.unit_layers, backbone.sources, strict=True):
        for part in ("weight", "bias"):
            shape = backbone.get_parameter(f"{unit.name}.{part}").shape
            state[f"{source}.{part}"] = torch.randn(shape, generator=rng) / 10
    torch.save(state, path)


def test_every_experiment_is_planned_here() -> None:
    assert sorted(TRIALS) == sorted(path.stem for path in EXPERIMENTS.glob("*.yaml"))


@pytest.mark.parametrize("name", TRIALS)
def test_an_experiment_is_planned_as_published(
    name: str, sets: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("CLSEARCH_DATA", str(sets))
    monkeypatch.setenv("COLUMNS", "120")
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr(dry_run, "TURNS", 1)
    config = yaml.safe_load((EXPERIMENTS / f"{name}.yaml").read_text("utf-8"))
    config["model"] |= SMALL[config["model"]["name"]]
    config["training"]["batch_size"] = 20
    Path("small.yaml").write_text(yaml.safe_dump(config))
    alexnet_weights(Path("alexnet.pth"))
    ended = CliRunner().invoke(app, ["run", "small.yaml", "--dry-run"])
    assert ended.exit_code == 0, ended.output
    tasks, trials = TRIALS[name]
    rows = {row[0]: row for row in re.findall(r"([\w-]+) +(\d[\d,]*)", ended.output)}
    assert {method: int(rows[method][1].replace(",", "")) for method in trials} == trials
    assert f"{sum(trials.values())} trials at most" in ended.output
    assert len(re.findall(r"^ *\d+ +[\w-]+ +\dx\d+x\d+", ended.output, re.M)) == tasks


@pytest.mark.slow
@pytest.mark.parametrize("name", REAL)
def test_an_experiment_is_planned_on_real_images(
    name: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    root = shared_data()
    if not any((root / folder).is_dir() for folder in REAL[name]):
        pytest.skip(f"no real images: {root} holds no {' or '.join(REAL[name])}")
    monkeypatch.setenv("CLSEARCH_DATA", str(root))
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr(dry_run, "TURNS", 1)
    ended = CliRunner().invoke(app, ["run", str(EXPERIMENTS / f"{name}.yaml"), "--dry-run"])
    assert ended.exit_code == 0, ended.output
    assert "trials at most" in ended.output
    assert list(tmp_path.iterdir()) == []
