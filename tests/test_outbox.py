"""The queue of what waits for MLflow, and its courier: order, refusals, entries of other hands."""

from __future__ import annotations

import contextlib
import json
import shutil
import time
from pathlib import Path
from typing import Any

import pytest

from clsearch.courier import FINISH, Courier, Ledger
from clsearch.errors import DamagedError, StoreError
from clsearch.mlflow_runs import refused
from clsearch.outbox import Entry, Outbox


def test_an_entry_that_was_set_aside_and_then_taken_waits_no_more(tmp_path: Path) -> None:
    """As of a model that a full disk refused while smaller entries got through."""
    for full in (True, False):

        def deliver(content: dict[str, Any], files: Path) -> None:
            if full:  # noqa: B023
                raise ValueError("no space left")

        box = Outbox(tmp_path / "outbox")
        ledger = Ledger(tmp_path / "ledger")
        courier = Courier(box, ledger, deliver, lambda error: True)
        courier.send("model", {"name": "big"}, lambda folder: {"model": Path(__file__)})
        assert courier.close(30) == 0
        assert len(box.rejected()) == full
    assert not (tmp_path / "outbox").exists()


@pytest.mark.parametrize("where", ["the entry", "its folder", "a file", "a folder in it"])
def test_an_entry_with_a_link_is_set_aside_and_nothing_of_it_is_sent(
    tmp_path: Path, where: str
) -> None:
    """An outbox may come from somebody else: it says what is sent, not what of this machine."""
    box, own = tmp_path / "outbox", tmp_path / "own"
    (own / "report").mkdir(parents=True)
    for name in ("entry", "report/key"):
        (own / name).write_text('{"kind": "finish"}')
    entry = Entry(box / "00000001-finish-abc.json")
    (entry.files / "report").mkdir(parents=True)
    entry.file.write_text('{"kind": "finish"}')
    linked, to = {
        "the entry": (entry.file, "entry"),
        "its folder": (entry.files, ""),
        "a file": (entry.files / "report" / "key", "report/key"),
        "a folder in it": (entry.files / "other", "report"),
    }[where]
    if where == "its folder":
        shutil.rmtree(linked)
    linked.unlink(missing_ok=True)
    linked.symlink_to(own / to)
    sent: list[object] = []
    courier = Courier(
        Outbox(box), Ledger(tmp_path / "ledger"), lambda *what: sent.append(what), refused
    )
    courier.wake()
    assert courier.close(30) == 0
    assert sent == []
    assert [path.name for path in box.rglob("*")] == ["rejected", "finish-abc.json"]
    assert "a link, a device or a pipe" in (box / "rejected" / "finish-abc.json").read_text()
    assert {path.name for path in own.rglob("*")} == {"entry", "report", "key"}


@pytest.mark.parametrize(
    "damage", ["the entry", "a file", "a file gone", "no checksum", "infinity", "nothing"]
)
def test_an_entry_that_is_not_what_was_written_is_damaged(tmp_path: Path, damage: str) -> None:
    """But for files that a delivery that failed has added."""
    box, source = Outbox(tmp_path / "outbox"), tmp_path / "source"
    source.write_text("one")
    box.append("x-a", {"n": 1}, {"deep/file": source})
    entry = box.first()
    assert entry is not None
    file = entry.files / "deep" / "file"
    (file.parent / "MLmodel").write_text("added")
    content = json.loads(entry.file.read_text())
    if damage == "the entry":
        entry.file.write_text(json.dumps({**content, "n": 2}))
    elif damage == "a file":
        file.write_text("One")
    elif damage == "a file gone":
        file.unlink()
    elif damage == "infinity":
        entry.file.write_text('{"n": 1e999, "sha256": {}}')
    elif damage == "no checksum":
        entry.file.write_text(json.dumps({"n": 1, "sha256": {}}))
    wanted = contextlib.nullcontext() if damage == "nothing" else pytest.raises(DamagedError)
    with wanted:
        assert entry.read() == {"n": 1}


def test_an_outbox_that_is_a_link_is_refused(tmp_path: Path) -> None:
    (tmp_path / "own" / "1.files").mkdir(parents=True)
    (tmp_path / "outbox").symlink_to(tmp_path / "own")
    with pytest.raises(StoreError, match="is a link"):
        Outbox(tmp_path / "outbox")
    assert (tmp_path / "own" / "1.files").is_dir()


def test_entry_that_always_fails_is_passed_over(tmp_path: Path) -> None:
    def deliver(content: dict[str, Any], files: Path) -> None:
        if content["name"] == "bad":
            raise ConnectionError("http://me:secret@host: 500")
        delivered.append(content["name"])

    delivered: list[str] = []
    box = Outbox(tmp_path / "outbox")
    courier = Courier(box, Ledger(tmp_path / "ledger"), deliver, lambda error: False)
    courier._pause = lambda seconds: None  # type: ignore[method-assign]
    for name in ("bad", "good", "better"):
        courier.send("x", {"name": name})
    deadline = time.monotonic() + 10
    while len(box) and time.monotonic() < deadline:
        time.sleep(0.01)
    assert courier.close(5) == 0
    assert delivered == ["good", "better"]
    (kept,) = box.rejected()
    assert json.loads(kept.read_text())["reason"] == "ConnectionError: http://…@host: 500"


