"""The audit trail as a person meets it: MLflow's UI in a real browser, on a real search.

What is asserted is read off the page and compared with `selections.json`. Screenshots go to the
folder `CLSEARCH_SCREENSHOTS`, or to a temporary one.
"""

from __future__ import annotations

import contextlib
import io
import json
import os
import re
import shutil
import signal
import socket
import sqlite3
import subprocess
import sys
import threading
from collections.abc import Iterator
from http.client import HTTPConnection
from pathlib import Path
from typing import Any

import pytest
from command import Driver, arguments, listening, lives, refused
from helpers import SerialSearcher, SilentProgress
from PIL import Image

from clsearch.config import Config, parse_config
from clsearch.folder import open_store, write_config
from clsearch.mlflow_places import TABLES
from clsearch.notes import SELECTED
from clsearch.sequence import Search
from clsearch.system import resolve
from clsearch.tracking import MLflowTracker
from clsearch.ui import _end, ui_command

BROWSERS = ("chromium", "chromium-browser", "google-chrome")
OWN = re.compile(
    r"users/current|the server responded with a status of 404|ResizeObserver"
    # Parallel coordinates drawn before their tab has a size, then again; the test of them looks at
    # what is drawn in the end.
    r"|Error: <\w+> attribute [\w-]+: "
)
"""What MLflow 3.17 itself complains of in the browser's console."""
CONFIG = {
    "name": "digits",
    "scenario": {"name": "permuted", "source": "digits", "tasks": 3},
    "model": {"name": "mlp", "hidden": [128, 128]},
    "training": {"epochs": 8, "batch_size": 64},
    "selection": {"margin": 3.0, "thresholds": 20},
    "methods": [
        {"name": "mas", "grid": {"lr": [0.002, 0.004], "strength": [0.01, 0.03]}},
        {"name": "clnp", "grid": {"lr": [0.005], "l1": [0.0003, 0.001]}},
    ],
}


