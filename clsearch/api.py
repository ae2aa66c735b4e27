"""clsearch from Python: what the command line does, as functions. `import clsearch` has them."""

from __future__ import annotations

from pathlib import Path

from rich.console import Console

from clsearch.config import Config, load_config
from clsearch.driver import Options, run_search
from clsearch.reselect import select
from clsearch.results import Results
from clsearch.selected import export, export_all

__all__ = ["Results", "export", "export_all", "load_config", "run", "select"]


def run(
    config: Config,
    out: Path | str | None = None,
    *,
    address: str | None = None,
    tracking_uri: str | None = None,
    workers: int | None = None,
    data: Path | str | None = None,
    storage: str | None = None,
    console: Console | None = None,
) -> Results:
    """Searches a sequence of tasks: trains, selects, commits, and seeds the next task.

    `out` is by default `runs/NAME`. Called again it trains only what is missing: after an
    interruption, with a larger grid, with another margin. `address` joins a running Ray cluster,
    `data` is the folder of the data sets, `storage` the address (`s3://…`, `gs://…`, `file://…`)
    of the journal and the checkpoints; progress and tables go to `console` (default: nowhere).
    Raises `InputError` before anything is written, `ClsearchError` when chains fail, and
    `InterruptedRunError` on Ctrl-C; `Results(out)` has what was finished all the same.
    """
    target = Path(out) if out is not None else Path("runs") / config.name
    folder = Path(data) if data is not None else None
    options = Options(address, tracking_uri, workers, folder, storage)
    run_search(config, target, options, console or Console(quiet=True))
    return Results(target)
