"""What a folder of exported models holds, as JSON and as a table."""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from clsearch.errors import InputError
from clsearch.exports.formats.base import format_of
from clsearch.files import content_of, parse
from clsearch.records import Chain

INDEX, TABLE = "index.json", "index.md"


def entry(folder: Path, name: str, about: Mapping[str, Any]) -> dict[str, Any]:
    """The line of a model: where it lies, what it is, how good, and its SHA-256."""
    metrics, path = about["metrics"], folder / name
    found = {
        "file": name,
        "method": about["selection"]["method"],
        "seed": about["selection"]["seed"],
        "task": about["task"]["number"],
        "name": about["task"]["name"],
        "test_accuracy": metrics["test_accuracy"],
        "sparsity": metrics["sparsity"],
        "trial": about["digests"]["trial"],
        "sha256": format_of(path, "to").sha256(path),
    }
    return found | {name: about[name] for name in ("check",) if name in about}


def files_of(folder: Path) -> set[Path]:
    """The files that the index of a folder of models lists, and its own; none without it."""
    try:
        models = parse(content_of(folder / INDEX))["models"]
        paths = [folder / each["file"] for each in models]
        parts = [format_of(path, "to").parts(path) for path in paths]
    except (OSError, ValueError, KeyError, TypeError, InputError):
        return set()
    return {folder / INDEX, folder / TABLE}.union(*parts)


def write_index(
    folder: Path, run: str, unfinished: Mapping[Chain, int], entries: Sequence[Mapping[str, Any]]
) -> dict[str, Any]:
    """Writes `index.json` and `index.md`; returns what the first holds."""
    index = {
        "run": run,
        "finished": not unfinished,
        "unfinished": {str(chain): tasks for chain, tasks in unfinished.items()},
        "models": list(entries),
    }
    (folder / INDEX).write_text(json.dumps(index, indent=2, allow_nan=False) + "\n")
    lines = [f"# Models selected by {run}", ""]
    if unfinished:
        parts = (f"{chain} has {tasks} tasks" for chain, tasks in unfinished.items())
        lines += [f"The run was not finished: {', '.join(parts)} so far.", ""]
    lines += [
        "| file | method | seed | task | test accuracy / % | sparsity / % | SHA-256 |",
        "|---|---|---:|---:|---:|---:|---|",
    ]
    for each in entries:
        cells = [f"[{each['file']}]({each['file']})", each["method"], each["seed"], each["task"]]
        cells += [f"{100 * each[name]:.2f}" for name in ("test_accuracy", "sparsity")]
        lines.append("| " + " | ".join(map(str, [*cells, f"`{each['sha256']}`"])) + " |")
    (folder / TABLE).write_text("\n".join(lines) + "\n")
    return index
