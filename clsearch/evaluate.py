"""An exported model measured on data: of its own task, or any that the scenarios' loaders read."""

from __future__ import annotations

import contextlib
from collections import Counter
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import torch
from rich.console import Console
from rich.table import Column, Table
from torch import Tensor

from clsearch.config import Plugin, checked_options
from clsearch.data._stored import permuted
from clsearch.data.base import Samples, Source
from clsearch.errors import MISSING, ClsearchError, DamagedError, InputError, unknown
from clsearch.exports.files import load_export
from clsearch.exports.formats.base import Loaded
from clsearch.identity import FOLDERS
from clsearch.messages import say
from clsearch.plugins import discover, find
from clsearch.scenarios.base import Scenario, Task
from clsearch.yaml_reader import read_yaml

PARTS = ("test", "validation", "train", "all")

_ALONE = "scenario.tasks[0].source"
"""Where a data set given alone stands in the scenario it is read by."""
_MOST, _PIXELS = 256, 2**20
"""Images in a batch, and numbers in their pixels, at most."""
_SAID = 300
"""Characters of what another's program says when it fails."""


@dataclass(frozen=True)
class ByClass:
    """One class: how many images of it were measured, and how many of them it was told of."""

    name: str
    images: int
    right: int


@dataclass(frozen=True)
class Evaluation:
    """How good an exported model is on the images of a task.

    `value` is a fraction: the accuracy, or what `measure` says. `classes` are those measured, in
    the model's order; `left_out` counts images of classes that the model does not know or that were
    not asked for; `without` are classes of the model's that have no image here.
    """

    model: str
    source: str
    task: str
    part: str
    measure: str
    value: float
    images: int
    classes: tuple[ByClass, ...] = ()
    left_out: Mapping[str, int] | None = None
    without: tuple[str, ...] = ()
    notes: tuple[str, ...] = ()

    def to_json(self) -> dict[str, Any]:
        return asdict(self)


def evaluate(
    file: Path | str,
    data: str | None = None,
    *,
    task: int | None = None,
    part: str = "test",
    classes: Sequence[str] | None = None,
    root: Path | str | None = None,
) -> Evaluation:
    """Measures an exported model; its classes and those of the data are the same by name.

    `data` is the name of a data set, or a YAML file that describes a data set, as `scenario.source`
    does, or a scenario, whose `task` is measured; by default the model's own task. `classes` are
    those to measure, by default all that both have. `root` is the folder of the data sets. Raises
    `InputError` for images that the model does not take, for a task that orders pixels otherwise
    than the model's, and for classes that it does not know; `ClsearchError` for a model that cannot
    be run, or does not answer as it describes.
    """
    if part not in PARTS:
        raise unknown("part", part, PARTS)
    answer, described = load_export(Path(file))
    with _named(data):
        scenario = _scenario(data, described, root)
        chosen = _task(scenario, task, described["task"]["number"] if data is None else None)
    _check_input(chosen, described)
    _check_order(scenario, chosen, described)
    answer = _sound(Path(file), answer, chosen, described)
    samples = _samples(scenario, chosen, part)
    about = (str(file), scenario.origin(chosen.number).name, chosen.name, part)
    if chosen.answers.probabilities:
        return _classified(answer, described, chosen, samples, classes, about, scenario.notes)
    if classes is not None:
        raise InputError("classes", list(classes), "nothing: this task has facts, not classes")
    if part == "all":
        raise InputError("part", part, "test, validation or train: facts rank images of one part")
    (own,) = samples
    outputs = torch.cat([out for out, _ in _answers(answer, chosen, own)])
    judged = chosen.answers.judged(outputs, own.labels)[None]
    (value,) = chosen.answers.measure(judged, own.labels, own.image)
    return Evaluation(*about, "mean average precision", value, len(own), notes=scenario.notes)


def _classified(
    answer: Loaded,
    described: Mapping[str, Any],
    task: Task,
    samples: Sequence[Samples],
    classes: Sequence[str] | None,
    about: tuple[str, str, str, str],
    notes: tuple[str, ...],
) -> Evaluation:
    """Accuracy, of all and of each class."""
    own = list(described["task"]["classes"])
    measured = _measured(own, task.classes, classes)
    number = torch.tensor([own.index(c) if c in measured else -1 for c in task.classes])
    images, right = torch.zeros(2, len(own), dtype=torch.int64)
    out = torch.zeros(len(task.classes), dtype=torch.int64)
    for each in samples:
        labels = number[each.labels]
        out += torch.bincount(each.labels[labels < 0], minlength=len(out))
        kept = each[labels >= 0]
        for outputs, given in _answers(answer, task, kept):
            true = number[given]
            hit = outputs.argmax(1) == true
            images += torch.bincount(true, minlength=len(own))
            right += torch.bincount(true[hit], minlength=len(own))
    total = int(images.sum())
    if not total:
        raise InputError("part", about[-1], f"one with images of {', '.join(measured)}")
    by_class = [
        ByClass(name, *counts)
        for name, *counts in zip(own, images.tolist(), right.tolist(), strict=True)
    ]
    left = {c: n for c, n in zip(task.classes, out.tolist(), strict=True) if n}
    without = tuple(c.name for c in by_class if not c.images and c.name in (classes or own))
    shown = tuple(c for c in by_class if c.images)
    value = int(right.sum()) / total
    return Evaluation(*about, "accuracy", value, total, shown, left, without, notes)


