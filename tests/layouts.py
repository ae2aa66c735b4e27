"""Small data sets of noise, written in the layouts that sources read."""

from __future__ import annotations

import io
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import torch
from PIL import Image

OPTIONS: dict[str, dict[str, Any]] = {
    "folder": {"path": "photos"},
    "parquet": {"path": "tables/train-*.parquet", "test_path": "tables/test-0.parquet"},
    "arrays": {"path": "arrays/train.npz", "test_path": "arrays/test.npz"},
    **{name: {"size": 16} for name in ("actions", "aircraft", "birds", "cars")},
    **{name: {"size": 16} for name in ("flowers", "letters", "scenes")},
}
"""What a source is told to find its layout, or to be quick with it."""

CIFAR10 = ["airplane", "automobile", "bird", "cat", "deer", "dog", "frog", "horse", "ship", "truck"]
ACTIONS = [
    "jumping", "phoning", "playinginstrument", "reading", "ridingbike", "ridinghorse", "running",
    "takingphoto", "usingcomputer", "walking", "other",
]  # fmt: skip
INSECTS = ["ant", "bee", "cicada", "earwig", "fly", "hornet", "moth", "wasp"]


def noise(*shape: int, seed: int = 0) -> np.ndarray:
    """uint8 numbers of a shape, from 0 to 255 each."""
    rng = torch.Generator().manual_seed(seed)
    return torch.randint(0, 256, shape, generator=rng, dtype=torch.uint8).numpy()


def encode(array: np.ndarray, kind: str = "PNG") -> bytes:
    """An image `[H, W]` or `[H, W, 3]` as the bytes of a file."""
    stream = io.BytesIO()
    Image.fromarray(array).save(stream, kind)
    return stream.getvalue()


def save(path: Path, array: np.ndarray, kind: str = "PNG") -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_bytes(encode(array, kind))


def records(count: int, label_bytes: int, classes: int, seed: int) -> bytes:
    """CIFAR's records: labels in turn, pixels of noise."""
    content = noise(count, label_bytes + 3072, seed=seed).copy()
    content[:, label_bytes - 1] = np.arange(count) % classes
    return content.tobytes()


def cifar10(root: Path) -> None:
    folder = root / "cifar-10-batches-bin"
    folder.mkdir(parents=True)
    for i in range(5):
        (folder / f"data_batch_{i + 1}.bin").write_bytes(records(40, 1, 10, i))
    (folder / "test_batch.bin").write_bytes(records(50, 1, 10, 5))
    (folder / "batches.meta.txt").write_text("\n".join(CIFAR10) + "\n\n")


def cifar100(root: Path) -> None:
    folder = root / "cifar-100-binary"
    folder.mkdir(parents=True)
    (folder / "train.bin").write_bytes(records(2000, 2, 100, 0))
    (folder / "test.bin").write_bytes(records(200, 2, 100, 1))
    (folder / "fine_label_names.txt").write_text("".join(f"thing_{i:02d}\n" for i in range(100)))


def tiny_imagenet(root: Path) -> None:
    """Eight classes, of which two have the same first word; every fifth image is grey."""
    folder = root / "tiny-imagenet-200"
    words = {"n3": "gazelle", "n1": "crane, wading bird", "n2": "crane", "n8": "pot, flowerpot"}
    words |= {
        "n5": "pole",
        "n4": "plunger, plumber's helper",
        "n7": "trolleybus",
        "n6": "coral reef",
    }
    lines = []
    for i, number in enumerate(words):
        for j in range(20):
            array = noise(64, 64, 3, seed=100 * i + j) if j % 5 else noise(64, 64, seed=100 * i + j)
            save(folder / f"train/{number}/images/{number}_{j}.JPEG", array, "JPEG")
        for j in range(5):
            array = noise(64, 64, 3, seed=1000 + 5 * i + j)
            save(folder / f"val/images/val_{5 * i + j}.JPEG", array, "JPEG")
            lines.append(f"val_{5 * i + j}.JPEG\t{number}\t0\t0\t63\t63\n")
    (folder / "wnids.txt").write_text("\n".join(words))
    (folder / "words.txt").write_text("".join(f"{n}\t{w}\n" for n, w in words.items()))
    (folder / "val" / "val_annotations.txt").write_text("".join(lines))


def svhn(root: Path) -> None:
    from scipy.io import savemat

    (root / "SVHN").mkdir(parents=True)
    for part, count in (("train", 200), ("test", 50)):
        labels = (np.arange(count) % 10 + 1).astype(np.uint8).reshape(-1, 1)
        images = noise(32, 32, 3, count, seed=count)
        savemat(root / "SVHN" / f"{part}_32x32.mat", {"X": images, "y": labels})


