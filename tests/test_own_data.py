"""Data of the user's own, described in YAML alone: folders, Parquet files, arrays."""

from __future__ import annotations

import shutil
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
import yaml
from helpers import SerialSearcher, SilentProgress, SilentTracker, make_source
from layouts import INSECTS, LAYOUTS, encode, noise, save, table
from PIL import Image

from clsearch.config import parse_config
from clsearch.data._images import ImageOptions
from clsearch.data._labels import number
from clsearch.data.base import RawData, SourceConfig, build_source
from clsearch.errors import InputError
from clsearch.folder import open_store
from clsearch.identity import identity
from clsearch.sequence import Search
from clsearch.system import build_scenario, resolve

OWN = ["folder", "parquet", "arrays"]


@pytest.fixture
def root(tmp_path: Path) -> Path:
    """A data folder with a small set in each of the layouts."""
    for name in OWN:
        LAYOUTS[name](tmp_path)
    return tmp_path


def read(name: str, root: Path, **options: Any) -> RawData:
    return make_source(name, **options).load(root, download=False)


def refused(name: str, root: Path, **options: Any) -> str:
    """The one line that a source is refused with."""
    with pytest.raises(InputError) as caught:
        read(name, root, **options)
    message = str(caught.value)
    assert message.startswith("scenario.source")
    assert "\n" not in message
    return message


# --- what is read ---------------------------------------------------------------------------


