"""Every scenario over every source against the contract of `clsearch.scenarios.base`."""

from __future__ import annotations

import tempfile
from collections import Counter
from dataclasses import replace
from functools import cache
from pathlib import Path
from typing import Any

import pytest
import torch
from helpers import SOURCES, load_source, make_source, source_config
from layouts import FACTS, facts
from pydantic import ValidationError
from torch import Tensor

from clsearch.data.base import RawData, Samples
from clsearch.errors import InputError
from clsearch.plugins import discover
from clsearch.scenarios._common import Pool, held_out
from clsearch.scenarios.base import InputTransform, Scenario, Task

SCENARIOS = discover("clsearch.scenarios", Scenario)
EVERY = [
    (scenario, source)
    for scenario, kind in SCENARIOS.items()
    for source in (SOURCES if "source" in kind.Options.model_fields else [None])
]
every = pytest.mark.parametrize(("name", "source"), EVERY)
Row = tuple[bytes, str]
EXAMPLES: dict[str, dict[str, Any]] = {
    "object_recognition": {"tasks": ["birds", "letters", "cars", "svhn"], "size": 16},
    "sequence": {
        "tasks": [
            {"source": "digits", "classes": ["4", "2", "3"]},
            {"source": "digits", "classes": [0, 1, 8], "name": "others"},
            {"source": source_config("folder"), "classes": ["ant", "wasp", 2]},
            {"source": "svhn", "classes": [9, 1, 0]},
        ],
        "size": 10,
        "colour": "grey",
    },
    "facts": FACTS,
}
"""Options of the scenarios that cannot do without."""


@pytest.fixture(autouse=True)
def slices(monkeypatch: pytest.MonkeyPatch) -> None:
    """Sources give the first images: 800 or 20 of a class for training, 200 test images."""
    for name, kind in SOURCES.items():

        def load(self: Any, root: Path, download: bool, name: str = name) -> RawData:
            raw = load_source(name)
            head = slice(0, max(800, 20 * len(raw.classes)))
            test = raw.test and Samples(raw.test.inputs[:200], raw.test.labels[:200])
            return replace(
                raw, train=Samples(raw.train.inputs[head], raw.train.labels[head]), test=test
            )

        monkeypatch.setattr(kind, "load", load)


@cache
def facts_root() -> tempfile.TemporaryDirectory[str]:
    """A data folder with a table of facts, kept until the tests end."""
    folder = tempfile.TemporaryDirectory()
    facts(Path(folder.name))
    return folder


def make(name: str, source: str | None = None, **options: Any) -> Any:
    kind = SCENARIOS[name]
    if name == "facts":
        options.setdefault("root", facts_root().name)
    if source is not None:
        options["source"] = source_config(source) if source in SOURCES else source
    if (name, source) == ("split", "actions") and "task_classes" not in options:
        options["class_order"] = list(range(10))  # it has 11, a prime number
    return kind(kind.Options(**{**EXAMPLES.get(name, {}), **options}))


def unpermuted(samples: Samples, task: Task) -> Tensor:
    """Pixels `[N, C, H·W]` in the order of the source."""
    pixels, order = samples.inputs.flatten(2), task.transform.permutation
    return pixels if order is None else pixels[:, :, order.argsort()]


def rows(samples: Samples, task: Task) -> list[Row]:
    """Every image as it was in the source, with the name of its class."""
    pixels = unpermuted(samples, task).numpy()
    names = [task.classes[i] for i in samples.labels.tolist()]
    return [(p.tobytes(), name) for p, name in zip(pixels, names, strict=True)]


def source_rows(source: str) -> Counter[Row]:
    raw = make_source(source).load(Path("unused"), download=False)
    found: Counter[Row] = Counter()
    for part in (raw.train, raw.test):
        if part is not None:
            names = [raw.classes[i] for i in part.labels.tolist()]
            pixels = part.inputs.numpy()
            found.update((p.tobytes(), n) for p, n in zip(pixels, names, strict=True))
    return found


# --- the contract, for every scenario and source --------------------------------------------


