"""The figures of a report: nothing overlaps or is cut, and lines can be told apart in grey."""

from __future__ import annotations

import io
import itertools
from collections.abc import Iterator
from dataclasses import replace
from typing import Any

import numpy as np
import pytest
from made_up import accounted, run, told
from matplotlib import rc_context
from matplotlib.figure import Figure
from matplotlib.text import Text
from PIL import Image

from clsearch.records import Chain, LayerCapacity, Round, Selection, TaskResult
from clsearch.report.canvas import WIDTH, fit, inches, legend, method_handles, style
from clsearch.report.content import document
from clsearch.report.document import Drawing
from clsearch.report.drawing import LOOK
from clsearch.report.source import labelled
from clsearch.report.trial_figures import CHOSEN

LONG = [
    "clnp",
    *(f"a-method-whose-label-is-as-long-as-labels-may-be-and-{i}-{'w' * 9}" for i in "12345"),
]


def texts(figure: Figure, monkeypatch: pytest.MonkeyPatch) -> Iterator[tuple[str, Any]]:
    """Every text that is drawn, with its box in pixels."""
    drawn: list[Text] = []
    draw = Text.draw

    def recorded(self: Text, renderer: Any) -> None:
        if self.get_visible() and self.get_text().strip():
            drawn.append(self)
        draw(self, renderer)

    with monkeypatch.context() as patch:
        patch.setattr(Text, "draw", recorded)
        figure.draw_without_rendering()
    for text in drawn:
        yield text.get_text(), text.get_window_extent()


def faults(drawing: Drawing, monkeypatch: pytest.MonkeyPatch) -> list[str]:
    """Texts that overlap, by more than a pixel each way, or leave the figure."""
    with rc_context(LOOK):
        figure = drawing.draw()
        found = list(texts(figure, monkeypatch))
    assert figure.get_figwidth() == WIDTH
    right, top = figure.bbox.width, figure.bbox.height
    wrong = [
        f"{drawing.name}: {text!r} is cut"
        for text, box in found
        if box.x0 < -1 or box.y0 < -1 or box.x1 > right + 1 or box.y1 > top + 1
    ]
    for (one, a), (other, b) in itertools.combinations(found, 2):
        across, down = min(a.x1, b.x1) - max(a.x0, b.x0), min(a.y1, b.y1) - max(a.y0, b.y0)
        if across > 1 and down > 1:
            wrong.append(f"{drawing.name}: {one!r} and {other!r} overlap")
    return wrong


def bettered(result: TaskResult, by: float) -> TaskResult:
    """As if the best trial had reached more."""
    s = result.selection
    return result if s.best is None else replace(result, selection=replace(s, best=s.best + by))


