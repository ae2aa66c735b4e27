"""The published sets of photographs: real files where they are, their layouts and their damage."""

from __future__ import annotations

import hashlib
import io
import shutil
import string
import tarfile
import zipfile
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow.parquet as pq
import pytest
import torch
from helpers import load_source, make_source, shared_data
from layouts import ACTIONS, CIFAR10, LAYOUTS, encode, noise, person, save, table
from PIL import Image, ImageOps

from clsearch.data import _cifar, svhn, tiny_imagenet
from clsearch.data._images import conform
from clsearch.data._pixels import statistics
from clsearch.errors import InputError

PHOTOGRAPHS = ["actions", "aircraft", "birds", "cars", "flowers", "letters", "scenes"]
BY_HAND = ["cars", "letters", "scenes"]
SETS = ["cifar10", "cifar100", "svhn", "tiny_imagenet", *PHOTOGRAPHS]


def pixels(content: bytes | Path) -> np.ndarray:
    """Pillow's pixels of a file, `[3, H, W]`."""
    with Image.open(io.BytesIO(content) if isinstance(content, bytes) else content) as image:
        return np.asarray(image.convert("RGB")).transpose(2, 0, 1)


def refused(source: Any, root: Path, download: bool = False) -> str:
    """The one line that a source is refused with."""
    with pytest.raises(InputError) as caught:
        source.load(root, download)
    assert "\n" not in str(caught.value)
    return str(caught.value)


# --- real files -----------------------------------------------------------------------------


def real(folder: str) -> Path:
    place = shared_data() / folder
    if not place.is_dir():
        pytest.skip(f"no real images: {place} is not there")
    return place


def test_real_cifar10_is_read_pixel_by_pixel(tmp_path: Path) -> None:
    """Its 1,017 test images, as both parts: the training files take seconds."""
    files = real("cifar10_parquet")
    place = tmp_path / "cifar10_parquet"
    place.mkdir()
    for part in ("train", "test"):
        (place / f"{part}-0.parquet").symlink_to(files / "test-00000-of-00001.parquet")
    (place / "label_names.txt").symlink_to(files / "label_names.txt")
    raw = make_source("cifar10").load(tmp_path, download=False)
    assert raw.test is not None
    assert raw.test.inputs.shape == (1017, 3, 32, 32)
    assert raw.test.digest() == raw.train.digest()
    assert raw.classes == tuple(CIFAR10)
    rows = pq.read_table(files / "test-00000-of-00001.parquet").to_pylist()
    assert raw.test.labels.tolist() == [row["label"] for row in rows]
    for i in (0, 255, 256, 1016):
        assert np.array_equal(raw.test.inputs[i].numpy(), pixels(rows[i]["image"]["bytes"]))


@pytest.mark.slow
def test_the_whole_of_real_cifar10_is_read() -> None:
    raw = make_source("cifar10").load(real("cifar10_parquet").parent, download=False)
    assert raw.train.inputs.shape == (30_000, 3, 32, 32)
    # of all 50,000, as papers give them: 0.4914 0.4822 0.4465 and 0.2470 0.2435 0.2616
    assert raw.mean == pytest.approx((0.4914, 0.4822, 0.4465), abs=0.001)
    assert raw.std == pytest.approx((0.2470, 0.2435, 0.2616), abs=0.001)