@every
def test_tasks_and_samples_have_the_contracts_form(name: str, source: str | None) -> None:
    scenario = make(name, source)
    assert [t.number for t in scenario.tasks] == list(range(1, len(scenario.tasks) + 1))
    assert len({t.name for t in scenario.tasks}) == len(scenario.tasks)
    for task in scenario.tasks:
        data = scenario.data(task.number)
        assert data.task == task
        for part in (data.train, data.validation, scenario.test(task.number)):
            assert part.inputs.dtype == torch.uint8
            assert part.inputs.is_contiguous()
            assert part.inputs.shape == (len(part), *task.shape)
            assert part.labels.dtype == torch.int64
            assert part.labels.unique().tolist() == list(range(len(task.classes)))
        order = task.transform.permutation
        if order is not None:
            assert order.dtype == torch.int64
            assert torch.equal(order.sort().values, torch.arange(task.shape[1] * task.shape[2]))


@every
def test_heads_follow_the_rule(name: str, source: str | None) -> None:
    fixed = "incremental" not in SCENARIOS[name].Options.model_fields
    for incremental in ("task_incremental", "domain_incremental"):
        if fixed and incremental != SCENARIOS[name].incremental:
            continue
        scenario = make(name, source, **({} if fixed else {"incremental": incremental}))
        assert scenario.incremental == incremental
        own = incremental == "task_incremental"
        for task in scenario.tasks:
            assert task.head == (task.number - 1 if own else 0)
        if not own:
            assert len({len(t.classes) for t in scenario.tasks}) == 1


@every
def test_two_instances_agree_whatever_the_global_generator(name: str, source: str | None) -> None:
    first = make(name, source)
    expected = [first.data(t.number).digest for t in first.tasks]
    torch.manual_seed(7)
    state = torch.get_rng_state()
    second = make(name, source)
    assert [second.data(t.number).digest for t in reversed(second.tasks)] == expected[::-1]
    assert torch.equal(state, torch.get_rng_state())
    for task in first.tasks:
        one, other = first.test(task.number), second.test(task.number)
        assert one.digest() == other.digest()


@every
def test_every_image_is_on_one_side_in_all_tasks(name: str, source: str | None) -> None:
    scenario = make(name, source)
    sides: dict[str, set[Row]] = {"train": set(), "validation": set(), "test": set()}
    for task in scenario.tasks:
        data = scenario.data(task.number)
        parts = {
            "train": data.train,
            "validation": data.validation,
            "test": scenario.test(task.number),
        }
        in_task: Counter[Row] = Counter()
        for side, samples in parts.items():
            found = rows(samples, task)
            sides[side].update(found)
            in_task.update(found)
        assert max(in_task.values()) == 1
        if source is not None:  # images and classes are those of the source, pixel by pixel
            assert in_task <= source_rows(source)
    assert not sides["train"] & sides["validation"]
    assert not sides["test"] & (sides["train"] | sides["validation"])


@every
def test_more_tasks_leave_earlier_ones_unchanged(name: str, source: str | None) -> None:
    if "tasks" not in SCENARIOS[name].Options.model_fields:
        pytest.skip(f"{name} has no option `tasks`")
    tasks = EXAMPLES.get(name, {}).get("tasks")
    few, more = (make(name, source, tasks=tasks[:n] if tasks else n) for n in (2, 4))
    assert (len(few.tasks), len(more.tasks)) == (2, 4)
    for number in (1, 2):
        assert few.data(number).digest == more.data(number).digest
        assert few.test(number).digest() == more.test(number).digest()


@every
def test_the_digest_sees_the_task_and_its_samples(name: str, source: str | None) -> None:
    scenario = make(name, source)
    digests = [scenario.data(t.number).digest for t in scenario.tasks]
    for change in ({"split_seed": 1}, {"validation": 0.3}):
        other = make(name, source, **change)
        digests += [other.data(t.number).digest for t in other.tasks]
    assert len(set(digests)) == len(digests)
    assert all(len(d) == 32 for d in digests)


@every
def test_options_as_they_are_stored_make_the_same_tasks(name: str, source: str | None) -> None:
    """A run writes its config with all defaults filled in, and resumes from that."""
    more = {"task_classes": [[0, 1], [2, 3]]} if name == "split" else {}
    scenario = make(name, source, **more)
    stored = scenario.options.model_dump(mode="json")
    again = SCENARIOS[name](SCENARIOS[name].Options(**stored))
    assert again.options == scenario.options
    assert again.data(1).digest == scenario.data(1).digest