@pytest.mark.parametrize("tasks", [1, 2, 5, 10, 25])
@pytest.mark.parametrize("methods", [["clnp"], LONG], ids=["one-method", "six-long-labels"])
def test_no_texts_overlap_and_none_is_cut(
    methods: list[str], tasks: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    end = ("clnp", 1, tasks) if tasks > 1 else None
    records, results = accounted(run(methods, tasks, seeds=2, end=end))
    made = records, [bettered(r, 0.05 * r.selection.seed) for r in results]
    name = "an-experiment-with-a-name-that-goes-on-and-on-to-its-64th-letter"
    drawings = document(labelled([told(made, tasks, name)])).drawings
    shared = ("accuracy", "accuracy_by_task", "accuracy_matrix", "capacity")
    if len(methods) > 1:  # of the others' own figures, those of one method say as much
        drawings = [d for d in drawings if d.name in (*shared, f"tradeoff_{methods[1]}")]
    kinds = {"tradeoff", "scan", "hyperparameters", "parallel", "capacity"}
    own = {f"{kind}_clnp" for kind in kinds} if len(methods) == 1 else {f"tradeoff_{methods[1]}"}
    assert {d.name for d in drawings} == {*shared, *own}
    assert [fault for d in drawings for fault in faults(d, monkeypatch)] == []


def test_many_layers_and_hyperparameters_fit(monkeypatch: pytest.MonkeyPatch) -> None:
    layers = tuple(f"features.block{i}.convolution" for i in range(13))
    units, hypers = (4096,) * 13, {f"l1.convolution{i}": 1.23456e-5 * i for i in range(9)}

    def many(selection: Selection) -> Selection:
        candidates = tuple(
            replace(c, hyperparameters={n: v * (i + 1) for n, v in hypers.items()})
            for i, c in enumerate(selection.candidates * 10)
        )
        return replace(
            selection, layers=layers, units=units, free=units, candidates=candidates,
            hyperparameters=candidates[0].hyperparameters,
        )  # fmt: skip

    records, results = run(["clnp"], 10)
    account = tuple(LayerCapacity(name, 4096, 9, 5, 3) for name in layers)
    results = [replace(r, selection=many(r.selection), capacity=account) for r in results]
    drawings = document(labelled([told((records, results), 10)])).drawings
    kinds = ("capacity", "hyperparameters", "parallel")
    chosen = [d for d in drawings if d.name.partition("_")[0] in kinds]
    assert len(chosen) == 4
    assert [fault for d in chosen for fault in faults(d, monkeypatch)] == []


def test_a_chain_without_any_learned_task_is_drawn(monkeypatch: pytest.MonkeyPatch) -> None:
    made = told(run(["clnp", "ewc"], 2, end=("ewc", 0, 1)), 2)
    drawings = document(labelled([made])).drawings
    assert "tradeoff_ewc" in {d.name for d in drawings}
    assert [fault for d in drawings for fault in faults(d, monkeypatch)] == []


def test_lines_of_methods_differ_in_grey() -> None:
    """Each sample of a legend, without its colour, differs from every other's by its marker or its
    line."""
    samples = []
    for i in range(12):
        figure = Figure(figsize=(1, 0.3), dpi=200)
        look = {**style(i), "color": "#555555"}
        figure.add_axes((0, 0, 1, 1), frameon=False).plot([0, 0.5, 1], [0.5] * 3, **look)
        stream = io.BytesIO()
        figure.savefig(stream)
        samples.append(np.asarray(Image.open(stream).convert("L"), dtype=float))
    for one, other in itertools.combinations(samples, 2):
        assert np.count_nonzero(np.abs(one - other) > 60) > 40


def test_the_parts_of_a_bar_differ_in_grey() -> None:
    """The stack of a capacity bar: neighbours differ in brightness, or one of them is hatched."""
    from matplotlib.colors import to_rgb

    from clsearch.report.capacity_figures import _PARTS

    def brightness(look: dict[str, Any]) -> float:
        return float(np.dot(to_rgb(look["facecolor"]), (0.299, 0.587, 0.114)))

    for one, other in itertools.pairwise(_PARTS.values()):
        hatched = bool(one.get("hatch")) != bool(other.get("hatch"))
        assert abs(brightness(one) - brightness(other)) > 0.25 or hatched


def test_a_label_is_cut_in_its_middle() -> None:
    """What tells long labels apart often stands at their ends."""
    cut = fit("mas-with-slni-and-lambda-0.1", 8, 1.0)
    assert cut.startswith("mas-")
    assert cut.endswith("0.1")
    assert inches(cut, 8) <= 1.0
    assert fit("mas", 8, 1.0) == "mas"


def test_figures_are_the_same_every_time() -> None:
    made = told(accounted(run(["clnp", "ewc"], 2)), 2)
    first, again = (document(labelled([made])).drawings for _ in range(2))
    for one, other in zip(first[:2], again[:2], strict=True):
        pictures = []
        for drawing in (one, other):
            stream = io.BytesIO()
            with rc_context(LOOK):
                drawing.draw().savefig(stream, format="svg", metadata={"Date": None})
            pictures.append(stream.getvalue())
        assert pictures[0] == pictures[1]


def test_the_star_is_the_model_that_was_kept() -> None:
    """Fine-tuned after pruning, a model lies elsewhere than the trial that was selected."""
    records, (result,) = run(["clnp"], 1)
    s = result.selection
    assert s.best is not None
    done = Round("t" * 32, 0.8, 0.95, 0.7, True, "it recovered")
    tuned = replace(s, trial_key="t" * 32, accuracy=0.95, sparsity=0.7, rounds=(done,))
    stars = {}
    for name, selection in (("plain", s), ("tuned", tuned)):
        made = told((records, [replace(result, selection=selection)]), 1)
        drawing = next(d for d in document(labelled([made])).drawings if d.name == "tradeoff_clnp")
        lines = [line for line in drawing.draw().axes[0].get_lines() if line.get_marker() == "*"]
        stars[name] = {
            line.get_color(): (line.get_xdata()[0], line.get_ydata()[0]) for line in lines
        }  # type: ignore[index]
    (won,) = (c for c in s.candidates if c.chosen)
    pruned = (100 * won.sparsity, 100 * ((won.accuracy or 0) - s.best))
    assert stars["plain"] == {CHOSEN: pytest.approx(pruned)}
    kept = (70.0, 100 * (0.95 - s.best))
    assert stars["tuned"] == {CHOSEN: pytest.approx(kept), "white": pytest.approx(pruned)}


def test_titles_say_how_many_seeds_and_what_each_reached() -> None:
    records, results = run(["clnp", "ewc"], 1, seeds=2)
    one = [
        bettered(r, 0.05 * r.selection.seed)
        for r in results
        if r.selection.chain != Chain("ewc", 1)
    ]
    drawings = {d.name: d for d in document(labelled([told((records, one), 1)])).drawings}
    titles = [t.get_text() for t in drawings["tradeoff_clnp"].draw().findobj(Text)]
    assert "task 1: best 94.9-99.9 %" in titles
    titles = [t.get_text() for t in drawings["accuracy"].draw().findobj(Text)]
    assert any("(mean ± standard deviation, 1-2 seeds)" in t for t in titles)


def test_a_trial_that_gains_by_pruning_stays_in_its_panel() -> None:
    records, results = run(["clnp"], 2)
    s = results[1].selection
    assert s.best is not None
    won = tuple(replace(c, accuracy=s.best + 0.04) if c.chosen else c for c in s.candidates)
    gained = replace(s, accuracy=s.best + 0.04, candidates=won)
    made = told((records, [results[0], replace(results[1], selection=gained)]), 2)
    drawings = {d.name: d for d in document(labelled([made])).drawings}
    for name in ("tradeoff_clnp", "scan_clnp"):
        for axis in drawings[name].draw().axes:
            low, high = axis.get_ylim()
            stars = [line for line in axis.get_lines() if line.get_marker() == "*"]
            assert all(low <= y < high for line in stars for y in np.asarray(line.get_ydata()))
            assert high > 4


def test_points_of_trials_are_pixels_in_an_svg() -> None:
    made = told(run(["ewc"], 1, seeds=2), 1)
    drawing = next(d for d in document(labelled([made])).drawings if d.name == "tradeoff_ewc")
    stream = io.BytesIO()
    with rc_context(LOOK):
        drawing.draw().savefig(stream, format="svg")
    assert b"<image" in stream.getvalue()


def test_a_legend_never_leaves_the_figure() -> None:
    figure = Figure(figsize=(WIDTH, 2))
    found = run(LONG, 1)
    handles = method_handles(told(found, 1).methods)
    legend(figure, handles)
    figure.draw_without_rendering()
    assert figure.legends[0].get_window_extent().x1 <= figure.bbox.width