def test_a_folder_is_read_in_order_of_names(root: Path) -> None:
    raw = read("folder", root)
    assert raw.test is not None
    assert (raw.train.inputs.shape, raw.test.inputs.shape) == ((160, 3, 12, 12), (32, 3, 12, 12))
    assert raw.classes == tuple(INSECTS)
    assert raw.train.labels.tolist() == [i for i in range(8) for _ in range(20)]
    for i in (0, 1, 159):  # bee/000.bmp before bee/001.png, with the pixels that were written
        written = noise(12, 12, 3, seed=100 * (i // 20) + i % 20).transpose(2, 0, 1)
        assert np.array_equal(raw.train.inputs[i].numpy(), written)


def test_a_folder_without_parts_is_all_training(root: Path) -> None:
    raw = read("folder", root, path="photos/train", colour="grey")
    assert raw.test is None
    assert raw.train.inputs.shape == (160, 1, 12, 12)
    whole = read("folder", root, path=str(root / "photos" / "train"))
    assert torch.equal(whole.train.inputs, read("folder", root).train.inputs)


def test_classes_called_train_and_test_are_classes(tmp_path: Path) -> None:
    for name in ("test", "train"):
        save(tmp_path / "vehicles" / name / "a.png", noise(4, 4))
    assert read("folder", tmp_path, path="vehicles").classes == ("test", "train")


def test_parquet_files_are_read_in_order_of_names(root: Path) -> None:
    raw = read("parquet", root)
    assert raw.test is not None
    assert (raw.train.inputs.shape, raw.test.inputs.shape) == ((160, 3, 9, 7), (80, 3, 9, 7))
    assert raw.classes == tuple("01234567")
    written = noise(9, 7, 3, seed=105).transpose(2, 0, 1)
    assert np.array_equal(raw.train.inputs[85].numpy(), written)
    one = read("parquet", root, path="tables/train-1.parquet", test_path=None)
    assert one.test is None
    assert torch.equal(one.train.inputs, raw.train.inputs[80:])


def test_parquet_columns_of_bytes_and_texts_by_other_names(tmp_path: Path) -> None:
    images: list[bytes | None] = [encode(noise(4, 4, seed=i)) for i in range(3)]
    table(tmp_path / "t.parquet", images, ["cat", "ant", "cat"], nested=False)
    options = {"path": "t.parquet", "test_path": None}
    raw = read("parquet", tmp_path, **options)
    assert (raw.classes, raw.train.labels.tolist()) == (("ant", "cat"), [1, 0, 1])
    named = read("parquet", tmp_path, names=["cat", "dog", "ant"], **options)
    assert (named.classes, named.train.labels.tolist()) == (("cat", "dog", "ant"), [0, 2, 0])
    message = refused("parquet", tmp_path, image="picture", **options)
    assert "one of the columns" in message
    assert "image, label" in message


def test_arrays_are_read_with_channels_last_first_or_none(root: Path) -> None:
    raw = read("arrays", root)
    assert raw.train.inputs.shape == (160, 1, 6, 5)
    assert raw.classes == tuple(INSECTS)
    assert np.array_equal(raw.train.inputs[:, 0].numpy(), noise(160, 6, 5, seed=160))
    labels, last = np.array([5, 7, 5]), noise(3, 4, 6, 3)
    np.savez(root / "last.npz", images=last, labels=labels)
    np.savez(root / "first.npz", images=last.transpose(0, 3, 1, 2), labels=labels)
    one, other = (
        read("arrays", root, path=f"{name}.npz", test_path=None) for name in ("last", "first")
    )
    assert one.train.digest() == other.train.digest()
    assert one.train.inputs.shape == (3, 3, 4, 6)
    assert (one.classes, one.train.labels.tolist()) == (("5", "7"), [0, 1, 0])
    np.savez(root / "both.npz", images=noise(3, 3, 4, 3), labels=labels)
    assert "`hwc` or `chw`" in refused("arrays", root, path="both.npz", test_path=None)
    both = read("arrays", root, path="both.npz", test_path=None, axes="hwc")
    assert both.train.inputs.shape == (3, 3, 3, 4)


def test_mean_and_deviation_are_measured_or_given(root: Path) -> None:
    raw = read("folder", root)
    x = raw.train.inputs.double().transpose(0, 1).flatten(1) / 255
    assert raw.mean == pytest.approx(x.mean(1).tolist(), abs=1e-9)
    given = read("folder", root, mean=[0.1, 0.2, 0.3], std=[1.0, 2.0, 3.0])
    assert (given.mean, given.std) == ((0.1, 0.2, 0.3), (1.0, 2.0, 3.0))
    assert read("folder", root, std=[1.0, 2.0, 3.0]).mean == raw.mean
    assert "3 numbers" in refused("folder", root, mean=[0.5])


# --- size, colour, damage -------------------------------------------------------------------


def test_images_of_mixed_size_are_refused_or_brought_to_one(root: Path) -> None:
    odd = root / "photos" / "train" / "bee" / "005.png"
    save(odd, noise(20, 10, 3))
    message = refused("folder", root)
    assert message.startswith("scenario.source.size: None")
    assert "ant/000.bmp has 12x12, bee/005.png has 20x10" in message
    raw = read("folder", root, size=[6, 8])
    assert raw.train.inputs.shape == (160, 3, 6, 8)
    square = read("folder", root, size=10).train.inputs[25].numpy()  # cropped, no scaling needed
    assert np.array_equal(square, noise(20, 10, 3)[5:15].transpose(2, 0, 1))


def test_transparency_palettes_and_deep_pixels(tmp_path: Path) -> None:
    place = tmp_path / "photos" / "a"
    place.mkdir(parents=True)
    Image.fromarray(noise(4, 4, 4)).save(place / "alpha.png")
    Image.fromarray(noise(4, 4, 3)).quantize(8).save(place / "palette.png")
    raw = read("folder", tmp_path)
    assert np.array_equal(raw.train.inputs[0].numpy(), noise(4, 4, 4)[..., :3].transpose(2, 0, 1))
    Image.fromarray(noise(4, 4).astype(np.uint16) * 200).save(place / "deep.png")
    assert "a/deep.png (more than 8 bits a channel)" in refused("folder", tmp_path)


@pytest.mark.parametrize("name", ["folder", "parquet"])
def test_damaged_images_are_named_counted_and_refused_or_skipped(name: str, root: Path) -> None:
    if name == "folder":
        for i in range(7):
            (root / "photos" / "train" / "fly" / f"{i:03d}.bmp").write_bytes(b"BM half an image")
        named, count = "fly/000.bmp", 7 + 160 - 4  # four of them were there
    else:
        images: list[bytes | None] = [encode(noise(9, 7, 3, seed=j)) for j in range(80)]
        images[3:10] = [None] * 7
        table(root / "tables" / "train-0.parquet", images, [j % 8 for j in range(80)])
        named, count = "train-0.parquet, row 3", 160
    message = refused(name, root)
    assert f"7 of {count} images cannot be decoded: {named} (" in message
    assert "and 2 more" in message
    raw = read(name, root, corrupt="skip")
    assert len(raw.train) == count - 7
    assert raw.notes[0].startswith(f"7 of {count} images cannot be decoded and were left out")


def test_nothing_but_damaged_images_is_refused_either_way(tmp_path: Path) -> None:
    for name in ("a", "b"):
        (tmp_path / "photos" / name).mkdir(parents=True)
        (tmp_path / "photos" / name / "1.png").write_bytes(b"")
    for corrupt in ("refuse", "skip"):
        assert "2 of 2 images" in refused("folder", tmp_path, corrupt=corrupt)


# --- what is missing or wrong ---------------------------------------------------------------


@pytest.mark.parametrize("name", OWN)
def test_missing_files_are_named_with_the_place_that_was_looked_in(name: str, root: Path) -> None:
    message = refused(name, root, path="elsewhere/x")
    assert message.startswith("scenario.source.path: 'elsewhere/x'")
    assert str(root / "elsewhere" / "x") in message
    with pytest.raises(InputError, match="elsewhere"):
        make_source(name, path="elsewhere/x").check(root)
    make_source(name).check(root)
    if name != "folder":
        assert refused(name, root, test_path="no").startswith("scenario.source.test_path: 'no'")


def test_folders_without_classes_or_images_are_refused(root: Path) -> None:
    (root / "empty").mkdir()
    assert "a folder of images for each class" in refused("folder", root, path="empty")
    shutil.rmtree(root / "photos" / "train" / "moth")
    assert "'moth'" in refused("folder", root)  # a class of the test part alone
    (root / "photos" / "train" / "moth").mkdir()
    assert "photos/train/moth" in refused("folder", root)


def test_labels_that_are_none_are_refused(root: Path) -> None:
    for labels, expected in (
        ([0, None], "one in every row"),
        ([0.5, 1.0], "double"),
    ):
        table(root / "bad.parquet", [encode(noise(4, 4))] * 2, labels)
        assert expected in refused("parquet", root, path="bad.parquet", test_path=None)
    table(root / "bad.parquet", [encode(noise(4, 4))] * 2, [0, 9])
    message = refused("parquet", root, path="bad.parquet", names=["a", "b"])
    assert message.startswith("scenario.source.label: 9")
    assert "labels from 0 to 1" in message
    table(root / "bad.parquet", [encode(noise(4, 4))] * 2, [0, 1])
    message = refused("parquet", root, path="bad.parquet")
    assert "the labels of the training part" in message


def test_a_parquet_file_that_is_none_or_holds_no_images_is_refused(root: Path) -> None:
    (root / "bad.parquet").write_bytes(b"PAR1 but not really")
    assert "readable Parquet" in refused("parquet", root, path="bad.parquet")
    assert "a column of bytes" in refused("parquet", root, image="label")


@pytest.mark.parametrize(
    ("arrays", "expected"),
    [
        ({"images": noise(2, 4, 4)}, "labels"),
        ({"images": noise(2, 4, 4) / 255, "labels": [0, 1]}, "uint8"),
        ({"images": noise(2, 4), "labels": [0, 1]}, "[N, H, W]"),
        ({"images": noise(2, 4, 4, 5), "labels": [0, 1]}, "1 or 3 channels"),
        ({"images": noise(2, 4, 4), "labels": [0, 1, 2]}, "one for each image"),
        ({"images": noise(2, 4, 4), "labels": [0.0, 1.0]}, "whole numbers"),
        ({"images": noise(2, 4, 4), "labels": np.array([{}, []], object)}, "no arrays of numbers"),
        ({"images": noise(0, 4, 4), "labels": np.zeros(0, int)}, "one for each image"),
    ],
)
def test_arrays_of_another_kind_are_refused(arrays: Any, expected: str, root: Path) -> None:
    np.savez(root / "bad.npz", **arrays)
    assert expected in refused("arrays", root, path="bad.npz", test_path=None)


def test_files_that_hold_no_arrays_are_refused(root: Path) -> None:
    for content in (b"", b"PK\x03\x04 half a zip", b"text"):
        (root / "bad.npz").write_bytes(content)
        assert "undamaged .npz" in refused("arrays", root, path="bad.npz")
    np.save(root / "one.npy", noise(2, 4, 4))
    assert "It holds one array" in refused("arrays", root, path="one.npy")


def test_training_and_test_images_of_different_shape_are_refused(root: Path) -> None:
    np.savez(root / "other.npz", images=noise(8, 5, 5), labels=np.array(INSECTS))
    assert "'1x6x5 and 1x5x5'" in refused("arrays", root, test_path="other.npz")


def test_names_of_classes_come_from_a_list_or_a_file(root: Path) -> None:
    (root / "names.txt").write_text("\n".join(INSECTS) + "\n\n")
    assert read("parquet", root, names="names.txt").classes == tuple(INSECTS)
    assert "twice" not in refused("parquet", root, names="no.txt")
    assert "each once" in refused("parquet", root, names=["a", "b", "a"])
    assert "labels from 0 to 1" in refused("parquet", root, names=["a", "b"])


def test_numbers_stand_in_order_of_size() -> None:
    assert number([10, 9, 10], [9], None, "f") == ([1, 0, 1], [0], ("9", "10"))
    assert number([0, "b"], None, ("a", "b"), "f") == ([0, 1], None, ("a", "b"))


# --- in a config ----------------------------------------------------------------------------


def test_a_source_is_a_name_or_a_section() -> None:
    plain = SourceConfig.model_validate("digits")
    assert SourceConfig.model_validate({"name": "digits"}) == plain
    assert plain.model_dump() == "digits"
    section = {"name": "folder", "path": "here"}
    assert SourceConfig.model_validate(section).model_dump() == section
    source = build_source(SourceConfig.model_validate(section), "scenario.tasks[2].source")
    assert isinstance(source.options, ImageOptions)
    assert source.field == "scenario.tasks[2].source"


@pytest.mark.parametrize(
    ("source", "message"),
    [
        ("folder", "scenario.source.path: None"),
        ({"name": "folder", "path": "x", "sise": 3}, "scenario.source.sise: 'sise'"),
        ({"name": "folder", "path": "x", "size": [1, 2, 3]}, "scenario.source.size"),
        ({"name": "folder", "path": "x", "corrupt": "ignore"}, "scenario.source.corrupt"),
        ({"name": "digits", "path": "x"}, "scenario.source.path: 'path'"),
        ({"name": "foldr", "path": "x"}, "scenario.source: 'foldr'"),
        ({"path": "x"}, "scenario.source.name"),
        (5, "scenario.source: 5"),
    ],
)
def test_a_source_that_cannot_be_is_refused_before_data_is_read(source: Any, message: str) -> None:
    config = {"scenario": {"name": "split", "source": source}, "methods": [{"name": "finetune"}]}
    with pytest.raises(InputError) as caught:
        build_scenario(parse_config(config))
    assert str(caught.value).startswith(message)


CONFIG = """
scenario:
  name: sequence
  size: 8
  colour: grey
  tasks:
    - {source: {name: folder, path: photos, corrupt: skip}, classes: [ant, bee, fly]}
    - {source: {name: parquet, path: tables/train-*.parquet}, classes: [0, 1, 2], name: table}
    - {source: {name: arrays, path: arrays/train.npz}, classes: [wasp, moth, 0]}
model: {name: mlp, hidden: [8]}
training: {epochs: 1}
methods: [{name: finetune}]
"""


def test_a_search_over_own_data_from_yaml_alone(root: Path, tmp_path: Path) -> None:
    (root / "photos" / "train" / "ant" / "000.bmp").write_bytes(b"no image")
    given = yaml.safe_load(CONFIG)
    config = resolve(parse_config(given))
    moved = resolve(parse_config(given | {"scenario": given["scenario"] | {"root": str(root)}}))
    assert identity(moved) == identity(config)
    out = tmp_path / "out"
    out.mkdir()
    search, progress = Search(moved, out, open_store(out)), SilentProgress()
    results = search.run(SerialSearcher(), SilentTracker(), progress).results
    assert [r.selection.outcome for r in results] == ["selected"] * 3
    assert [t.name for t in search.tasks] == ["folder-1", "table", "arrays-3"]
    assert [t.shape for t in search.tasks] == [(1, 8, 8)] * 3
    assert [t.classes for t in search.tasks][2] == ("wasp", "moth", "ant")
    (note,) = progress.notes
    assert note.startswith("1 of 160 images cannot be decoded and were left out: ant/000.bmp")