@every
def test_the_constructor_reads_no_images(
    name: str, source: str | None, monkeypatch: pytest.MonkeyPatch
) -> None:
    for kind in SOURCES.values():
        monkeypatch.setattr(kind, "load", None)
    assert make(name, source).options.validation == 0.1


@pytest.mark.parametrize("name", SCENARIOS)
def test_options_are_described_and_unknown_ones_refused(name: str) -> None:
    options = SCENARIOS[name].Options
    for key, field in options.model_fields.items():
        assert field.description, key
    for wrong in ({"sorce": "digits"}, {"validation": 0}, {"validation": 1.0}, {"split_seed": -1}):
        with pytest.raises(ValidationError):
            options(**{**EXAMPLES.get(name, {}), **wrong})


def test_object_recognition_is_the_papers_sequence() -> None:
    """Its order, its heads and its sizes (MAS §5.1); the sets' own parts."""
    scenario = make("object_recognition", tasks=SCENARIOS["object_recognition"].Options().tasks)
    names = ["flowers", "scenes", "birds", "cars", "aircraft", "actions", "letters", "svhn"]
    assert [task.name for task in scenario.tasks] == names
    assert [task.head for task in scenario.tasks] == list(range(8))
    assert {task.shape for task in scenario.tasks} == {(3, 16, 16)}
    assert [len(task.classes) for task in scenario.tasks] == [8, 8, 8, 8, 8, 11, 52, 10]
    assert SCENARIOS["object_recognition"].Options().size == 224
    assert scenario.test(2).digest() == load_source("scenes").test.digest()
    raw = load_source("scenes")
    assert scenario.tasks[1].transform.mean == raw.mean
    pair = make("object_recognition", tasks=["birds", "scenes"])
    assert [task.name for task in pair.tasks] == ["birds", "scenes"]
    assert pair.test(2).digest() == scenario.test(2).digest()
    pretrained = make("object_recognition", tasks=["birds", "svhn"], normalise="imagenet")
    for task in pretrained.tasks:
        assert task.transform.mean == (0.485, 0.456, 0.406)
        assert task.transform.std == (0.229, 0.224, 0.225)


# --- the split ------------------------------------------------------------------------------


def test_data_is_read_once(monkeypatch: pytest.MonkeyPatch) -> None:
    kind, calls = SOURCES["digits"], []
    load = kind.load

    def counted(self: Any, root: Path, download: bool) -> RawData:
        calls.append((root, download))
        return load(self, root, download)

    monkeypatch.setattr(kind, "load", counted)
    scenario = make("permuted", root="here", download=True)
    for task in scenario.tasks:
        scenario.data(task.number)
        scenario.test(task.number)
    assert calls == [(Path("here"), True)]


@pytest.mark.parametrize("share", [0.001, 0.1, 0.5, 0.999])
def test_every_class_gives_its_share_and_keeps_one(share: float) -> None:
    raw = load_source("digits")
    scenario = make("permuted", tasks=1, validation=share, test=0.25)
    data, test = scenario.data(1), scenario.test(1)
    for label in range(10):
        n = int((raw.train.labels[:800] == label).sum())
        tested, validated, trained = (
            int((part.labels == label).sum()) for part in (test, data.validation, data.train)
        )
        assert tested == round(0.25 * n)
        assert validated == min(max(round(share * (n - tested)), 1), n - tested - 1)
        assert trained == n - tested - validated


def patched(monkeypatch: pytest.MonkeyPatch, counts: list[int]) -> None:
    """`digits` becomes a set of so many images of each class, every pixel its own number."""
    labels = torch.arange(len(counts)).repeat_interleave(torch.tensor(counts))
    inputs = torch.arange(len(labels)).byte().view(-1, 1, 1, 1).expand(-1, 1, 2, 2)
    names = tuple(map(str, range(len(counts))))
    raw = RawData(Samples(inputs.contiguous(), labels), None, names, 255.0, (0.0,), (1.0,))
    monkeypatch.setattr(SOURCES["digits"], "load", lambda *_: raw)


def test_a_class_of_few_images_keeps_a_sample_to_train_on(monkeypatch: pytest.MonkeyPatch) -> None:
    patched(monkeypatch, [3, 1, 9, 2])
    scenario = make("permuted", validation=0.9)
    data = scenario.data(2)
    assert data.train.labels.unique().tolist() == [0, 1, 2, 3]
    assert data.validation.labels.unique().tolist() == [0, 2]
    assert scenario.test(2).labels.unique().tolist() == [0, 2, 3]


