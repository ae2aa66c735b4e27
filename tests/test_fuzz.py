"""A short run of `python -m tests.fuzz`, and what one of its readers would not find."""

from __future__ import annotations

from pathlib import Path

from fuzz import Tally, Target, fuzz


def test_no_reader_crashes(tmp_path: Path) -> None:
    tally = fuzz(480, 1, tmp_path)
    assert sum(tally.counts.values()) >= 480
    assert min(tally.counts.values()) >= 480 // len(tally.counts)
    assert not tally.crashes, tally.crashes[0]


def test_a_reader_that_crashes_is_found() -> None:
    tally = Tally()
    careless = Target("careless", b"5", lambda content: 1 / int(content))
    for content in (b"5", b"0", b"0", b"x"):
        tally.try_out(careless, content)
    assert tally.counts == {"careless": 4}
    assert [crash[1] for crash in tally.crashes] == [b"0", b"x"]
