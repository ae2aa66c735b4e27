"""An output folder: whose it is, and what stands in it."""

from __future__ import annotations

import contextlib
import os
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any

import pyarrow as pa
import yaml

from clsearch.config import Config, load_config
from clsearch.errors import DamagedError, InputError, unknown
from clsearch.files import ABOUT, LOCK, atomic_write, content_of, half_written, owned, parse
from clsearch.identity import identity
from clsearch.messages import command
from clsearch.records import Chain, TaskRecord, TaskResult, TrialRecord, checked
from clsearch.report.parquet import read_table
from clsearch.store import Store, read_record


def open_store(out: Path, config: Config | None = None) -> Store:
    """The journal and the checkpoints of a run: where its config keeps them (default: the one it
    was run with), else in its output folder. Raises `InputError` for one whose path is not text."""
    try:
        str(out.absolute()).encode()
    except UnicodeEncodeError as error:
        raise InputError("out", str(out), "a folder whose path is in UTF-8") from error
    saved = out / "config.yaml"
    if config is None and saved.is_file():
        config = load_config(saved)
    storage = config.resources.storage if config else None
    return Store(storage or str((out / "checkpoints").absolute()))


@contextlib.contextmanager
def claimed(out: Path, config: Config) -> Iterator[None]:
    """Makes the folder this config's and holds it against a second driver while the block runs.

    Folders it made go away again if nothing was put into them. Raises `InputError`.
    """
    made = [folder for folder in (out, *out.parents) if not os.path.lexists(folder)]
    try:
        claim(out, config)
        with owned(out):
            claim(out, config)  # another driver may have made it its own meanwhile
            yield
    finally:
        with contextlib.suppress(OSError):
            for folder in made:
                folder.rmdir()


def claim(out: Path, config: Config) -> None:
    """Makes the folder this config's, or finds it so. Raises `InputError` if it is another's.

    Grids, methods, seeds, margin and resources may differ from the run before: its trials are
    taken up again where they fit.
    """
    saved = out / "config.yaml"
    try:
        out.mkdir(parents=True, exist_ok=True)
        writable = os.access(out, os.W_OK | os.X_OK)
        empty = not {*out.iterdir()} - half_written(out) - {out / LOCK}
    except OSError as error:
        step = f"{error.strerror}. Choose another --out."
        raise InputError("out", str(out), "a folder that can be written", step) from error
    if not writable:
        step = "There is no permission to write it. Choose another --out."
        raise InputError("out", str(out), "a folder that can be written", step)
    check_plain(out, "out")
    if saved.exists():
        theirs, ours = identity(load_config(saved)), identity(config)
        if theirs != ours:
            parts = [name for name in ours if theirs[name] != ours[name]]
            raise InputError(
                "out",
                str(out),
                "a new folder, or one of the same experiment",
                f"It belongs to another config ({', '.join(parts)} differ). Choose another --out.",
            )
    elif not empty:
        allowed = "an empty or new folder, or that of a run"
        raise InputError("out", str(out), allowed, "Choose another --out.")


_OURS = ("", "checkpoints", "checkpoints/delivered", "outbox", "outbox/rejected", "report")


SUPER = bytes.fromhex("d9d505f920a163d7")
"""What a journal of SQLite ends with that names another: no single database leaves one."""


def check_plain(out: Path, field: str) -> None:
    """Raises `InputError` under `field` for an output folder with a link, a device or a pipe where
    a run has files and folders, or whose database would delete a file when it is opened: it may be
    somebody else's, and is written to and deleted from."""
    places = [out / name for name in _OURS if (out / name).is_dir()]
    places += [Path(place) for place, _, _ in os.walk(out / "artifacts")]  # follows no links
    for folder in places:
        for entry in os.scandir(folder):
            if not (entry.is_file(follow_symlinks=False) or entry.is_dir(follow_symlinks=False)):
                step = f"{entry.path} is one. `--storage` keeps checkpoints elsewhere."
                raise InputError(field, str(out), "a folder without links, devices and pipes", step)

    journal = out / "mlflow.db-journal"
    if journal.is_file() and _ends_with(journal, SUPER):
        step = f"Delete {journal}: SQLite would delete the file that it names."
        raise InputError(field, str(out), "a folder as clsearch leaves it", step)


def _ends_with(file: Path, what: bytes) -> bool:
    """Whether a file, which another process may delete meanwhile, ends so."""
    try:
        with file.open("rb") as stream:
            stream.seek(max(0, os.fstat(stream.fileno()).st_size - len(what)))
            return stream.read().endswith(what)
    except FileNotFoundError:
        return False


def write_config(out: Path, config: Config) -> None:
    """Writes the resolved config of a run."""
    data = config.model_dump(mode="json", exclude_none=True)
    atomic_write(out / "config.yaml", yaml.safe_dump(data, sort_keys=False))