def test_a_task_without_samples_in_a_part_is_refused(monkeypatch: pytest.MonkeyPatch) -> None:
    patched(monkeypatch, [9, 9, 2, 2])
    with pytest.raises(InputError, match=r"^scenario\.validation: 0\.1 .* task 'split-2' valid"):
        _ = make("split").tasks
    patched(monkeypatch, [9, 9, 1, 1])
    with pytest.raises(InputError, match="'split-2'"):
        make("split").data(1)


def test_a_class_that_is_held_out_whole_is_refused(monkeypatch: pytest.MonkeyPatch) -> None:
    """Its validation samples are not to train on."""

    class Whole(Pool):
        def parted(self, samples: Samples, share: float, *stream: str | int) -> Any:
            whole = (samples.labels == 2) & (stream[-1] == "validation")
            out = held_out(samples.labels, share, *stream) | whole
            return samples[~out], samples[out]

    made = make("split", "digits", test=0.1)
    made.pool = Whole(made.source, made.options)
    with pytest.raises(InputError, match="a class of task 'split-2' with training images"):
        _ = made.tasks


# --- permuted -------------------------------------------------------------------------------


def test_stored_pixels_are_the_raw_ones_in_the_transforms_order() -> None:
    scenario = make("permuted", tasks=3)
    plain = scenario.data(1)
    assert plain.task.transform.permutation is None
    orders = []
    for number in (2, 3):
        data = scenario.data(number)
        order = data.task.transform.permutation
        orders.append(order.tolist())
        for stored, raw in ((data.train, plain.train), (data.validation, plain.validation)):
            assert torch.equal(stored.inputs.flatten(2), raw.inputs.flatten(2)[:, :, order])
            assert torch.equal(stored.labels, raw.labels)
        tested = scenario.test(number).inputs.flatten(2)
        assert torch.equal(tested, scenario.test(1).inputs.flatten(2)[:, :, order])
    assert orders[0] != orders[1]
    other = make("permuted", tasks=2, split_seed=1).tasks[1].transform.permutation
    assert other.tolist() != orders[0]


def test_the_first_task_is_permuted_where_asked() -> None:
    scenario = make("permuted", first_identity=False)
    assert scenario.tasks[0].transform.permutation is not None
    second = scenario.tasks[1].transform.permutation
    assert torch.equal(second, make("permuted").tasks[1].transform.permutation)


def test_channels_are_permuted_alike(monkeypatch: pytest.MonkeyPatch) -> None:
    one = torch.arange(6 * 4).byte().view(6, 1, 2, 2)
    samples = Samples(torch.cat([one, one + 100], 1), torch.tensor([0, 1] * 3))
    raw = RawData(samples, samples, ("a", "b"), 255.0, (0.0, 0.0), (1.0, 1.0))
    monkeypatch.setattr(SOURCES["digits"], "load", lambda *_: raw)
    inputs = make("permuted", first_identity=False).data(1).train.inputs
    assert torch.equal(inputs[:, 0] + 100, inputs[:, 1])


def test_digests_stay_what_they_were(monkeypatch: pytest.MonkeyPatch) -> None:
    """A change here makes every journal on disk useless: change it on purpose only."""
    monkeypatch.setattr(SOURCES["digits"], "load", lambda *_: load_source("digits"))
    scenario = make("permuted", tasks=2)
    assert [scenario.data(n).digest for n in (1, 2)] == [
        "1affd153baf81b71292f1294cda1bafd",
        "f66efa9603f040667bbfc99ddf35981f",
    ]
    assert make("split").data(2).digest == "17cdaa542034f201a876a91013ee91c7"


# --- split ----------------------------------------------------------------------------------


def test_classes_are_grouped_in_the_order_given() -> None:
    assert [t.classes for t in make("split").tasks] == [
        ("0", "1"), ("2", "3"), ("4", "5"), ("6", "7"), ("8", "9"),
    ]  # fmt: skip
    scenario = make("split", classes_per_task=3, class_order=[7, 2, 5, 9, 0, 1])
    assert [t.classes for t in scenario.tasks] == [("7", "2", "5"), ("9", "0", "1")]
    data, raw = scenario.data(1), load_source("digits")
    images = {
        i.numpy().tobytes(): int(n) for i, n in zip(raw.train.inputs, raw.train.labels, strict=True)
    }
    was = [images[i.numpy().tobytes()] for i in data.train.inputs]
    assert was == [(7, 2, 5)[label] for label in data.train.labels.tolist()]