def folder(root: Path) -> None:
    """Eight classes, training and test part, of two formats, with files that are no images."""
    for part, count in (("train", 20), ("test", 4)):
        for i, name in enumerate(INSECTS):
            for j in range(count):
                kind = "PNG" if j % 2 else "BMP"
                array = noise(12, 12, 3, seed=100 * i + j + (1000 if part == "test" else 0))
                save(root / "photos" / part / name / f"{j:03d}.{kind.lower()}", array, kind)
            (root / "photos" / part / name / "notes.txt").write_text("no image")
    (root / "photos" / ".cache").mkdir()


def table(path: Path, images: list[bytes | None], labels: list[Any], nested: bool = True) -> None:
    """A Parquet file of encoded images as hubs have it."""
    path.parent.mkdir(parents=True, exist_ok=True)
    column: list[Any] = [{"bytes": b, "path": None} for b in images] if nested else list(images)
    pq.write_table(pa.table({"image": column, "label": labels}), path)


def parquet(root: Path) -> None:
    for i, name in enumerate(("train-0", "train-1", "test-0")):
        images: list[bytes | None] = [encode(noise(9, 7, 3, seed=100 * i + j)) for j in range(80)]
        table(root / "tables" / f"{name}.parquet", images, [j % 8 for j in range(80)])


def arrays(root: Path) -> None:
    (root / "arrays").mkdir(parents=True)
    for part, count in (("train", 160), ("test", 40)):
        labels = np.array(INSECTS)[np.arange(count) % 8]
        images = noise(count, 6, 5, seed=count)
        np.savez(root / "arrays" / f"{part}.npz", images=images, labels=labels)


def photographs(place: Path, names: list[str], first: int = 0) -> None:
    """Images of several sizes, the n-th with the noise of n; number 0 is white."""
    for i, name in enumerate(names, start=first):
        array = noise(18 + i % 5, 20 - i % 3, 3, seed=i)
        save(place / name, array if i else np.full_like(array, 255), "JPEG")


def lists(place: Path, **files: list[str]) -> None:
    place.mkdir(parents=True, exist_ok=True)
    for name, rows in files.items():
        (place / f"{name}.txt").write_text("\n".join(rows) + "\n")


def birds(root: Path) -> None:
    """In the order of classes, two of seven images for testing."""
    place, every = root / "CUB_200_2011", range(8 * 28)
    names = [f"{i // 28 + 1:03d}.Bird/b_{i}.jpg" for i in every]
    photographs(place / "images", names)
    lists(
        place,
        images=[f"{i + 1} {names[i]}" for i in every],
        image_class_labels=[f"{i + 1} {i // 28 + 1}" for i in every],
        train_test_split=[f"{i + 1} {int(i % 7 < 5)}" for i in every],
        classes=[f"{c + 1} {c + 1:03d}.{name}" for c, name in enumerate(INSECTS)],
    )


def aircraft(root: Path) -> None:
    place = root / "fgvc-aircraft-2013b" / "data"
    variants = [f"Type {name} 7" for name in INSECTS]
    photographs(place / "images", [f"{i:07d}.jpg" for i in range(200)])
    rows = [f"{i:07d} {variants[i % 8]}" for i in range(200)]
    lists(
        place,
        variants=variants,
        images_variant_trainval=rows[:160],
        images_variant_test=rows[160:],
    )


def flowers(root: Path) -> None:
    from scipy.io import savemat

    place = root / "flowers-102"
    photographs(place / "jpg", [f"image_{i + 1:05d}.jpg" for i in range(200)])
    numbers = np.arange(200).reshape(1, -1)
    savemat(place / "imagelabels.mat", {"labels": (numbers % 8 + 1).astype(np.uint8)})
    parts = {"trnid": numbers[:, :80] + 1, "valid": numbers[:, 80:160] + 1}
    savemat(place / "setid.mat", {**parts, "tstid": numbers[:, 160:] + 1})


def scenes(root: Path) -> None:
    place = root / "indoor-67"
    names = [f"{INSECTS[i % 8]}/room {i}.jpg" for i in range(200)]
    photographs(place / "Images", names)
    lists(place, TrainImages=names[:160], TestImages=names[160:])


def cars(root: Path) -> None:
    """Structure arrays and cells, as MATLAB writes them."""
    from scipy.io import savemat

    place = root / "stanford_cars"
    (place / "devkit").mkdir(parents=True)
    models = np.array([[f"Maker {name} 2012" for name in INSECTS]], object)
    savemat(place / "devkit" / "cars_meta.mat", {"class_names": models})
    corners = ("bbox_x1", "bbox_y1", "bbox_x2", "bbox_y2")
    kind = np.dtype([(field, object) for field in (*corners, "class", "fname")])
    for part, count in (("train", 160), ("test", 40)):
        names = [f"{i + 1:05d}.jpg" for i in range(count)]
        photographs(place / f"cars_{part}", names, first=0 if part == "train" else 160)
        rows = [(1, 2, 9, 8, i % 8 + 1, name) for i, name in enumerate(names)]
        found = np.array([rows], dtype=kind)
        savemat(place / "devkit" / f"cars_{part}_annos.mat", {"annotations": found})
        if part == "test":
            savemat(place / "cars_test_annos_withlabels.mat", {"annotations": found})