def test_entries_keep_their_order_beyond_nine(tmp_path: Path) -> None:
    box = Outbox(tmp_path / "outbox")
    for number in range(12):
        box.append(f"x-{number}", {"n": number}, {})
    again = Outbox(tmp_path / "outbox")
    assert again.identities() == [f"x-{number}" for number in range(12)]
    first = again.first()
    assert isinstance(first, Entry)
    assert first.read() == {"n": 0}


def test_nothing_is_sent_twice_whether_it_waits_was_delivered_or_refused(tmp_path: Path) -> None:
    """And an end is another one after something new, also of a later process."""

    def deliver(content: dict[str, Any], files: Path) -> None:
        offered.append((content["kind"], content["n"]))
        if content["n"] == 2:
            raise ValueError("no")

    def through(courier: Courier) -> None:
        deadline = time.monotonic() + 10
        while len(box) and time.monotonic() < deadline:
            time.sleep(0.01)
        assert len(box) == 0, courier.problem

    offered: list[tuple[str, int]] = []
    for known in (3, 3, 4):
        box = Outbox(tmp_path / "outbox")
        courier = Courier(box, Ledger(tmp_path / "ledger"), deliver, lambda error: True)
        courier._pause = lambda seconds: None  # type: ignore[method-assign]
        for _ in range(2):
            for n in range(known):
                courier.send("x", {"n": n})
            courier.send(FINISH, {"n": 9})
            through(courier)
        courier.close(5)
        offered.append(("over", known))
    # Refused twice, and offered again by the next process.
    assert offered == [
        *(("x", 0), ("x", 1), ("x", 2), ("x", 2), (FINISH, 9), ("over", 3)),
        *(("x", 2), ("x", 2), ("over", 3)),
        *(("x", 2), ("x", 2), ("x", 3), (FINISH, 9), ("over", 4)),
    ]


def test_an_end_is_that_of_what_waited_before(tmp_path: Path) -> None:
    """Also where nothing of it is delivered yet: it is not sent again by the next process."""

    def deliver(content: dict[str, Any], files: Path) -> None:
        raise ConnectionError("away")

    for sends in (["a", "b"], ["a", "b"], ["b", "a"]):
        box = Outbox(tmp_path / "outbox")
        courier = Courier(box, Ledger(tmp_path / "ledger"), deliver, lambda error: False)
        for name in sends:
            courier.send("x", {"name": name})
        courier.send(FINISH, {})
        assert courier.close(0) == 3


def test_what_adds_to_an_entry_is_sent_again_after_it(tmp_path: Path) -> None:
    """A selection adds to its trials in MLflow. One that was damaged in the outbox, or refused, is
    sent again by a later process, which has its selection come after it, however often."""
    box, delivered = tmp_path / "outbox", []
    unwanted: set[str] = set()

    def deliver(content: dict[str, Any], files: Path) -> None:
        if content["name"] in unwanted:
            raise ValueError("no")
        delivered.append(content["name"])

    def process(away: bool = False) -> list[str]:
        delivered.clear()
        courier = Courier(Outbox(box), Ledger(tmp_path / "ledger"), deliver, lambda error: True)
        if away:
            courier._stop.set()
        else:
            courier.wake()
        trials = [courier.send("trial", {"name": name}) for name in ("a", "b")]
        courier.send("committed", {"name": "chosen"}, about=trials)
        courier.send("committed", {"name": "another"}, about=[])
        assert (courier.close(30) > 0) == away
        return list(delivered)

    def damage(trial: int) -> None:
        sorted(box.glob("*-trial-*.json"))[trial - 1].write_text("{")

    assert process(away=True) == []
    damage(2)
    assert process() == ["a", "chosen", "another"]
    assert process(away=True) == []  # b again, and what was chosen
    damage(1)
    assert process() == ["chosen"]
    unwanted.add("b")
    assert process() == ["chosen"]  # MLflow refuses b
    unwanted.clear()
    assert process() == ["b", "chosen"]
    for _ in range(2):
        assert process() == []
    assert not box.exists()


def test_a_folder_in_place_of_what_was_delivered_is_deleted(tmp_path: Path) -> None:
    """As of an entry whose courier was killed before it removed it."""
    box, ledger = tmp_path / "outbox", Ledger(tmp_path / "ledger")
    ledger.add("x-a")
    (box / "00000001-x-a.json" / "inside").mkdir(parents=True)
    courier = Courier(Outbox(box), ledger, lambda content, files: None, refused)
    courier.wake()
    assert (courier.close(30), courier.problem) == (0, "")
    assert not box.exists()


def test_a_folder_under_the_name_of_an_entry_is_set_aside_as_it_is(tmp_path: Path) -> None:
    """Twice: with what it had the first time in its place."""
    box, delivered = tmp_path / "outbox", []

    def deliver(content: dict[str, Any], files: Path) -> None:
        delivered.append(content["n"])

    for n in (1, 2):
        waiting = Outbox(box)
        for name in ("x-a", f"x-{n}"):
            waiting.append(name, {"n": n}, {})
        (file,) = box.glob("*-x-a.json")
        file.unlink()
        (file / "inside").mkdir(parents=True)
        (file / str(n)).touch()
        courier = Courier(Outbox(box), Ledger(tmp_path / "ledger"), deliver, refused)
        courier.wake()
        assert courier.close(30) == 0
        assert delivered == list(range(1, n + 1))
        aside = {path.relative_to(box / "rejected").as_posix() for path in box.rglob("*/*")}
        assert aside == {"x-a.json", "x-a.entry", "x-a.entry/inside", f"x-a.entry/{n}"}