@pytest.mark.parametrize(
    ("options", "field", "allowed"),
    [
        ({"classes_per_task": 3}, "scenario.classes_per_task", "a divisor .* 10"),
        ({"tasks": 6}, "scenario.tasks", "1 to 5"),
        ({"class_order": [0, 1, 10, 2]}, "scenario.class_order", "0 to 9"),
        ({"class_order": [0, -1]}, "scenario.class_order", "0 to 9"),
    ],
)
def test_classes_that_do_not_fill_the_tasks_are_refused(
    options: dict[str, Any], field: str, allowed: str
) -> None:
    with pytest.raises(InputError, match=allowed) as caught:
        _ = make("split", **options).tasks
    assert caught.value.field == field


@pytest.mark.parametrize(
    ("options", "field"),
    [
        ({"class_order": [0, 1, 1, 2]}, "scenario.class_order"),
        ({"class_order": [0, 1, 2]}, "scenario.classes_per_task"),
        ({"class_order": [0, 1, 2, 3], "tasks": 3}, "scenario.tasks"),
    ],
)
def test_what_a_class_order_tells_is_checked_at_once(options: dict[str, Any], field: str) -> None:
    with pytest.raises(InputError) as caught:
        make("split", **options)
    assert caught.value.field == field


def test_tasks_have_the_classes_listed_for_them_by_number_or_name() -> None:
    groups = [[7, 2, 5], ["9", "0"]]
    scenario = make("split", task_classes=groups)
    assert [t.classes for t in scenario.tasks] == [("7", "2", "5"), ("9", "0")]
    same = make("split", classes_per_task=3, class_order=[7, 2, 5, 9, 0, 1])
    assert scenario.data(1).digest == same.data(1).digest
    assert len(make("split", task_classes=groups, tasks=1).tasks) == 1
    with pytest.raises(InputError, match=r"^scenario\.incremental: .* 3 and 2"):
        _ = make("split", task_classes=groups, incremental="domain_incremental").tasks


@pytest.mark.parametrize(
    ("options", "field", "allowed"),
    [
        ({"task_classes": [[0, 1], [1, 2]]}, "scenario.task_classes", "Twice: 1"),
        ({"task_classes": [[0, 1], [3, 3]]}, "scenario.task_classes", "Twice: 3"),
        ({"task_classes": [[0, 1], [2, "1"]]}, "scenario.task_classes", "Twice: 1"),
        ({"task_classes": [[0, 1], [2, 10]]}, "scenario.task_classes[1]", "0 to 9, or one of 0, 1"),
        ({"task_classes": [[0, 1], [2, "ten"]]}, "scenario.task_classes[1]", "'ten'"),
        ({"task_classes": [[0, 1], [2, -1]]}, "scenario.task_classes[1]", "-1"),
        ({"task_classes": [[0, 1]], "classes_per_task": 5}, "scenario.classes_per_task", "beside"),
        ({"task_classes": [[0, 1]], "class_order": [0, 1]}, "scenario.class_order", "beside"),
        ({"task_classes": [[0, 1]], "tasks": 2}, "scenario.tasks", "1 to 1: 1 lists of classes"),
    ],
)
def test_class_lists_that_overlap_or_name_no_class_are_refused(
    options: dict[str, Any], field: str, allowed: str
) -> None:
    with pytest.raises(InputError) as caught:
        _ = make("split", **options).tasks
    assert caught.value.field == field
    assert allowed in str(caught.value)


@pytest.mark.parametrize("groups", [[], [[]], [[0, 1], [2]], [[0, True]], [[0, 1.5]], "0 1"])
def test_class_lists_that_are_empty_or_none_are_refused(groups: Any) -> None:
    with pytest.raises(ValidationError):
        SCENARIOS["split"].Options(task_classes=groups)


@pytest.mark.parametrize(
    ("source", "size", "tasks"),
    [("mnist", 2, 5), ("svhn", 2, 5), ("cifar10", 2, 5), ("cifar100", 10, 10)],
)
def test_sets_are_split_as_in_the_papers(source: str, size: int, tasks: int) -> None:
    scenario = make("split", source, classes_per_task=size)
    names = load_source(source).classes
    assert [t.classes for t in scenario.tasks] == [
        names[size * i : size * (i + 1)] for i in range(tasks)
    ]