def test_real_tiny_imagenet_is_read_pixel_by_pixel() -> None:
    place = real("tiny-imagenet-20")
    raw = make_source("tiny_imagenet", path=place.name).load(place.parent, download=False)
    assert raw.test is not None
    assert raw.train.inputs.shape == (2000, 3, 64, 64)
    assert raw.test.inputs.shape == (400, 3, 64, 64)
    assert raw.train.labels.bincount().tolist() == [100] * 20
    assert raw.test.labels.bincount().tolist() == [20] * 20
    assert raw.classes[:3] == ("goldfish", "centipede", "black stork")
    numbers = sorted(place.joinpath("wnids.txt").read_text().split())
    grey = 0
    for label in (0, 7, 19):
        files = sorted((place / "train" / numbers[label] / "images").iterdir())
        for i in (0, 50, 99):
            assert np.array_equal(raw.train.inputs[100 * label + i].numpy(), pixels(files[i]))
    for i, line in enumerate(place.joinpath("val/val_annotations.txt").read_text().splitlines()):
        name, number = line.split("\t")[:2]
        assert raw.test.labels[i] == numbers.index(number)
        if i % 40 == 0:
            read = raw.test.inputs[i].numpy()
            assert np.array_equal(read, pixels(place / "val" / "images" / name))
    for image in raw.train.inputs:
        grey += bool((image[0] == image[1]).all() and (image[0] == image[2]).all())
    stored = [Image.open(f).mode for f in place.glob("train/*/images/*.JPEG")]
    assert grey >= stored.count("L") > 0


# --- layouts --------------------------------------------------------------------------------


@pytest.mark.parametrize("name", SETS)
def test_a_missing_set_says_what_belongs_where(name: str, tmp_path: Path) -> None:
    message = refused(make_source(name), tmp_path / "nowhere")
    assert message.startswith("scenario.root: ")
    assert str(tmp_path / "nowhere") in message
    assert ("`download: true`" in message) is (name not in BY_HAND)
    expected = {
        "actions": ("VOCdevkit/VOC2012", "ImageSets/Action/val.txt", "Annotations"),
        "cars": ("stanford_cars", "devkit/cars_meta.mat", "by hand from https://github.com"),
        "letters": ("English/Img/GoodImg/Bmp", "Sample062", "by hand from https://teodecampos"),
        "aircraft": ("fgvc-aircraft-2013b", "data/images_variant_trainval.txt"),
        "birds": ("CUB_200_2011", "train_test_split.txt"),
        "flowers": ("flowers-102", "setid.mat"),
        "scenes": ("indoor-67", "TrainImages.txt", "by hand from https://web.mit.edu"),
        "cifar10": ("cifar-10-batches-bin", "data_batch_5.bin", "cifar10_parquet", "test-*"),
        "cifar100": ("cifar-100-binary", "train.bin", "fine_label_names.txt"),
        "svhn": ("SVHN", "train_32x32.mat", "test_32x32.mat"),
        "tiny_imagenet": ("tiny-imagenet-200", "wnids.txt", "val_annotations.txt"),
    }
    assert all(part in message for part in expected[name])


