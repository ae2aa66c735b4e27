"""The same search in every store: a database, a server on one, a server on PostgreSQL."""

from __future__ import annotations

import contextlib
import shutil
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
from servers import answering, free_port, postgres, server
from tracked import client, everything, finished, play

from clsearch.tracking import MLflowTracker

STORES = ("sqlite", "a server on sqlite", "a server on postgresql")


@contextlib.contextmanager
def address(store: str, folder: Path) -> Iterator[str | None]:
    """The tracking address of a store that is there and empty."""
    with contextlib.ExitStack() as stack:
        if store == "sqlite":
            yield None
            return
        database = ""
        if store.endswith("postgresql"):
            database = stack.enter_context(postgres(folder / "postgres"))
        port = free_port()
        uri = stack.enter_context(server(folder, port, database))
        answering(port)
        yield uri


@pytest.mark.slow
@pytest.mark.parametrize("store", STORES)
def test_a_search_stands_in_it_once_whatever_is_sent_again(
    store: str, tmp_path: Path, model: Path, figure: Path
) -> None:
    """Nothing changes when every entry comes again although it was delivered."""
    with address(store, tmp_path) as uri:
        out = tmp_path / "out"
        quiet = MLflowTracker(out, uri)
        quiet._courier.wake = lambda: None  # type: ignore[method-assign]  # nothing is delivered
        play(quiet, model, figure)
        shutil.copytree(out / "outbox", tmp_path / "kept")
        finished(MLflowTracker(out, uri), model, figure)
        look = client(out, uri)
        before = everything(look)
        assert len(before) == 8
        shutil.copytree(tmp_path / "kept", out / "outbox")
        shutil.rmtree(out / "checkpoints" / "delivered")
        finished(MLflowTracker(out, uri), model, figure)
        assert everything(look) == before
        assert sizes(look) == {"search": 1, "task": 2, "trial": 4}


def sizes(look: Any) -> dict[str, int]:
    """How many runs of each kind there are."""
    experiment = look.get_experiment_by_name("demo").experiment_id
    kinds = [r.data.tags["clsearch.kind"] for r in look.search_runs([experiment])]
    return {kind: kinds.count(kind) for kind in sorted(set(kinds))}