# --- sequences of sets ----------------------------------------------------------------------


def test_a_sequence_takes_each_task_from_its_set() -> None:
    scenario = make("sequence")
    assert [t.name for t in scenario.tasks] == ["digits-1", "others", "folder-3", "svhn-4"]
    assert [t.classes for t in scenario.tasks][1:] == [
        ("0", "1", "8"), ("ant", "wasp", "cicada"), ("9", "1", "0"),
    ]  # fmt: skip
    assert {t.shape for t in scenario.tasks} == {(1, 10, 10)}
    assert len({t.transform.mean for t in scenario.tasks}) == 3  # one for each set


def test_a_set_in_several_tasks_is_read_and_split_once(monkeypatch: pytest.MonkeyPatch) -> None:
    calls, raw = [], load_source("digits")
    monkeypatch.setattr(SOURCES["digits"], "load", lambda *_: calls.append(1) or raw)
    tasks = [{"source": "digits", "classes": [2 * i, 2 * i + 1]} for i in range(5)]
    scenario = make("sequence", tasks=tasks, size=None, colour=None)
    split = make("split")
    for number in range(1, 6):
        one, other = scenario.data(number), split.data(number)
        assert one.train.digest() == other.train.digest()
        assert one.validation.digest() == other.validation.digest()
    assert len(calls) == 2  # one each


@pytest.mark.parametrize(
    ("options", "field", "said"),
    [
        ({"size": None, "colour": None}, "scenario.tasks", "'digits-1' has 1x8x8, 'folder-3' has"),
        ({"tasks": [{"source": "digits"}, {"source": "digits"}]}, "scenario.tasks[1].classes", "0"),
        ({"tasks": [{"source": "digits", "classes": [0, 11]}]}, "scenario.tasks[0].classes", "11"),
        ({"tasks": [{"source": "digit"}]}, "scenario.tasks[0].source", "digits"),
        ({"tasks": [{"source": "svhn", "name": "digits-2"}, {"source": "digits"}]},
         "scenario.tasks", "Twice: digits-2"),
        ({"tasks": [{"source": "digits"}, {"source": "svhn", "classes": [0, 1]}],
          "incremental": "domain_incremental"}, "scenario.incremental", "10 and 2"),
    ],
)  # fmt: skip
def test_sequences_that_cannot_be_learnt_are_refused(
    options: dict[str, Any], field: str, said: str
) -> None:
    with pytest.raises(InputError) as caught:
        _ = make("sequence", **options).tasks
    assert caught.value.field == field
    assert said in str(caught.value)


def test_cifar10_comes_before_cifar100_in_tens() -> None:
    scenario = make("cifar10_cifar100")
    assert len(scenario.tasks) == 11
    assert scenario.tasks[0].classes == load_source("cifar10").classes
    hundred = load_source("cifar100").classes
    assert [c for t in scenario.tasks[1:] for c in t.classes] == list(hundred)
    assert {len(t.classes) for t in scenario.tasks} == {10}
    assert len({t.transform.mean for t in scenario.tasks}) == 2


def test_a_missing_set_is_refused_when_its_task_is_reached(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.undo()  # the real loaders
    with pytest.raises(InputError, match="cifar-10-batches-bin"):
        _ = make("cifar10_cifar100", root=str(tmp_path)).tasks


# --- what both refuse -----------------------------------------------------------------------


@pytest.mark.parametrize("name", ["permuted", "split"])
def test_unknown_sources_and_task_numbers_are_refused(name: str) -> None:
    with pytest.raises(InputError, match=r"^scenario\.source: 'digit' .* digits, fashion_mnist"):
        make(name, "digit")
    scenario = make(name)
    for number in (0, 6):
        with pytest.raises(InputError, match="1 to 5"):
            scenario.data(number)
        with pytest.raises(InputError, match="1 to 5"):
            scenario.test(number)


def test_normalising_changes_no_input() -> None:
    transform = InputTransform(255.0, (0.5,), (0.25,))
    pixels = torch.full((1, 1, 2, 2), 255.0)
    for _ in range(2):
        assert transform.normalise(pixels).flatten().tolist() == [2.0] * 4
    assert pixels.flatten().tolist() == [255.0] * 4