@pytest.mark.parametrize("name", SETS)
def test_what_is_there_is_checked_without_reading_it(
    name: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    LAYOUTS[name](tmp_path)
    source = make_source(name)
    source.check(tmp_path)
    monkeypatch.setattr("clsearch.data._cifar.np.frombuffer", None)
    monkeypatch.setattr("clsearch.data._images._pixels", None)
    source.check(tmp_path)
    with pytest.raises(InputError):
        source.check(tmp_path / "nowhere")


@pytest.mark.parametrize("name", [name for name in SETS if name not in BY_HAND])
def test_a_missing_set_is_fetched(
    name: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """From archives of the layout that stand in for the published ones."""
    LAYOUTS[name](tmp_path / "original")
    site = tmp_path / "site"
    site.mkdir()
    (folder,) = (tmp_path / "original").iterdir()
    if name.startswith("cifar"):
        kind = type(make_source(name))
        archive = site / kind.archive
        with tarfile.open(archive, "w:gz") as tar:
            tar.add(folder, folder.name)
        monkeypatch.setattr(_cifar, "_SITE", site.as_uri())
        monkeypatch.setattr(kind, "md5", md5(archive))
    elif name in PHOTOGRAPHS:
        kind, files = type(make_source(name)), []
        for url, _, inside, into in kind.files:
            file = site / url.rpartition("/")[2]
            if inside:
                with tarfile.open(file, "w:gz") as tar:
                    tar.add(tmp_path / "original" / into, inside)
            else:
                shutil.copy(tmp_path / "original" / into / file.name, file)
            files.append((file.as_uri(), md5(file), inside, into))
        monkeypatch.setattr(kind, "files", tuple(files))
    elif name == "tiny_imagenet":
        archive = site / "tiny.zip"
        with zipfile.ZipFile(archive, "w") as packed:
            for file in sorted(folder.rglob("*")):
                packed.write(file, file.relative_to(folder.parent))
        monkeypatch.setattr(tiny_imagenet, "_URL", archive.as_uri())
        monkeypatch.setattr(tiny_imagenet, "_MD5", md5(archive))
    else:
        sums = {}
        for file in folder.iterdir():
            shutil.copy(file, site)
            sums[file.name] = md5(file)
        monkeypatch.setattr(svhn, "_SITE", site.as_uri())
        monkeypatch.setattr(svhn, "_FILES", dict(sorted(sums.items(), reverse=True)))
    source, root = make_source(name), tmp_path / "data"
    first = source.load(root, download=True)
    assert first.train.digest() == load_source(name).train.digest()
    assert [p.name for p in root.iterdir()] == [folder.name]
    shutil.rmtree(site)  # and not fetched again
    assert source.load(root, download=True).train.digest() == first.train.digest()


def md5(file: Path) -> str:
    return hashlib.md5(file.read_bytes()).hexdigest()


def test_a_download_that_is_not_the_published_file_leaves_nothing(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    site = tmp_path / "site"
    site.mkdir()
    (site / "cifar-100-binary.tar.gz").write_bytes(b"something else")
    monkeypatch.setattr(_cifar, "_SITE", site.as_uri())
    message = refused(make_source("cifar100"), tmp_path / "data", download=True)
    assert message.startswith("scenario.download: True")
    assert "cifar-100-binary.tar.gz" in message
    assert "The reason: " in message
    assert not list((tmp_path / "data").rglob("*.*"))


# --- CIFAR ----------------------------------------------------------------------------------


def test_cifar_records_are_label_then_red_green_blue(tmp_path: Path) -> None:
    LAYOUTS["cifar10"](tmp_path)
    raw = make_source("cifar10").load(tmp_path, download=False)
    assert raw.test is not None
    content = (tmp_path / "cifar-10-batches-bin" / "data_batch_2.bin").read_bytes()
    record = content[7 * 3073 : 8 * 3073]
    assert raw.train.labels[47] == record[0] == 7
    assert raw.train.inputs[47].numpy().tobytes() == record[1:]
    assert (len(raw.train), len(raw.test)) == (200, 50)


def test_cifar100_has_the_fine_labels(tmp_path: Path) -> None:
    LAYOUTS["cifar100"](tmp_path)
    raw = make_source("cifar100").load(tmp_path, download=False)
    record = (tmp_path / "cifar-100-binary" / "train.bin").read_bytes()[5 * 3074 : 6 * 3074]
    assert record[0] != 5  # the coarse label
    assert raw.train.labels[5] == record[1] == 5
    assert raw.train.inputs[5].numpy().tobytes() == record[2:]
    assert raw.classes[5] == "thing_05"


@pytest.mark.parametrize(
    ("file", "change", "expected"),
    [
        ("test_batch.bin", lambda b: b[:-1], "records of 3073 bytes"),
        ("data_batch_3.bin", lambda _: b"", "records of 3073 bytes"),
        ("data_batch_1.bin", lambda b: b"\x0a" + b[1:], "labels from 0 to 9"),
        ("batches.meta.txt", lambda b: b[9:], "10 names"),
        ("batches.meta.txt", lambda b: b + b"cat\n", "each once"),
    ],
)
def test_damaged_cifar_is_refused(
    file: str, change: Callable[[bytes], bytes], expected: str, tmp_path: Path
) -> None:
    LAYOUTS["cifar10"](tmp_path)
    path = tmp_path / "cifar-10-batches-bin" / file
    path.write_bytes(change(path.read_bytes()))
    message = refused(make_source("cifar10"), tmp_path)
    assert expected in message


def test_cifar10_of_parquet_files_is_checked(tmp_path: Path) -> None:
    place, good = tmp_path / "cifar10_parquet", encode(noise(32, 32, 3), "WEBP")
    names = place / "label_names.txt"
    for images, labels, expected in (
        ([good], [10], "10: So it is at 1 of 1"),
        ([good, b"\x00" * 9], [0, 1], "train-0.parquet, row 1"),
        ([encode(noise(8, 8, 3))], [0], "3x8x8"),
    ):
        for part in ("train", "test"):
            table(place / f"{part}-0.parquet", list(images), labels)
        names.write_text("\n".join(CIFAR10))
        assert expected in refused(make_source("cifar10"), tmp_path)
    names.unlink()
    assert "label_names.txt" in refused(make_source("cifar10"), tmp_path)


# --- SVHN and Tiny ImageNet -----------------------------------------------------------------


def test_svhn_has_its_zeros_and_its_axes_in_order(tmp_path: Path) -> None:
    LAYOUTS["svhn"](tmp_path)
    raw = make_source("svhn").load(tmp_path, download=False)
    assert raw.train.labels[:11].tolist() == [1, 2, 3, 4, 5, 6, 7, 8, 9, 0, 1]
    stored = noise(32, 32, 3, 200, seed=200)
    assert np.array_equal(raw.train.inputs[9].numpy(), stored[:, :, :, 9].transpose(2, 0, 1))


@pytest.mark.parametrize(
    ("content", "expected"),
    [
        ({"X": noise(32, 32, 3, 5)}, "'y'"),
        ({"X": noise(32, 32, 3, 5), "y": [[1]]}, "as many labels"),
        ({"X": noise(31, 32, 3, 2), "y": [[1], [2]]}, "as many labels"),
        ({"X": noise(32, 32, 3, 2), "y": [[1], [11]]}, "1 to 10"),
        (b"no mat file at all, but long enough to have a header" * 9, "undamaged"),
        (b"", "undamaged"),
    ],
)
def test_damaged_svhn_is_refused(content: Any, expected: str, tmp_path: Path) -> None:
    from scipy.io import savemat

    LAYOUTS["svhn"](tmp_path)
    path = tmp_path / "SVHN" / "train_32x32.mat"
    if isinstance(content, bytes):
        path.write_bytes(content)
    else:
        savemat(path, content)
    message = refused(make_source("svhn"), tmp_path)
    assert expected in message
    assert path.name in message


def test_tiny_imagenets_classes_have_names_of_their_own() -> None:
    raw = load_source("tiny_imagenet")
    assert raw.classes == (
        *("n1", "n2", "gazelle", "plunger", "pole", "coral reef", "trolleybus", "pot"),
    )


def test_a_corrupt_jpeg_is_named_and_refused_or_left_out(tmp_path: Path) -> None:
    LAYOUTS["tiny_imagenet"](tmp_path)
    images = tmp_path / "tiny-imagenet-200" / "train" / "n5" / "images"
    half = images / "n5_3.JPEG"
    half.write_bytes(half.read_bytes()[:900])
    (images / "n5_7.JPEG").write_bytes(b"")
    message = refused(make_source("tiny_imagenet"), tmp_path)
    assert message.startswith("scenario.source.corrupt: 'refuse'")
    assert "2 of 160 images cannot be decoded: n5_3.JPEG (" in message
    assert "n5_7.JPEG" in message
    assert "`corrupt: skip`" in message
    raw = make_source("tiny_imagenet", corrupt="skip").load(tmp_path, download=False)
    assert raw.train.labels.bincount().tolist() == [20, 20, 20, 20, 18, 20, 20, 20]
    (note,) = raw.notes
    assert "2 of 160 images cannot be decoded and were left out: n5_3.JPEG" in note
    order = sorted(p.name for p in images.iterdir())
    good = [name for name in order if name not in ("n5_3.JPEG", "n5_7.JPEG")]
    for i, name in enumerate(good):
        assert np.array_equal(raw.train.inputs[80 + i].numpy(), pixels(images / name))


def test_tiny_imagenet_without_a_class_or_with_another_is_refused(tmp_path: Path) -> None:
    LAYOUTS["tiny_imagenet"](tmp_path)
    place = tmp_path / "tiny-imagenet-200"
    lines = (place / "val" / "val_annotations.txt").read_text()
    (place / "val" / "val_annotations.txt").write_text(lines + "x.JPEG\tn9\t0\t0\t1\t1\n")
    assert "n9" in refused(make_source("tiny_imagenet"), tmp_path)
    shutil.rmtree(place / "train" / "n8")
    assert "train/n8/images" in refused(make_source("tiny_imagenet"), tmp_path)


# --- photographs ----------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("name", "index", "written", "label"),
    [
        *[("aircraft", 9, 9, 1), ("birds", 21, 29, 1), ("cars", 9, 9, 1)],
        *[("flowers", 90, 90, 2), ("scenes", 9, 9, 1)],
    ],
)
def test_lists_say_which_photograph_is_what(
    name: str, index: int, written: int, label: int, tmp_path: Path
) -> None:
    """One image of each set followed from its file, by the set's lists, to its label."""
    LAYOUTS[name](tmp_path)
    raw = make_source(name).load(tmp_path, download=False)
    assert raw.test is not None
    assert (len(raw.train), len(raw.test)) == ((160, 64) if name == "birds" else (160, 40))
    array = noise(18 + written % 5, 20 - written % 3, 3, seed=written)
    with Image.open(io.BytesIO(encode(array, "JPEG"))) as opened:
        fitted = ImageOps.fit(opened.convert("RGB"), (16, 16), Image.Resampling.BILINEAR)
    assert np.array_equal(raw.train.inputs[index].numpy(), np.asarray(fitted).transpose(2, 0, 1))
    assert raw.train.labels[index] == label
    expected = {"aircraft": "Type bee 7", "birds": "002.bee", "cars": "Maker bee 2012"}
    assert raw.classes[label] == {**expected, "flowers": "3", "scenes": "bee"}[name]


@pytest.mark.parametrize(
    ("name", "file", "content"),
    [
        ("actions", "Annotations/2010_000003.xml", "<annotation><object>"),
        ("actions", "Annotations/2010_000003.xml", f"<a>{person(None, 'other')}</a>"),
        ("actions", "ImageSets/Action/val.txt", "2010_999999"),
        ("cars", "devkit/cars_meta.mat", "no mat file"),
        ("aircraft", "data/images_variant_test.txt", "0000001 Zeppelin\n"),
        ("aircraft", "data/images_variant_test.txt", "0000001\n"),
        ("birds", "image_class_labels.txt", "1 9\n"),
        ("birds", "classes.txt", "1 001.ant\n"),
        ("flowers", "setid.mat", "no mat file"),
        ("scenes", "TestImages.txt", "attic/1.jpg\n"),
    ],
)
def test_damaged_lists_are_refused(name: str, file: str, content: str, tmp_path: Path) -> None:
    LAYOUTS[name](tmp_path)
    source = make_source(name)
    (tmp_path / source.folder / file).write_text(content)
    message = refused(source, tmp_path)
    assert message.startswith("scenario.root: ")
    assert Path(file).name in message or "2010_999999.xml" in message


def test_cars_of_a_class_that_is_not_there_are_refused(tmp_path: Path) -> None:
    from scipy.io import savemat

    LAYOUTS["cars"](tmp_path)
    names = np.array([["one car"]], object)
    savemat(tmp_path / "stanford_cars" / "devkit" / "cars_meta.mat", {"class_names": names})
    assert "00002.jpg is of class 2 of 1" in refused(make_source("cars"), tmp_path)
    wrong = tmp_path / "stanford_cars" / "cars_test_annos_withlabels.mat"
    savemat(wrong, {"annotations": np.array([[1]])})
    LAYOUTS["cars"](tmp_path / "whole")
    shutil.copy(wrong, tmp_path / "whole" / "stanford_cars")
    assert "without fname or class" in refused(make_source("cars"), tmp_path / "whole")


def test_actions_are_people_in_their_boxes_who_do_one_thing(tmp_path: Path) -> None:
    LAYOUTS["actions"](tmp_path)
    raw = make_source("actions", size=[16, 14]).load(tmp_path, download=False)
    assert raw.test is not None
    assert raw.classes == tuple(ACTIONS)
    assert raw.train.labels.tolist() == [i % 11 for i in range(220)]
    assert (len(raw.train), len(raw.test)) == (220, 55)
    place = tmp_path / "VOCdevkit" / "VOC2012" / "JPEGImages"
    for i in (10, 13):  # beside two who do several things or none, and alone
        whole = pixels(place / f"2010_{i:06d}.jpg")
        assert np.array_equal(raw.train.inputs[i].numpy(), whole[:, 1:17, 2:16])
    file = tmp_path / "VOCdevkit" / "VOC2012" / "Annotations" / "2010_000003.xml"
    file.write_text(file.read_text().replace("reading", "juggling"))
    assert "'juggling'" in refused(make_source("actions"), tmp_path)


def test_letters_are_without_the_digits(tmp_path: Path) -> None:
    LAYOUTS["letters"](tmp_path)
    raw = make_source("letters").load(tmp_path, download=False)
    assert raw.test is None
    assert "".join(raw.classes) == string.ascii_uppercase + string.ascii_lowercase
    assert raw.train.labels.bincount().tolist() == [8] * 52
    stored = noise(18 + 2, 20 - 2, 3, seed=10 * 37 + 2)  # the second a
    fitted = ImageOps.fit(Image.fromarray(stored), (16, 16), Image.Resampling.BILINEAR)
    found = raw.train.inputs[26 * 8 + 1].numpy()
    assert np.array_equal(found, np.asarray(fitted).transpose(2, 0, 1))
    shutil.rmtree(tmp_path / "English" / "Img" / "GoodImg" / "Bmp" / "Sample020")
    assert "Sample020 has no images of J" in refused(make_source("letters"), tmp_path)


# --- pixels ---------------------------------------------------------------------------------


def test_statistics_are_those_of_the_pixels() -> None:
    images = torch.from_numpy(noise(50, 3, 7, 5))
    images[:, 1] //= 3
    mean, std = statistics(images, 255.0)
    x = images.double().transpose(0, 1).flatten(1) / 255
    assert mean == pytest.approx(x.mean(1).tolist(), abs=1e-12)
    assert std == pytest.approx(x.std(1, correction=0).tolist(), abs=1e-12)
    assert statistics(torch.full((2, 1, 2, 2), 51).byte(), 255.0) == ((0.2,), (1.0,))


def test_a_sets_images_take_another_form() -> None:
    raw = load_source("digits")
    bigger = conform(raw, 16, "rgb")
    assert bigger.train.inputs.shape == (1797, 3, 16, 16)
    assert torch.equal(bigger.train.inputs[:, 0], bigger.train.inputs[:, 2])
    assert bigger.train.labels is not None
    assert int(bigger.train.inputs.max()) <= raw.scale
    assert bigger.mean[0] == pytest.approx(raw.mean[0], abs=0.01)
    assert conform(raw, [8, 8], "grey") is raw
    assert conform(raw, None, None) is raw
    whole = load_source("cifar10")
    grey = conform(whole, None, "grey")
    image = Image.fromarray(whole.train.inputs[3].numpy().transpose(1, 2, 0)).convert("L")
    assert np.array_equal(grey.train.inputs[3, 0].numpy(), np.asarray(image))


def test_layouts_are_written_by_pillow_as_noise(tmp_path: Path) -> None:
    save(tmp_path / "a.png", noise(4, 5, 3))
    assert np.array_equal(pixels(tmp_path / "a.png"), noise(4, 5, 3).transpose(2, 0, 1))
