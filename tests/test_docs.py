"""The docs say what the code does: references in step, links there, the README's method works."""

from __future__ import annotations

import re
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path

import pytest
from command import environment
from faults import registry

from clsearch.data.base import Source
from clsearch.methods.base import Method
from clsearch.models.base import Backbone
from clsearch.plugins import discover
from clsearch.reference import command_line, configuration, methods_page
from clsearch.regularizers.base import Regularizer
from clsearch.scenarios.base import Scenario

ROOT = Path(__file__).parent.parent
PLUGINS = {
    "clsearch.data": Source,
    "clsearch.scenarios": Scenario,
    "clsearch.models": Backbone,
    "clsearch.methods": Method,
    "clsearch.regularizers": Regularizer,
}
PAGES = [ROOT / "README.md", ROOT / "CHANGELOG.md", *sorted((ROOT / "docs").glob("*.md"))]


@pytest.mark.parametrize(
    ("page", "generated"), [("configuration.md", configuration), ("methods.md", methods_page)]
)
def test_the_references_are_in_step(page: str, generated: Callable[[], str]) -> None:
    written = (ROOT / "docs" / page).read_text(encoding="utf-8")
    assert written == generated(), "run `python -m clsearch.reference docs`"


def test_every_command_and_option_stands_in_the_docs() -> None:
    """Layout depends on the version of typer; commands, options and their words do not."""

    def words(text: str) -> set[str]:
        return set(re.findall(r"--?[a-z][\w-]*|`clsearch [a-z]+`", text))

    written = (ROOT / "docs" / "command-line.md").read_text(encoding="utf-8")
    assert words(written) == words(command_line()), "run `python -m clsearch.reference docs`"


@pytest.mark.parametrize("page", PAGES, ids=lambda p: p.name)
def test_links_lead_somewhere(page: Path) -> None:
    for target in re.findall(r"\]\(([^)#]+)\)", page.read_text(encoding="utf-8")):
        if "://" not in target:
            assert (page.parent / target).exists(), target


def test_the_page_on_reliability_names_every_fault() -> None:
    written = " ".join((ROOT / "docs" / "reliability.md").read_text(encoding="utf-8").split())
    assert not [name for name in registry() if name not in written]


def test_the_reference_names_every_plug_in() -> None:
    pages = [ROOT / "docs" / name for name in ("configuration.md", "methods.md")]
    written = "".join(page.read_text(encoding="utf-8") for page in pages)
    for package, base in PLUGINS.items():
        for name in discover(package, base):
            assert f"### `{name}`" in written, name


def test_licences_of_the_sets_are_those_of_their_table() -> None:
    page = (ROOT / "docs" / "scenarios.md").read_text(encoding="utf-8")
    rows = [[cell.strip() for cell in line.split("|")] for line in page.splitlines()]
    table = {row[1].strip("`"): row[4] for row in rows if len(row) == 7}
    sources = {
        name: kind.licence
        for name, kind in discover("clsearch.data", Source).items()
        if not kind.needs_options()
    }
    assert sources == {name: table[name] for name in sources}


def test_the_readme_is_filled_in_and_names_files_that_are_there() -> None:
    readme = (ROOT / "README.md").read_text(encoding="utf-8")
    assert not re.findall(r"^[A-Z_]+$", readme, re.M)
    for path in re.findall(r"experiments/[\w.]+\.yaml", readme):
        assert (ROOT / path).is_file(), path


def test_the_readmes_config_is_valid() -> None:
    import yaml

    from clsearch.config import parse_config
    from clsearch.system import build_scenario, build_system, check

    readme = (ROOT / "README.md").read_text(encoding="utf-8")
    block = re.search(r"```yaml\n(.*?)```", readme, re.S)
    assert block
    config = parse_config(yaml.safe_load(block[1]))
    scenario = build_scenario(config)
    systems = [build_system(config, i, (1, 28, 28)) for i in range(len(config.methods))]
    check(config, scenario, systems, ())  # its tasks would be downloaded


def test_the_scenarios_of_the_docs_can_be_built() -> None:
    import yaml

    from clsearch.config import parse_config
    from clsearch.system import build_scenario

    page = (ROOT / "docs" / "scenarios.md").read_text(encoding="utf-8")
    blocks = re.findall(r"```yaml\n(.*?)```", page, re.S)
    shown = ""
    for block in blocks:
        given = {**yaml.safe_load(block), "methods": [{"name": "finetune"}]}
        build_scenario(parse_config(given))
        shown += block
    for package, base in (("clsearch.scenarios", Scenario), ("clsearch.data", Source)):
        for name in discover(package, base):
            assert name in shown if base is Scenario else f"`{name}`" in page or name in shown


def test_the_readmes_method_works(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """The example is complete: as a file of the methods' folder it is found, it learns two tasks,
    and a strong pull keeps the second near the first."""
    from helpers import Learner, tiny_config, tiny_tasks

    import clsearch.methods

    block = re.search(r"```python\n(.*?)```", (ROOT / "README.md").read_text("utf-8"), re.S)
    assert block
    (tmp_path / "pull.py").write_text(block[1], encoding="utf-8")
    monkeypatch.setattr(clsearch.methods, "__path__", [*clsearch.methods.__path__, str(tmp_path)])
    moved = []
    for strength in (0.0, 100.0):
        chain = Learner(tiny_config("pull"), tiny_tasks(2, True), True)
        hyper = [{**chain.defaults, "strength": strength, "lr": 0.01}]
        first = chain.learn(None, 1, hypers=hyper)
        second = chain.learn(first, 2, hypers=hyper)
        moved.append(sum(float((second.params[n] - v).norm()) for n, v in first.params.items()))
    assert moved[1] < moved[0] / 2
    monkeypatch.delitem(sys.modules, "clsearch.methods.pull")


CHECKS = """
import yaml

right = (answers.numpy() == labels[labels < 5]).mean()
assert right > 0.97, right
assert int(growth.argmax()) == 3, growth
commits = set(results.frame("selections")["commit"])
adapted = clsearch.load_config({**config.model_dump(exclude={"methods"}), **yaml.safe_load(KEY)})
again = clsearch.run(adapted, "runs/adapted").frame("selections")
assert commits.isdisjoint(again["commit"])
"""


@pytest.mark.slow
def test_the_notebook_works(tmp_path: Path) -> None:
    """Its snippets, one after the other, in a Python of their own: the search is a real one, the
    network is right, and threes make the output of three matter more than any other, as the page
    says."""
    page = (ROOT / "docs" / "notebook.md").read_text(encoding="utf-8")
    (key,) = re.findall(r"```yaml\n(.*?)```", page, re.S)
    snippets = re.findall(r"```python\n(.*?)```", page, re.S)
    code = f"KEY = {key!r}\n" + "".join([*snippets, CHECKS])
    done = subprocess.run(
        [sys.executable, "-c", code], cwd=tmp_path, env=environment(), text=True,
        capture_output=True, check=False, timeout=280,
    )  # fmt: skip
    assert done.returncode == 0, done.stdout + done.stderr
    assert done.stderr == ""
    assert "methods: [] is not allowed" in done.stdout
    assert "digits 0 to 4 are right" in done.stdout
