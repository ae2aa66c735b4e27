"""Facts learning: distances with wild cards, average precision, a table of facts and its images."""

from __future__ import annotations

import csv
import itertools
from collections.abc import Mapping
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from helpers import Learner, SerialSearcher, SilentProgress, SilentTracker
from layouts import FACTS, facts
from PIL import Image
from sklearn.metrics import average_precision_score
from torch import Tensor
from torch.func import grad, vmap

from clsearch.config import parse_config
from clsearch.consolidation import accuracy
from clsearch.data._facts import Fact
from clsearch.data._words import embed, word_vectors
from clsearch.data.base import Samples
from clsearch.errors import InputError
from clsearch.exports.standalone import model_of
from clsearch.methods.base import ChainState, ImportanceObjective
from clsearch.methods.ewc import fisher
from clsearch.methods.mas import squared_norm
from clsearch.models.base import initial_head, initial_parameters
from clsearch.pruning.scan import threshold_scan
from clsearch.rng import generator
from clsearch.scenarios.facts import Facts, FactsOptions
from clsearch.scenarios.retrieval import Retrieval, average_precision
from clsearch.search.shipping import packed, unpacked
from clsearch.sequence import Found, Search
from clsearch.store import Store, read_commit
from clsearch.system import TaskModel, build_system
from clsearch.training.batch import PackData, Readout, answer
from clsearch.training.importance import mean_moment

VECTORS = torch.tensor(
    [[[1.0, 0], [0, 2], [3, 3]], [[0, 1], [1, 1], [9, 9]], [[2, 2], [9, 9], [9, 9]]]
)
GIVEN = torch.tensor([[True, True, True], [True, True, False], [True, False, False]])
ANSWERS = Retrieval(VECTORS, GIVEN)  # <S,P,O>, <S,P,*>, <S,*,*>