def run_config(out: Path) -> Config:
    """The config of a run. Raises `InputError` for a folder that holds none."""
    check_plain(out, "DIR")
    saved = out / "config.yaml"
    if not saved.is_file():
        raise InputError(
            "DIR",
            str(out),
            "the output folder of a run, with its config.yaml",
            "`clsearch run CONFIG --out DIR` makes one.",
        )
    return load_config(saved)


def results_of(out: Path) -> list[TaskResult]:
    """The selections of a run so far, with the test accuracies of its accuracy matrix.

    Without those of chains that the config does not have any more. Raises `InputError` for a folder
    that is no run, `DamagedError` for files that cannot be read.
    """
    chains = chains_of(run_config(out))
    try:
        selections = parse(content_of(out / "selections.json"))
        matrix = parse(content_of(out / "accuracy_matrix.json"))
        found = []
        for data in selections:
            if Chain(data["method"], data["seed"]) not in chains:
                continue
            rows = matrix[data["method"]][str(data["seed"])]
            result = TaskResult.from_json(data, tuple(rows[data["task"] - 1]))
            found.append(checked(result))
        return found
    except FileNotFoundError:
        return []
    except (OSError, ValueError, KeyError, TypeError, IndexError, AttributeError) as error:
        raise DamagedError(
            f"selections.json or accuracy_matrix.json in {out} cannot be read ({error!r}). "
            f"`clsearch resume {out}` writes them again."
        ) from error


def open_chains(config: Config, results: Sequence[TaskResult], tasks: int) -> dict[Chain, int]:
    """The chains of a run of so many tasks that have not come to their end: how far each is."""
    own = {c: [r.selection for r in results if r.selection.chain == c] for c in chains_of(config)}
    return {
        chain: len(selections)
        for chain, selections in own.items()
        if len(selections) < tasks and all(s.outcome == "selected" for s in selections)
    }


def chains_of(config: Config) -> list[Chain]:
    """The chains of a search: every method at every seed."""
    return [Chain(m.chain_name, seed) for m in config.methods for seed in config.seeds]


def _task(data: Any) -> TaskRecord:
    return checked(TaskRecord.from_json(data))


def about(out: Path) -> dict[str, Any]:
    """What a search wrote of its scenario, machine and versions in `search.json`, and its tasks as
    `TaskRecord`s under `tasks`; empty where it ended before that. Raises `DamagedError`."""
    path = out / ABOUT
    try:
        said = parse(content_of(path))
        if not all(isinstance(part, dict) for part in (said["machine"], said.get("scenario", {}))):
            raise ValueError("its fields are not those that a search writes")
        return {**said, "tasks": tuple(map(_task, said["tasks"]))}
    except FileNotFoundError:
        return {}
    except (OSError, ValueError, KeyError, TypeError, AttributeError) as error:
        again = f"`{command('resume', out)}` writes it again."
        raise DamagedError(f"{path} cannot be read ({error!r}). {again}") from error


def tasks_of(out: Path) -> tuple[TaskRecord, ...]:
    """What the tasks of a run are made from, as it was when it ran. Raises `DamagedError` too where
    `search.json` is missing."""
    said = about(out)
    if not said:
        again = f"`{command('resume', out)}` writes it again."
        raise DamagedError(f"{out / ABOUT} is missing. {again}")
    tasks: tuple[TaskRecord, ...] = said["tasks"]
    return tasks


def chain_of(config: Config, method: str, seed: int | None) -> Chain:
    """The chain of a method (its label) and a seed, by default the run's first. Raises `InputError`
    for what the config has not."""
    labels = [m.chain_name for m in config.methods]
    if method not in labels:
        raise unknown("method", method, labels)
    if seed is not None and seed not in config.seeds:
        raise unknown("seed", seed, map(str, config.seeds))
    return Chain(method, config.seeds[0] if seed is None else seed)


def read_parquet(out: Path, name: str) -> pa.Table:
    """The table `NAME.parquet` of a run. Raises `InputError` where there is none so far."""
    path = out / f"{name}.parquet"
    try:
        return read_table(path)
    except FileNotFoundError as error:
        raise InputError(
            "DIR",
            str(out),
            f"a run with {path.name}, written when a task is finished",
            f"`{command('resume', out)}` goes on with the run.",
        ) from error
    except DamagedError as error:
        raise DamagedError(f"{error}. `clsearch resume {out}` writes it again.") from error


def records_of(out: Path) -> list[TrialRecord]:
    """The finished trials that `trials.parquet` of a run names, from its journal."""
    if not (out / "trials.parquet").is_file():
        return []
    store = open_store(out)
    keys = read_parquet(out, "trials").column("trial_key").to_pylist()
    again = f"`clsearch resume {out}` makes it again."
    records = []
    for key in keys:
        try:
            record = read_record(store, key)
        except DamagedError as error:
            raise DamagedError(f"{error}. {again}") from error
        if record is None:
            raise DamagedError(f"trial {key} is missing from the journal of {out}. {again}")
        records.append(record)
    return records
