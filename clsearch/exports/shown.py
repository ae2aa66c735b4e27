"""What is printed of exported models."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Any

from rich.console import Console

from clsearch.exports.compacted import print_compaction
from clsearch.exports.formats.base import description_of, format_of
from clsearch.exports.index import INDEX, TABLE


def print_export(about: Mapping[str, Any], to: Path, console: Console) -> None:
    """What was written, what it saves, how it was checked, and where it describes itself."""
    accuracy, chosen = about["metrics"]["test_accuracy"], about["selection"]
    _line(
        f"{to}: {chosen['method']}, task {chosen['task']}, test accuracy {100 * accuracy:.2f} %",
        console,
    )
    if "compaction" in about:
        print_compaction(about["compaction"], console)
    if "check" in about:
        _line(_checked(about["check"]), console)
    if format_of(to, "to").folder:
        _line(f"{to}/MLmodel: what it is, how it was chosen, its digests", console)
        _line(f"Serve it: mlflow models serve -m {to} --env-manager local", console)
    else:
        _line(f"{description_of(to)}: what it is, how it was chosen, its digests", console)


def print_index(index: Mapping[str, Any], to: Path, console: Console) -> None:
    """How many models were written, and of which chains there will be more."""
    for chain, tasks in index["unfinished"].items():
        _line(f"{chain} is not finished: it has {tasks} tasks so far.", console)
    checks = [each["check"] for each in index["models"] if "check" in each]
    if checks:
        _line(_checked(max(checks, key=lambda c: c["difference"] if c else 0.0)), console)
    _line(f"{len(index['models'])} models in {to}; {to / INDEX} and {TABLE} list them", console)


def _checked(check: Mapping[str, Any] | None) -> str:
    if check is None:
        return "Not checked: onnxruntime is not installed (pip install onnxruntime)."
    return (
        f"checked with {check['with']}: the same classes on {check['images']} images, outputs "
        f"differ by {check['difference']:.0e} at most"
    )


def _line(text: str, console: Console) -> None:
    console.print(text, soft_wrap=True, markup=False, highlight=False)