@pytest.fixture(scope="module")
def root(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("facts")
    facts(folder)
    return folder


def scenario(root: Path, **options: Any) -> Facts:
    return Facts(FactsOptions(**{"root": str(root), **FACTS, **options}))


# --- formulas against values worked out by hand ----------------------------------------------


def test_distances_count_what_a_fact_has_and_no_wild_card() -> None:
    outputs = torch.tensor([[1.0, 1, 0, 0, 3, 0]])
    # S: (0,1), P: (0,−2), O: (0,−3): 1 + 4 + 9. S: (1,0), P: (−1,−1): 1 + 2. S: (−1,−1): 2.
    assert (-ANSWERS.judged(outputs, torch.tensor([0]))).tolist() == [
        pytest.approx([14.0, 3.0, 2.0])
    ]
    for label, distance in enumerate((14.0, 3.0, 2.0)):
        assert ANSWERS.losses(outputs, torch.tensor([label])).item() == distance
    # Of zeros: 1 + 4 + 18, 1 + 2 and 8.
    assert ANSWERS.guess(6) == pytest.approx((23 + 3 + 8) / 3)


def test_wild_cards_have_no_gradient() -> None:
    outputs, labels = torch.ones(3, 6), torch.arange(3)
    slopes = vmap(grad(lambda o, y: ANSWERS.losses(o[None], y[None])[0]))(outputs, labels)
    wanted = 2 * (outputs.view(3, 3, 2) - VECTORS) * GIVEN[..., None]
    assert torch.equal(slopes, wanted.flatten(1))


def test_average_precision_by_hand() -> None:
    """Ranks of fact 0's images 1 and 3 of 4: (1/1 + 2/3) / 2; fact 1's 1 and 2: 1."""
    scores = torch.tensor([[0.9, 0.1], [0.8, 0.9], [0.7, 0.2], [0.6, 0.8]])
    labels = torch.tensor([0, 1, 0, 1])
    found = average_precision(scores, labels)
    assert found.tolist() == pytest.approx([(1 + 2 / 3) / 2, 1.0])
    assert ANSWERS.measure(scores[None], labels) == [pytest.approx((5 / 6 + 1) / 2)]


def test_equal_scores_come_in_together_whatever_their_order() -> None:
    labels = torch.tensor([0, 0, 1, 1, 1])
    for order in (torch.arange(5), torch.arange(5).flip(0)):
        constant = average_precision(torch.zeros(5, 2), labels[order])
        assert constant.tolist() == pytest.approx([2 / 5, 3 / 5])


def test_a_fact_without_images_does_not_count() -> None:
    scores = torch.tensor([[0.9, 0.1, 0.0], [0.8, 0.9, 0.0]])
    assert average_precision(scores, torch.tensor([0, 1])).isnan().tolist() == [False, False, True]
    assert ANSWERS.measure(scores[None], torch.tensor([0, 1])) == [1.0]


@pytest.mark.parametrize("levels", [3, 1000])
def test_average_precision_is_that_of_scikit_learn(levels: int) -> None:
    source = torch.Generator().manual_seed(levels)
    scores = torch.randint(levels, (200, 7), generator=source).float()
    labels = torch.randint(7, (200,), generator=source)
    wanted = [average_precision_score(labels == f, scores[:, f]) for f in range(7)]
    assert average_precision(scores, labels).tolist() == pytest.approx(wanted, abs=1e-12)


def test_an_image_of_several_facts_is_ranked_once() -> None:
    """Three rows of two images: without their numbers the other row of the first is irrelevant."""
    scores, labels = torch.tensor([[0.9, 0.9], [0.9, 0.9], [0.1, 0.1]]), torch.tensor([0, 1, 0])
    assert ANSWERS.measure(scores[None], labels) == [pytest.approx((1 / 2 + 2 / 3) / 2 / 2 + 1 / 4)]
    assert ANSWERS.measure(scores[None], labels, torch.tensor([7, 7, 3])) == [1.0]


def test_an_image_that_heads_score_apart_counts_for_a_fact_by_the_row_labelled_with_it() -> None:
    scores = torch.tensor([[0.9, 0.1], [0.2, 0.8], [0.5, 0.5]])
    labels, image = torch.tensor([0, 1, 1]), torch.tensor([4, 4, 5])
    # Fact 0: image 4 by 0.9, then 5. Fact 1: image 4 by 0.8, then 5 by 0.5, both relevant.
    assert average_precision(scores, labels, image).tolist() == [1.0, 1.0]


@pytest.mark.parametrize("levels", [3, 1000])
def test_average_precision_of_images_is_that_of_scikit_learn(levels: int) -> None:
    source = torch.Generator().manual_seed(levels)
    scores = torch.randint(levels, (90, 7), generator=source).float()
    shows = torch.rand(90, 7, generator=source) < 0.3
    rows = shows.nonzero()
    rows = torch.cat([rows, rows[::9]])  # some stand in the table twice
    image, labels = rows[torch.randperm(len(rows), generator=source)].t()
    shown = shows.any(1)
    wanted = [average_precision_score(shows[shown, f], scores[shown, f]) for f in range(7)]
    found = average_precision(scores[image], labels, image)
    assert found.tolist() == pytest.approx(wanted, abs=1e-12)


def test_nearness_does_not_depend_on_what_stands_beside() -> None:
    source = torch.Generator().manual_seed(1)
    vectors = torch.randn(11, 3, 50, generator=source)
    answers = Retrieval(vectors, torch.ones(11, 3, dtype=torch.bool))
    outputs, labels = torch.randn(4, 37, 150, generator=source), torch.zeros(37).long()
    together = answers.judged(outputs, labels)
    for k in range(4):
        alone = torch.cat([answers.judged(o[None], labels[:1]) for o in outputs[k]])
        assert torch.equal(together[k], alone)


# --- the table, the words, the tasks ----------------------------------------------------------


def test_vectors_are_those_of_the_words_and_means_of_several(root: Path) -> None:
    task = scenario(root, groups=1).tasks[0]
    assert isinstance(task.answers, Retrieval)
    number = task.classes.index("person, holding, tennis racket")
    given = word_vectors(root / "facts/words.txt", {"person", "holding", "tennis", "racket"}, "w")
    object_ = (given["tennis"] + given["racket"]) / 2
    wanted = torch.stack([given["person"], given["holding"], object_]).float()
    assert torch.equal(task.answers.vectors[number], wanted)
    assert task.answers.given[task.classes.index("dog")].tolist() == [True, False, False]
    assert task.outputs == 3 * wanted.shape[1]


def test_word_vectors_are_the_same_from_both_kinds_of_files(tmp_path: Path) -> None:
    (tmp_path / "plain.txt").write_text("dog 1.5 2\ncat 3 -4e-1\n")
    (tmp_path / "sizes.txt").write_text("2 2\ndog 1.5 2\ncat 3 -4e-1\n")
    arrays = {"words": np.array(["dog", "cat"]), "vectors": np.array([[1.5, 2], [3, -0.4]])}
    np.savez(tmp_path / "some.npz", **arrays)
    for name in ("plain.txt", "sizes.txt", "some.npz"):
        found = embed({"dog", "Cat", "dog_cat"}, tmp_path / name, "words")
        assert found["dog"].tolist() == [1.5, 2.0]
        assert found["Cat"].tolist() == pytest.approx([3.0, -0.4])
        assert found["dog_cat"].tolist() == pytest.approx([2.25, 0.8])


def test_random_groups_are_disjoint_seeded_and_near_equal(root: Path) -> None:
    first, again, other = (scenario(root, groups=3, split_seed=s) for s in (0, 0, 1))
    groups = [task.classes for task in first.tasks]
    assert groups == [task.classes for task in again.tasks]
    assert groups != [task.classes for task in other.tasks]
    assert sorted(map(len, groups)) == [2, 3, 3]
    assert len({name for group in groups for name in group}) == 8


def test_tasks_are_those_of_the_column(root: Path) -> None:
    names = [set(task.classes) for task in scenario(root).tasks]
    assert names[0] == {"dog", "person", "person, holding, tennis racket", "person, running"}
    assert len(names[1]) == 4


def test_an_image_of_several_facts_is_on_one_side(tmp_path: Path) -> None:
    facts(tmp_path)
    rows = table(tmp_path)
    rows = [{**r, "split": "", "task": ""} for r in rows]
    rows += [{**r, "subject": "person", "predicate": "", "object": ""} for r in rows[::3]]
    write(tmp_path, rows)
    made = scenario(tmp_path, groups=2, validation=0.3, test=0.3)
    sides: dict[bytes, set[str]] = {}
    for task in made.tasks:
        data = made.data(task.number)
        parts = {"train": data.train, "validation": data.validation, "test": made.test(task.number)}
        for side, samples in parts.items():
            for pixels in samples.inputs:
                sides.setdefault(pixels.numpy().tobytes(), set()).add(side)
    assert {len(where) for where in sides.values()} == {1}
    assert set.union(*sides.values()) == {"train", "validation", "test"}


def test_images_beyond_memory_make_the_same_tasks(root: Path, tmp_path: Path) -> None:
    kept = scenario(root)
    streamed = scenario(root, memory=0, cache=str(tmp_path))
    for task in kept.tasks:
        assert streamed.data(task.number).digest == kept.data(task.number).digest
    assert any(tmp_path.rglob("*.images"))


@pytest.mark.parametrize("seed", range(20))
def test_a_fact_that_images_show_second_keeps_one_to_train_on(seed: int, tmp_path: Path) -> None:
    """Two of the twelve dogs run too: both would be held out by their first fact in some splits."""
    facts(tmp_path)
    rows = [{**row, "split": "", "task": ""} for row in table(tmp_path)]
    rows += [{**row, "predicate": "sitting"} for row in rows[:2]]
    write(tmp_path, rows)
    words = tmp_path / "facts/words.txt"
    words.write_text(words.read_text().split("\n", 1)[1] + "sitting 1 2 3 4 5 6\n")
    made = scenario(tmp_path, groups=1, validation=0.3, test=0.3, split_seed=seed)
    assert made.data(1).train.labels.unique().tolist() == list(range(9))


def test_images_are_numbered_where_some_show_several_facts(root: Path, tmp_path: Path) -> None:
    assert scenario(root).data(1).validation.image is None
    several(tmp_path)
    streamed = scenario(tmp_path, memory=0, cache=str(tmp_path / "cache"))
    for task, rows in zip(scenario(tmp_path).tasks, (48 + 24, 48 + 21), strict=True):
        data, test = streamed.data(task.number), streamed.test(task.number)
        assert len(data.train) + len(data.validation) + len(test) == rows
        assert data.digest == scenario(tmp_path).data(task.number).digest
        for samples in (data.train, data.validation, test):
            assert samples.image is not None
            pixels = [one.numpy().tobytes() for one in samples.inputs]
            for i, j in itertools.combinations(range(len(samples)), 2):
                assert (samples.image[i] == samples.image[j]) == (pixels[i] == pixels[j])


def test_which_samples_are_of_one_image_is_in_the_digest() -> None:
    inputs, labels = torch.zeros(3, 1, 2, 2, dtype=torch.uint8), torch.tensor([0, 1, 0])
    numbers = [None, torch.tensor([0, 1, 2]), torch.tensor([0, 0, 1])]
    assert len({Samples(inputs, labels, image).digest() for image in numbers}) == 3


def test_numbers_of_images_reach_the_workers(tmp_path: Path) -> None:
    several(tmp_path)
    part = scenario(tmp_path).data(1)
    sent = unpacked(packed(part))
    assert sent.validation.digest() == part.validation.digest()
    assert sent.validation.image is not None


def test_the_vectors_are_part_of_the_digest(tmp_path: Path) -> None:
    facts(tmp_path)
    before = scenario(tmp_path).data(1).digest
    words = tmp_path / "facts/words.txt"
    words.write_text(words.read_text().replace("dog ", "CAT ").replace("cat ", "dog ").lower())
    assert scenario(tmp_path).data(1).digest != before


def several(root: Path) -> None:
    """The layout, where who runs or holds a racket is a person too, and cats and nine dogs are
    horses: facts of the same task, and of the other."""
    facts(root)
    rows = table(root)
    second = {"predicate": "", "object": ""}
    rows += [
        {**r, **second, "subject": "person"} for r in rows if r["predicate"] and r["task"] == "1"
    ]
    rows += [{**r, **second, "subject": "horse", "task": "2"} for r in rows[:9] + rows[48:60]]
    write(root, rows)


def table(root: Path) -> list[dict[str, str]]:
    with (root / "facts/facts.csv").open(newline="") as stream:
        return list(csv.DictReader(stream))


def write(root: Path, rows: list[dict[str, str]]) -> None:
    with (root / "facts/facts.csv").open("w", newline="") as stream:
        writer = csv.DictWriter(stream, list(rows[0]))
        writer.writeheader()
        writer.writerows(rows)


WRONG: dict[str, tuple[dict[str, str], str, str]] = {
    "no vector": ({"object": "flying saucer"}, "words", "2 of 11 have none, the first is 'flying'"),
    "no image": ({"image": "none.png"}, "images", "1 of 96 are missing, the first is 'none.png'"),
    "no path": ({"image": " "}, "path", "an `image` in every row"),
    "no subject": ({"subject": ""}, "path", "in 1 of 96 rows, the first in line 2"),
    "no task": ({"task": ""}, "path", "In line 2 fact 'dog' has ''"),
    "two tasks": ({"task": "2"}, "path", "'dog' is in another task"),
    "no such task": ({"task": "4", "subject": "cat", "object": "dog"}, "path", "Task 3 has 0"),
    "a fact alone": ({"task": "3", "subject": "cat", "object": "dog"}, "path", "Task 3 has 1"),
    "no part": ({"split": ""}, "path", "`train` or `test` in every row"),
    "both parts": ({"split": "test", "image": "photos/1.jpg"}, "path", "every image either in"),
}


@pytest.mark.parametrize("wrong", WRONG)
def test_what_is_wrong_with_a_row_is_said(wrong: str, tmp_path: Path) -> None:
    change, field, said = WRONG[wrong]
    facts(tmp_path)
    rows = table(tmp_path)
    assert str(Fact(*(rows[0][k] for k in ("subject", "predicate", "object")))) == "dog"
    write(tmp_path, [{**rows[0], **change}, *rows[1:]])
    with pytest.raises(InputError, match=f"scenario.{field}: ") as error:
        scenario(tmp_path).tasks  # noqa: B018 - reading is what is wrong
    assert said in str(error.value)


@pytest.mark.parametrize(
    ("column", "said"),
    [
        ("predicate", "Missing: predicate"),
        ("subject", "Missing: subject"),
        ("task", "Give `groups` to split facts at random"),
    ],
)
def test_a_missing_column_is_named(column: str, said: str, tmp_path: Path) -> None:
    facts(tmp_path)
    write(tmp_path, [{k: v for k, v in row.items() if k != column} for row in table(tmp_path)])
    with pytest.raises(InputError, match=said):
        scenario(tmp_path).tasks  # noqa: B018


def test_an_empty_column_of_subjects_is_refused(tmp_path: Path) -> None:
    facts(tmp_path)
    write(tmp_path, [{**row, "subject": ""} for row in table(tmp_path)])
    with pytest.raises(InputError, match="in 96 of 96 rows"):
        scenario(tmp_path).tasks  # noqa: B018


@pytest.mark.parametrize("groups", [5, 9])
def test_more_groups_than_pairs_of_facts_are_refused(groups: int, root: Path) -> None:
    with pytest.raises(InputError, match=r"scenario.groups: .* 1 to 4"):
        scenario(root, groups=groups).tasks  # noqa: B018


@pytest.mark.parametrize(
    ("text", "said"),
    [
        ("dog 1 x\n", "line 1"),
        ("dog 1 2\ncat 1\n", "one length"),
        ("dog 1 nan\n", "'dog' is otherwise"),
        ("dog 1 1e39\n", "'dog' is otherwise"),
        ("dog 0 0\n", "'dog' is otherwise"),
        ("dog 1 2\n", "the first is 'cat'"),
        ("dog\ncat\n", "of 0 numbers"),
    ],
)
def test_damaged_word_vectors_are_refused(text: str, said: str, tmp_path: Path) -> None:
    (tmp_path / "words.txt").write_text(text)
    with pytest.raises(InputError, match=said):
        embed({"dog", "cat"}, tmp_path / "words.txt", "words")


# --- learning ---------------------------------------------------------------------------------


def whole(root: Path, method: str | Mapping[str, Any], **sections: Any) -> Any:
    entry = {"name": method} if isinstance(method, str) else dict(method)
    return parse_config(
        {
            "name": "facts",
            "scenario": {"name": "facts", "root": str(root), **FACTS},
            "model": {"name": "mlp", "hidden": [24, 16]},
            "methods": [entry],
            "training": {"epochs": 3, "batch_size": 16},
            "search": {"grid": {"lr": [0.003, 0.01]}},
            "selection": {"margin": 5, "thresholds": 6},
            **sections,
        }
    )


def run(config: Any, out: Path) -> tuple[Search, Found, Store]:
    store = Store(str(out / "checkpoints"))
    search = Search(config, out, store)
    return search, search.run(SerialSearcher(), SilentTracker(), SilentProgress()), store


METHODS: list[str | dict[str, Any]] = [
    *("finetune", "l2", "mas", "ewc", "si", "clnp", "joint", "from_scratch"),
    {"name": "imm", "options": {"merge": "mode", "importance": "fisher"}},
    {"name": "mas", "options": {"scope": "local"}, "regularizers": [{"name": "slni"}]},
]


@pytest.mark.parametrize("incremental", ["domain_incremental", "task_incremental"])
@pytest.mark.parametrize("method", METHODS, ids=str)
def test_methods_learn_facts(
    method: str | dict[str, Any], incremental: str, root: Path, tmp_path: Path
) -> None:
    """Two tasks through trials, scan, selection and commit; better than a constant network."""
    place = {"name": "facts", "root": str(root), **FACTS, "incremental": incremental}
    search, found, store = run(
        whole(root, method, scenario=place, training={"epochs": 8, "batch_size": 16}), tmp_path
    )
    assert set(found.trials.statuses) == {"COMPLETE"}
    assert [r.selection.outcome for r in found.results] == ["selected"] * 2
    constant = 1 / 4  # four facts of as many images
    for result in found.results:
        assert result.test[-1] > 1.4 * constant
        assert result.selection.accuracy >= result.selection.best - 0.05
    stored = read_commit(store, found.results[-1].commit)
    assert stored is not None
    state, _ = stored
    task, system = search.tasks[1], search.systems[0]
    model, data = system.model(state, task), search.held_out.test(task)
    assert model is not None
    assert accuracy(model, task, data) == found.results[-1].test[1]
    described = model_of(system, state, task).describe()["output"]
    assert described["shape"] == ["N", 18]
    assert described["is"].startswith("embeddings")


def test_clnp_forgets_no_fact_to_the_last_bit(root: Path, tmp_path: Path) -> None:
    search, found, store = run(whole(root, "clnp"), tmp_path)
    first, second = (read_commit(store, r.commit) for r in found.results)
    assert first is not None
    assert second is not None
    assert torch.equal(embeddings(search, first[0]), embeddings(search, second[0]))
    assert found.results[0].test[0] == found.results[1].test[0]


def embeddings(search: Search, state: ChainState) -> Tensor:
    system, task = search.systems[0], search.tasks[0]
    data = PackData.of([search.scenario.data(1)], torch.device("cpu")).validation
    (batch,) = data.batches(len(data))
    gates = system.method.gates(state.state, task)
    return answer(system.backbone, state.params, batch.x, Readout.of([task]), gates)[0]


def test_the_fast_scan_finds_what_a_forward_at_every_threshold_does(root: Path) -> None:
    made = scenario(root)
    system = build_system(whole(root, "finetune"), 0, made.tasks[0].shape)
    backbone, rng = system.backbone, generator("scan")
    data = PackData.of([made.data(1)], torch.device("cpu"))
    params = initial_parameters(backbone, rng)
    params |= initial_head(0, made.tasks[0].outputs, backbone.features, rng)
    activity = {u.name: torch.rand(u.units, generator=rng) for u in backbone.unit_layers}
    prunable = system.method.prunable({})
    arguments = (params, data.readout, None, prunable, activity, data.validation, 9, 7)
    for point in threshold_scan(backbone, *arguments):
        gates = {name: a > point.threshold for name, a in activity.items()}
        model = TaskModel(backbone, params, 0, gates)
        wanted = accuracy(model, made.tasks[0], data.validation)
        assert point.accuracy == pytest.approx(wanted, abs=1e-6)


def test_importance_is_the_mean_moment_of_each_samples_gradient(root: Path) -> None:
    """Of the squared norm of the embeddings for MAS, of the distance from the fact for EWC."""
    made = scenario(root)
    task, data = made.tasks[0], PackData.of([made.data(1)], torch.device("cpu"))
    system = build_system(whole(root, "finetune"), 0, task.shape)
    backbone, rng = system.backbone, generator("importance")
    params = initial_parameters(backbone, rng)
    params |= initial_head(0, task.outputs, backbone.features, rng)
    train = data.train.part(torch.arange(9))
    (batch,) = train.batches(9)
    for objective in (ImportanceObjective(squared_norm, "magnitude"), fisher("empirical", task)):
        found = mean_moment(backbone, params, train, data.readout, None, list(params), objective, 4)
        leaves = {name: value.clone().requires_grad_() for name, value in params.items()}
        outputs, _ = answer(backbone, leaves, batch.x, data.readout, None)
        total = {name: torch.zeros_like(value) for name, value in params.items()}
        for value in objective.value(outputs, batch.y):
            slopes = torch.autograd.grad(value, list(leaves.values()), retain_graph=True)
            for name, slope in zip(leaves, slopes, strict=True):
                total[name] += (slope.abs() if objective.moment == "magnitude" else slope**2) / 9
        for name, wanted in total.items():
            torch.testing.assert_close(found[name], wanted, rtol=1e-4, atol=1e-6)


def test_members_of_a_pack_learn_facts_as_alone(root: Path) -> None:
    made = scenario(root)
    chain = Learner(whole(root, "clnp"), [made.data(1), made.data(2)], True)
    start = chain.begin(None, 1)
    hypers = [{"lr": 0.001 * (k + 1), "l1": 1e-5 * k} for k in range(5)]
    for hyper, member in zip(hypers, chain.train(start, 1, hypers), strict=True):
        (alone,) = chain.train(start, 1, [hyper])
        assert alone.curve == member.curve
        assert all(
            torch.equal(v, (member.params or {})[n]) for n, v in (alone.params or {}).items()
        )


@pytest.mark.parametrize("method", ["clnp", "joint"])
def test_selection_and_test_rank_images(method: str, tmp_path: Path) -> None:
    """Epochs, thresholds for each layer and commits all measure what scikit-learn does."""
    several(tmp_path)
    limits = {"margin": 5, "thresholds": 6, "per_layer": method == "clnp"}
    search, found, store = run(whole(tmp_path, method, selection=limits), tmp_path)
    state, _ = read_commit(store, str(found.results[-1].commit)) or (None, {})
    assert state is not None
    task, system = search.tasks[-1], search.systems[0]
    model = system.model(state, task)
    assert model is not None
    parts = [search.scenario.data(number) for number in (1, 2)]
    ranked = PackData.of(parts if method == "joint" else parts[1:], torch.device("cpu"))
    selection = found.results[-1].selection
    kept = selection.validation_accuracy if method == "joint" else selection.accuracy  # not pruned
    assert kept == pytest.approx(by_image(model, ranked), abs=1e-6)
    test = search.held_out.test(task)
    one = replace(PackData.of(parts[1:], torch.device("cpu")), validation=test)
    assert found.results[-1].test[1] == pytest.approx(by_image(model, one), abs=1e-6)


def by_image(model: TaskModel, data: PackData) -> float:
    """MAP over the distinct images of the validation part."""
    split, answers = data.validation, data.readout.answers
    assert isinstance(answers, Retrieval)
    (batch,) = split.batches(len(split))
    outputs, _ = answer(model.backbone, model.params, batch.x, data.readout, model.gates)
    near, shows = {}, dict[bytes, set[int]]()
    for pixels, scores, label in zip(
        split.inputs, answers.judged(outputs, batch.y), batch.y, strict=True
    ):
        key = pixels.numpy().tobytes()
        near[key] = scores.detach().numpy()
        shows.setdefault(key, set()).add(int(label))
    assert len(near) < len(split)
    table = np.stack(list(near.values()))
    relevant = np.array([[f in s for f in range(len(answers.vectors))] for s in shows.values()])
    return float(
        np.mean([average_precision_score(r, s) for r, s in zip(relevant.T, table.T, strict=True)])
    )


def test_joint_ranks_the_images_of_all_tasks(root: Path) -> None:
    made = scenario(root)
    both = PackData.of([made.data(1), made.data(2)], torch.device("cpu"))
    assert both.train.labels.unique().tolist() == list(range(8))
    answers = both.readout.answers
    assert isinstance(answers, Retrieval)
    parts = [task.answers for task in made.tasks]
    assert torch.equal(answers.vectors, torch.cat([p.vectors for p in parts]))  # type: ignore[attr-defined]


def test_heads_side_by_side_answer_each_sample_with_its_own() -> None:
    outputs = torch.arange(24.0).view(2, 12)
    own = torch.zeros(2, 12, dtype=torch.bool)
    own[0, :6], own[1, 6:] = True, True
    assert torch.equal(ANSWERS.own(outputs, own), torch.stack([outputs[0, :6], outputs[1, 6:]]))


@pytest.mark.parametrize(
    ("method", "field"),
    [
        ("lwf", "methods[0].name"),
        ("ebll", "methods[0].name"),
        ({"name": "ewc", "options": {"fisher": "true"}}, "methods[0].options.fisher"),
    ],
)
def test_methods_that_need_classes_are_refused(
    method: str | dict[str, Any], field: str, root: Path, tmp_path: Path
) -> None:
    with pytest.raises(InputError) as error:
        Search(whole(root, method), tmp_path, Store(str(tmp_path / "checkpoints")))
    assert error.value.field == field


def test_channels_learn_facts(root: Path, tmp_path: Path) -> None:
    """CLNP on its narrow convolutional network, images of 32x32."""
    place = {"name": "facts", "root": str(root), **FACTS, "size": 32}
    sections = {"model": {"name": "clnp_narrow"}, "training": {"epochs": 1, "batch_size": 32}}
    search, found, store = run(
        whole(root, "clnp", scenario=place, search={"grid": {}}, **sections), tmp_path
    )
    assert [r.selection.outcome for r in found.results] == ["selected"] * 2
    first, second = (read_commit(store, r.commit) for r in found.results)
    assert first is not None
    assert second is not None
    assert torch.equal(embeddings(search, first[0]), embeddings(search, second[0]))


def test_layers_are_pruned_and_fine_tuned_by_mean_average_precision(
    root: Path, tmp_path: Path
) -> None:
    """The per-layer search keeps the measure above the floor; fine-tuning follows; still no
    forgetting."""
    method = {"name": "clnp", "fine_tune": {"epochs": 2, "lr": 0.001}}
    selection = {"margin": 5, "thresholds": 6, "per_layer": True}
    search, found, store = run(whole(root, method, selection=selection), tmp_path)
    for result in found.results:
        assert result.selection.outcome == "selected"
        assert result.selection.accuracy >= result.selection.best - 0.05
    first, second = (read_commit(store, str(r.commit)) for r in found.results)
    assert first is not None
    assert second is not None
    assert torch.equal(embeddings(search, first[0]), embeddings(search, second[0]))


def test_images_are_the_files_of_the_table(root: Path) -> None:
    made = scenario(root)
    data, row = made.data(1), table(root)[0]
    with Image.open(root / "facts" / row["image"]) as image:
        pixels = torch.from_numpy(np.array(image)).permute(2, 0, 1)
    parts = [data.train, data.validation, made.test(1)]
    dog = made.tasks[0].classes.index("dog")
    same = [
        int(label)
        for p in parts
        for x, label in zip(p.inputs, p.labels, strict=True)
        if torch.equal(x, pixels)
    ]
    assert same == [dog]