def _measured(own: Sequence[str], there: Sequence[str], asked: Sequence[str] | None) -> list[str]:
    """The classes to measure: those asked for, or all that the model and the data both have."""
    both = [name for name in own if name in there]
    for name in asked or ():
        if name not in both:
            step = f"The data has {', '.join(there)}; the model knows {', '.join(own)}."
            raise InputError("classes", name, "classes that the model and the data both have", step)
    if not both:
        step = f"It knows {', '.join(own)}. Sources of your own have the option `names`."
        raise InputError("data", ", ".join(there), "classes that the model knows", step)
    return both if asked is None else list(asked)


def _answers(answer: Loaded, task: Task, samples: Samples) -> Iterator[tuple[Tensor, Tensor]]:
    """Outputs and labels, batch by batch: the pixels as the data set stores them."""
    order = task.transform.permutation
    back = None if order is None else order.argsort()
    channels, height, width = task.shape
    size = max(1, min(_MOST, _PIXELS // (channels * height * width)))
    with torch.inference_mode():
        for i in range(0, len(samples), size):
            pixels = samples.inputs[i : i + size]
            pixels = pixels if back is None else permuted(pixels, back)
            yield answer(pixels.to(torch.float32)), samples.labels[i : i + size]


def _sound(file: Path, answer: Loaded, task: Task, described: Mapping[str, Any]) -> Loaded:
    """`answer` with every output looked at, since a file may come from anybody. It raises
    `DamagedError` for outputs other than described, `ClsearchError` where it cannot be run. Raises
    `DamagedError` for a description that contradicts itself, `InputError` for data that asks for
    other outputs."""
    names, (_, count) = described["task"]["classes"], described["output"]["shape"]
    width = task.answers.width(len(names))
    for name in (name for name, times in Counter(names).items() if times > 1):
        raise DamagedError(f"{file} describes two classes of the name {name!r}")
    if count != width and task.answers.probabilities:
        raise DamagedError(f"{file} describes {count} outputs for {len(names)} classes")
    if count != width:
        found = f"a task answered by {width} numbers for an image"
        raise InputError("data", found, f"one answered by {count}, as this model does")

    def sound(pixels: Tensor) -> Tensor:
        try:
            outputs = answer(pixels)
        except Exception as error:  # whatever a program of somebody else's raises
            said = " ".join(f"{type(error).__name__}: {error}".split())[:_SAID]
            images = "x".join(map(str, pixels.shape))
            raise ClsearchError(f"{file} cannot be run on images of {images}: {said}") from error
        if not isinstance(outputs, Tensor) or not outputs.is_floating_point():
            said = getattr(outputs, "dtype", type(outputs).__name__)
            raise DamagedError(f"{file} answers with {said}, not with numbers as it describes")
        if outputs.shape != (len(pixels), count):
            shape = "x".join(map(str, outputs.shape))
            wanted = f"{len(pixels)}x{count} as it describes"
            raise DamagedError(f"{file} answers with {shape} numbers, not {wanted}")
        if not outputs.isfinite().all():
            raise DamagedError(f"{file} answers with numbers that are not finite")
        return outputs

    return sound


def _samples(scenario: Scenario, task: Task, part: str) -> list[Samples]:
    if part == "test":
        return [scenario.test(task.number)]
    data = scenario.data(task.number)
    if part == "all":
        return [data.train, data.validation, scenario.test(task.number)]
    return [data.train if part == "train" else data.validation]


def _check_input(task: Task, described: Mapping[str, Any]) -> None:
    """Raises `InputError` for data that the model does not take."""
    taken, output = described["input"], described["output"]
    shape = tuple(taken["shape"][1:])
    if task.shape != shape:
        found, wanted = ("x".join(map(str, s)) for s in (task.shape, shape))
        step = "Options that bring images to another shape are `size` and `colour`."
        raise InputError("data", f"images of {found}", f"images of {wanted}", step)
    if task.transform.scale != taken["high"]:
        found = f"pixels from 0 to {task.transform.scale:g}"
        raise InputError("data", found, f"pixels from 0 to {taken['high']:g}")
    if task.answers.outputs_are != output["is"]:
        found = f"a task answered by {task.answers.outputs_are}"
        raise InputError("data", found, f"one answered by {output['is']}, as this model does")


def _check_order(scenario: Scenario, task: Task, described: Mapping[str, Any]) -> None:
    """Raises `InputError` for a task that orders pixels otherwise than the model, which would be
    measured at its own order and told as that task. Where a scenario orders none, it gives images
    as they are stored, which any model takes."""
    if all(each.transform.permutation is None for each in scenario.tasks):
        return
    taken, own, order = described["input"], described["task"], task.transform.order
    if "order" in taken:
        same = taken["order"] == order
    else:  # an older file: its permutation cannot be compared
        same = taken["permuted"] == (order is not None)
        same = same and (order is None or own["number"] == task.number)
    if not same:
        allowed = f"a task with the model's order of pixels, as {own['name']} of its own scenario"
        step = "Export the model of this task, or give the data set alone as data."
        raise InputError("task", task.number, allowed, step)


def _task(scenario: Scenario, number: int | None, own: int | None) -> Task:
    number = own if number is None else number
    count = len(scenario.tasks)
    if number is None and count > 1:
        raise InputError("task", MISSING, f"1 to {count}: the data is of several tasks")
    if number is not None and not 1 <= number <= count:
        raise InputError("task", number, f"1 to {count}")
    return scenario.tasks[(number or 1) - 1]


def _scenario(data: str | None, described: Mapping[str, Any], root: Path | str | None) -> Scenario:
    """The scenario that reads the data."""
    section = _own(described) if data is None else _section(data)
    kinds, sources = discover("clsearch.scenarios", Scenario), discover("clsearch.data", Source)
    name = section.get("name")
    if name not in kinds and name in sources:
        section = {"name": "sequence", "tasks": [{"source": section}]}
    elif name not in kinds:
        raise unknown("data", name, [*sources, *kinds])
    more = {} if root is None else {"root": str(root)}
    plugin = Plugin(**{**section, **more})
    kind = find("clsearch.scenarios", Scenario, plugin.name, "data")
    built: Scenario = kind(checked_options(kind, plugin.options, "scenario"))
    return built


def _own(described: Mapping[str, Any]) -> dict[str, Any]:
    """The scenario that a model was trained in."""
    config = described.get("config")
    own = config.get("scenario") if isinstance(config, Mapping) else None
    if not isinstance(own, Mapping) or not isinstance(own.get("name"), str):
        raise InputError("data", MISSING, "data to measure: the model does not say its own")
    return {name: value for name, value in own.items() if name not in FOLDERS}


def _section(data: str) -> dict[str, Any]:
    """What a file, or the name of a data set, says of the data."""
    path = Path(data)
    if path.suffix not in (".yaml", ".yml"):
        return {"name": data}
    given = read_yaml(path, "data")
    section = given.get("scenario", given) if isinstance(given, dict) else given
    if (
        not isinstance(section, dict)
        or not all(isinstance(key, str) for key in section)
        or not isinstance(section.get("name"), str)
    ):
        allowed = "a data set or a scenario: a section with its name and its options"
        raise InputError("data", data, allowed)
    return section


@contextlib.contextmanager
def _named(data: str | None) -> Iterator[None]:
    """Errors of the data named as the user gave it."""
    try:
        yield
    except InputError as error:
        if not error.field.startswith("scenario"):
            raise
        field, step = error.field.replace(_ALONE, "data").replace("scenario", "data", 1), error.step
        if data is None and error.field == "scenario.root":
            field = "root"
        elif data is None:
            field = f"the model's {error.field}"
            step = f"{step} `root` says where its data lies, `data` takes another.".strip()
        raise InputError(field, error.value, error.allowed, step) from error


def print_evaluation(found: Evaluation, console: Console) -> None:
    """Prints the figure, what was left out, and a table of the classes."""
    head = f"{found.model}: {found.measure} {100 * found.value:.2f} % of {found.images:,} images"
    where = f"{found.task} of {found.source}, part {found.part}"
    say(console, f"{head} ({where})")
    if found.left_out:
        count = sum(found.left_out.values())
        names = ", ".join(found.left_out)
        say(
            console,
            f"Left out: {count:,} images of {names}, which were not asked for or which the model "
            "does not know.",
        )
    if found.without:
        say(console, f"No images here of {', '.join(found.without)}.")
    for note in found.notes:
        say(console, note)
    if found.classes:
        counted = (Column(n, justify="right") for n in ("images", "right", "accuracy / %"))
        table = Table("class", *counted)
        for each in found.classes:
            share = f"{100 * each.right / each.images:.2f}"
            table.add_row(each.name, f"{each.images:,}", f"{each.right:,}", share)
        console.print(table)