@pytest.fixture(scope="module")
def out(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The output folder of a finished search."""
    folder = tmp_path_factory.mktemp("ui") / "digits"
    folder.mkdir()
    config = resolve(parse_config(CONFIG))
    write_config(folder, config)
    search, tracker = Search(config, folder, open_store(folder)), MLflowTracker(folder)
    tracker.start(search.info())
    search.run(SerialSearcher(), tracker, SilentProgress())
    tracker.finish([], {}, "FINISHED")
    assert tracker.close(120) == 0, tracker.problem
    assert tracker.rejected == []
    return folder


@pytest.fixture(scope="module")
def ui(out: Path) -> Iterator[Driver]:
    """`clsearch ui` at work on it, in a process of its own."""
    driver = Driver(out.parent / "ui", "ui", out)
    try:
        driver.until(lambda: "Ctrl-C" in driver.stdout)
        yield driver
    finally:
        driver.end()


@pytest.fixture(scope="module")
def address(ui: Driver) -> str:
    found = re.search(r"http://127\.0\.0\.1:\d+/\S+", ui.stdout)
    assert found, ui.stdout
    return found[0]


@pytest.fixture(scope="module")
def browser() -> Iterator[Any]:
    api = pytest.importorskip("playwright.sync_api", reason="pip install playwright")
    program = next(filter(None, map(shutil.which, BROWSERS)), None)
    if program is None:
        pytest.skip("no browser on this machine: apt-get install chromium")
    with api.sync_playwright() as play:
        started = play.chromium.launch(executable_path=program, args=["--no-sandbox"])
        yield started
        started.close()


@pytest.fixture
def page(browser: Any) -> Iterator[Any]:
    """A page of a person who is here for the first time; it must leave no error in the console."""
    errors: list[str] = []
    context = browser.new_context(viewport={"width": 1500, "height": 950})
    context.set_default_timeout(30_000)
    # MLflow opens its assistant over a third of the page on the first visit of a browser.
    context.add_init_script(
        "if (location.protocol == 'http:')"
        " localStorage.setItem('mlflow.assistant.fab.autoOpenedOnFirstLoad_v1', 'true')"
    )
    context.on("console", lambda said: said.type == "error" and errors.append(said.text))
    context.on("weberror", lambda found: errors.append(str(found.error)))
    yield context.new_page()
    context.close()
    assert [e for e in errors if not OWN.search(e)] == []


@pytest.fixture(scope="module")
def screenshots(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = os.environ.get("CLSEARCH_SCREENSHOTS")
    kept = Path(folder) if folder else tmp_path_factory.mktemp("screenshots")
    kept.mkdir(parents=True, exist_ok=True)
    return kept


def shoot(page: Any, path: Path, height: int = 950) -> None:
    """A picture of the top of the page without its side bar, small enough for the docs."""
    picture = Image.open(io.BytesIO(page.screenshot())).convert("RGB").crop((195, 0, 1500, height))
    few = picture.quantize(256, Image.Quantize.MAXCOVERAGE, dither=Image.Dither.NONE)
    few.save(path, optimize=True)


def selections(out: Path, method: str) -> list[dict[str, Any]]:
    """What a method selected, task by task."""
    found = json.loads((out / "selections.json").read_bytes())
    return [s for s in found if s["method"] == method and s["outcome"] == "selected"]


def hyper(selection: dict[str, Any], between: str = " ") -> str:
    values = selection["hyperparameters"]
    return between.join(f"{k}={v:.12g}" for k, v in sorted(values.items()))


def run_link(page: Any, name: str) -> Any:
    return page.get_by_role("link", name=name, exact=True).first


def followed(page: Any, link: Any) -> Any:
    """The page that a link of a description opens, in a tab of its own."""
    with page.context.expect_page() as opened:
        link.click()
    return opened.value


def opened_task(page: Any, address: str, name: str) -> Any:
    """The page of a task's run, from the list of selections, with the whole description."""
    page.goto(address)
    run_link(page, name).click()
    page.get_by_text("Show more").first.click()
    return page


@pytest.mark.slow
def test_the_address_opens_the_selections_of_every_task(
    out: Path, address: str, page: Any, screenshots: Path
) -> None:
    page.goto(address)
    for method in ("mas", "clnp"):
        for s in selections(out, method):
            run_link(page, f"{method} · seed 0 · task {s['task']}").wait_for()
            page.get_by_text(f"{100 * s['accuracy']:.4f}".rstrip("0")).first.wait_for()
    shoot(page, screenshots / "selections.png", 560)


@pytest.mark.slow
def test_a_filter_finds_the_selected_trials(
    out: Path, address: str, page: Any, screenshots: Path
) -> None:
    page.goto(address)
    run_link(page, "mas · seed 0 · task 3").wait_for()
    box = page.get_by_placeholder("metrics.rmse")
    box.fill(SELECTED)
    box.press("Enter")
    chosen = [s for m in ("mas", "clnp") for s in selections(out, m)]
    page.get_by_text(f"{len(chosen)} matching runs").wait_for()
    for s in chosen:
        name = f"{s['method']} · seed 0 · task {s['task']} · {hyper(s)} · selected"
        run_link(page, name).wait_for()
    shoot(page, screenshots / "selected.png", 560)


@pytest.mark.slow
def test_the_run_of_a_task_answers_what_was_selected_and_why(
    out: Path, address: str, page: Any, screenshots: Path
) -> None:
    """What was selected at task 3 for MAS, why, what else was within the margin, what it cost, what
    capacity is left; and from task 4's side, here the third's: which checkpoint seeded it."""
    second, third = selections(out, "mas")[1:3]
    inside = [c for c in third["candidates"] if c["accuracy"] is not None]
    opened_task(page, address, "mas · seed 0 · task 3")
    page.get_by_text(f"mas · seed 0 · task 3: {hyper(third, ', ')}").wait_for()
    text = page.locator("body").inner_text()
    assert third["reason"] in text
    cost = 100 * (third["best"] - third["accuracy"])
    said = f"{cost:.2f} points given up" if cost >= 0 else f"{-cost:.2f} points above best"
    assert f"{said}, of a margin of 3" in text
    assert f"floor {100 * third['floor']:.2f} %" in text
    fc1, fc2 = third["free"]
    assert f"fc1 {fc1} of 128, fc2 {fc2} of 128 neurons" in text
    assert f"Within the margin: {len(inside)} of 4 trials" in text
    for c in inside:
        assert hyper(c) in text
        assert c["chosen"] or c["why"] in text
    assert f"commit {second['commit']}" in text
    shoot(page, screenshots / "task.png", 580)
    model = followed(page, page.get_by_role("link", name="digits.mas.seed-0, version 2"))
    model.get_by_text("@ task-2").first.wait_for()
    model.get_by_text(f"mas · seed 0 · task 2: {hyper(second, ', ')}").wait_for()
    shoot(model, screenshots / "version.png", 620)
    back = followed(model, run_link(model, "mas · seed 0 · task 3"))  # what this model seeded
    back.get_by_text(f"mas · seed 0 · task 3: {hyper(third, ', ')}").wait_for()


@pytest.mark.slow
def test_a_trial_shows_its_curves_and_a_selection_its_figures(
    out: Path, address: str, page: Any, screenshots: Path
) -> None:
    third = selections(out, "mas")[2]
    opened_task(page, address, "mas · seed 0 · task 3")
    name = f"mas · seed 0 · task 3 · {hyper(third)} · selected"
    trial = followed(page, run_link(page, name))
    trial.get_by_role("tab", name="Model metrics").click()
    trial.get_by_text("free.fc1").wait_for()
    trial.locator(".js-plotly-plot").nth(1).wait_for()
    shoot(trial, screenshots / "trial.png")
    page.get_by_role("tab", name="Artifacts").click()
    page.get_by_text("figures", exact=True).click()
    page.get_by_text("tradeoff.png").first.click()
    figure = page.locator("img[src*='artifact'], img[src^='blob:'], img[src^='data:image/png']")
    figure.first.wait_for()
    assert figure.first.evaluate("image => image.decode().then(() => image.naturalWidth)") > 300
    page.get_by_text("Path: file:").evaluate("line => line.style.visibility = 'hidden'")
    shoot(page, screenshots / "figure.png", 650)


@pytest.mark.slow
def test_the_registered_model_has_a_version_for_each_task(
    address: str, page: Any, screenshots: Path
) -> None:
    page.goto(f"{address.partition('#')[0]}#/models/digits.mas.seed-0")
    for task in (1, 2, 3):
        page.get_by_text(f"@ task-{task}").wait_for()
        page.get_by_role("link", name=f"Version {task}").wait_for()
    page.get_by_text("The models that the search digits selected for mas, seed 0").wait_for()
    shoot(page, screenshots / "model.png")


@pytest.mark.slow
def test_trials_are_compared_in_parallel_coordinates(
    address: str, page: Any, screenshots: Path
) -> None:
    """CLNP has no `strength`, MAS no `l1`, and still every trial of MAS has its line."""
    opened_task(page, address, "mas · seed 0 · task 3")
    trials = followed(page, page.get_by_role("link", name="all trials of mas"))
    trials.get_by_text("12 matching runs").wait_for()
    trials.get_by_role("button", name="Trials of mas").wait_for()
    for name in ("task", "lr", "strength", "sparsity"):
        trials.locator(".parcoords").get_by_text(name, exact=True).first.wait_for()
    trials.wait_for_timeout(1000)  # lines are drawn on a canvas
    assert trials.locator(".parcoords [transform*=NaN]").count() == 0
    shoot(trials, screenshots / "trials.png")


@pytest.mark.slow
def test_it_is_for_who_looks_from_this_machine_alone(ui: Driver, address: str) -> None:
    """Loopback alone; no page of another site reads it (Host) or writes to it (Origin)."""
    port = int(re.findall(r":(\d+)/", address)[0])
    ui.descendants()
    assert listening(ui.family) == {("127.0.0.1", port)}

    def status(method: str, path: str, **headers: str) -> int:
        line = HTTPConnection("127.0.0.1", port, timeout=30)
        try:
            line.putrequest(method, f"/api/2.0/mlflow/{path}", skip_host=True)
            body = b'{"name": "stranger"}' if method == "POST" else b""
            given = {"Host": f"127.0.0.1:{port}", "Content-Type": "application/json", **headers}
            for name, value in {**given, "Content-Length": str(len(body))}.items():
                line.putheader(name, value)
            line.endheaders(body)
            return line.getresponse().status
        finally:
            line.close()

    find = "experiments/get-by-name?experiment_name=digits"
    assert status("GET", find) == 200
    for host in ("evil.example", f"evil.example:{port}", f"127.0.0.1.evil.example:{port}"):
        assert status("GET", find, Host=host) == 403
    for origin in ("http://evil.example", "null"):
        assert status("POST", "experiments/create", Origin=origin) == 403
    assert status("GET", "experiments/get-by-name?experiment_name=stranger") == 404


@pytest.mark.slow
def test_ctrl_c_ends_it_and_leaves_no_process(ui: Driver, address: str) -> None:
    ui.descendants()
    server = [p for p in ui.family if "mlflow" in " ".join(arguments(p))]
    assert server
    ui.process.send_signal(signal.SIGINT)
    assert ui.wait(20) == 0, ui.stderr
    assert not [p for p in server if lives(p)]
    assert ui.survivors() == []
    assert ui.stderr == ""


# What is refused, and what needs no server


def run_folder(folder: Path, **tracking: Any) -> Config:
    config = parse_config({**CONFIG, "tracking": tracking})
    folder.mkdir(exist_ok=True)
    write_config(folder, config)
    return config


def test_a_folder_without_a_run_or_a_store_is_refused(tmp_path: Path, call: Any) -> None:
    refused(call("ui", tmp_path), "config.yaml")
    run_folder(tmp_path)
    refused(call("ui", tmp_path), f"{tmp_path}/mlflow.db", f"clsearch resume {tmp_path}")


def test_no_database_is_made_where_there_is_none(tmp_path: Path, call: Any) -> None:
    """The folder may come from somebody else."""
    database = tmp_path / "elsewhere.db"
    run_folder(tmp_path, uri=f"sqlite:///{database}")
    refused(call("ui", tmp_path), "DIR", str(database))
    assert not database.exists()


def test_a_database_of_something_else_is_left_alone(tmp_path: Path, call: Any) -> None:
    """MLflow would make its tables in it."""
    database = tmp_path / "cookies.db"
    with contextlib.closing(sqlite3.connect(database)) as opened, opened:
        opened.execute("create table cookies (name)")
    content = database.read_bytes()
    run_folder(tmp_path, uri=f"sqlite:///{database}")
    ended = call("ui", tmp_path)
    refused(ended, "DIR", f"{database} is no database of MLflow's")
    assert database.read_bytes() == content


KILLED = """
import os, signal, sqlite3, sys
opened = sqlite3.connect(sys.argv[1])
opened.execute("pragma cache_size = 1")
opened.execute("begin")
opened.execute("create table later (name)")
opened.executemany("insert into later values (?)", [("x" * 1000,)] * 1000)
os.kill(os.getpid(), signal.SIGKILL)
"""


def test_a_database_that_is_busy_or_was_left_half_written_says_what_helps(
    tmp_path: Path, call: Any, monkeypatch: pytest.MonkeyPatch
) -> None:
    database = tmp_path / "mine.db"
    with contextlib.closing(sqlite3.connect(database)) as opened, opened:
        for table in TABLES:
            opened.execute(f"create table {table} (name)")
    run_folder(tmp_path, uri=f"sqlite:///{database}")
    monkeypatch.setattr("clsearch.mlflow_places.LOOK", 0.1)
    with contextlib.closing(sqlite3.connect(database)) as busy:
        busy.execute("begin exclusive")
        ended = call("ui", tmp_path)
    assert (ended.code, ended.out) == (1, "")
    assert f"{database} cannot be read: database is locked" in ended.err
    subprocess.run([sys.executable, "-c", KILLED, str(database)], check=False)
    assert database.with_name("mine.db-journal").stat().st_size
    content = database.read_bytes()
    refused(call("ui", tmp_path), "killed as it wrote. Resume the run: that mends it")
    assert database.read_bytes() == content


def test_a_damaged_database_is_said_to_be_made_again(tmp_path: Path, call: Any) -> None:
    run_folder(tmp_path)
    (tmp_path / "mlflow.db").write_bytes(b"damage" * 1000)
    refused(call("ui", tmp_path), f"{tmp_path}/mlflow.db is damaged", "Move it away, and resume")


def test_a_server_ends_also_for_who_has_no_patience() -> None:
    deaf = "import os, signal, time; signal.signal(15, signal.SIG_IGN); print(); time.sleep(60)"
    server = subprocess.Popen(
        [sys.executable, "-uc", deaf], stdout=subprocess.PIPE, start_new_session=True
    )
    assert server.stdout is not None
    server.stdout.readline()
    own = signal.signal(signal.SIGINT, signal.default_int_handler)
    try:
        with pytest.raises(KeyboardInterrupt):  # noqa: PT012 - nothing else may be interrupted
            threading.Timer(0.5, os.kill, (os.getpid(), signal.SIGINT)).start()
            _end(server)
        assert server.wait(30) == -signal.SIGKILL
    finally:
        server.kill()
        signal.signal(signal.SIGINT, own)


def test_a_taken_port_is_refused(tmp_path: Path, call: Any) -> None:
    run_folder(tmp_path)
    (tmp_path / "mlflow.db").touch()
    with socket.socket() as taken:
        taken.bind(("127.0.0.1", 0))
        taken.listen()
        port = taken.getsockname()[1]
        refused(call("ui", tmp_path, "--port", port), f"--port: {port}", "a free one is taken")


def test_a_runs_own_server_is_named(tmp_path: Path, call: Any) -> None:
    run_folder(tmp_path, uri="http://somewhere:5000")
    ended = call("ui", tmp_path)
    assert (ended.code, ended.err) == (0, "")
    assert "http://somewhere:5000" in ended.out
    for server in ("http://somewhere:5000", "databricks", "databricks://profile"):
        assert ui_command(tmp_path, server) == server
    assert ui_command(tmp_path).endswith(f"clsearch ui {tmp_path}")