def person(box: tuple[int, int, int, int] | None, *doing: str) -> str:
    """A person of an annotation of PASCAL VOC, with a box and what they do."""
    corners = ("xmin", "ymin", "xmax", "ymax")
    bounds = "".join(f"<{c}>{at}</{c}>" for c, at in zip(corners, box or (), strict=bool(box)))
    flags = "".join(f"<{name}>{int(name in doing)}</{name}>" for name in ACTIONS)
    done = f"<actions>{flags}</actions>" if doing else ""
    return f"<object><name>person</name>{done}<bndbox>{bounds}</bndbox></object>"


def actions(root: Path) -> None:
    """A person of one action in each image, and in every tenth two others that are passed over."""
    place, every = root / "VOCdevkit" / "VOC2012", range(275)
    names = [f"2010_{i:06d}" for i in every]
    photographs(place / "JPEGImages", [f"{name}.jpg" for name in names])
    (place / "Annotations").mkdir()
    (place / "ImageSets" / "Action").mkdir(parents=True)
    for i, name in enumerate(names):
        people = [person((3, 2, 16, 17), ACTIONS[i % 11])]
        if i % 10 == 0:
            people = [person((1, 1, 4, 4), "running", "phoning"), *people, person((1, 1, 3, 3))]
        text = f"<annotation><filename>{name}.jpg</filename>{''.join(people)}</annotation>"
        (place / "Annotations" / f"{name}.xml").write_text(text)
    lists(place / "ImageSets" / "Action", train=names[:220], val=names[220:])


def letters(root: Path) -> None:
    """All 62 characters, of which the first ten are digits."""
    place = root / "English" / "Img" / "GoodImg" / "Bmp"
    for number in range(1, 63):
        for j in range(1, 9):
            name = f"Sample{number:03d}/img{number:03d}-{j:05d}.png"
            save(place / name, noise(18 + j, 20 - j, 3, seed=10 * number + j))


FACTS = {"path": "facts/facts.csv", "words": "facts/words.txt", "size": 12}
"""Options of the scenario `facts` for the layout below."""


def facts(root: Path) -> None:
    """Eight facts of 12 images each, a colour for each part of a fact; two wild-card orders, PNG
    and JPEG; four facts in each of two tasks, every fourth image for testing."""
    parts = ["dog", "cat", "person", "horse"]
    every = [("dog",), ("person",), ("person", "holding", "tennis racket"), ("person", "running")]
    every += [("cat",), ("horse",), ("person", "riding", "horse"), ("dog", "running")]
    words = ["dog", "cat", "person", "horse", "holding", "tennis", "racket", "running", "riding"]
    source, rows = np.random.default_rng(0), ["image,subject,predicate,object,split,task"]
    for i, fact in enumerate(every):
        colours = [40 + 25 * parts.index(fact[0]), 0, 0]
        colours[1:] = [(90 * len(fact) + 30 * i) % 256, 25 * i]
        for j in range(12):
            name = f"photos/{12 * i + j}.{'png' if j % 2 == 0 else 'jpg'}"
            pixels = np.clip(np.array(colours) + source.integers(-20, 20, (12, 12, 3)), 0, 255)
            kind = "PNG" if j % 2 == 0 else "JPEG"
            save(root / "facts" / name, pixels.astype(np.uint8), kind)
            cells = [name, *fact, *[""] * (3 - len(fact)), "test" if j % 4 == 3 else "train"]
            rows.append(",".join([*cells, str(i // 4 + 1)]))
    (root / "facts" / "facts.csv").write_text("\n".join(rows) + "\n")
    vectors = source.normal(size=(len(words), 6)).round(3)
    lines = [" ".join([w, *map(str, v)]) for w, v in zip(words, vectors.tolist(), strict=True)]
    (root / "facts" / "words.txt").write_text("\n".join([f"{len(words)} 6", *lines]) + "\n")


LAYOUTS: dict[str, Callable[[Path], None]] = {
    "actions": actions,
    "aircraft": aircraft,
    "birds": birds,
    "cars": cars,
    "letters": letters,
    "flowers": flowers,
    "scenes": scenes,
    "cifar10": cifar10,
    "cifar100": cifar100,
    "tiny_imagenet": tiny_imagenet,
    "svhn": svhn,
    "folder": folder,
    "parquet": parquet,
    "arrays": arrays,
}
