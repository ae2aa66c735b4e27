"""What is printed of exported models."""

from __future__ import annotations

import shlex
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from rich.console import Console

from clsearch.exports.compacted import print_compaction
from clsearch.exports.formats.base import description_of, format_of
from clsearch.exports.index import INDEX, TABLE
from clsearch.messages import say


def print_export(about: Mapping[str, Any], to: Path, console: Console) -> None:
    """What was written, what it saves, how it was checked, and where it describes itself."""
    accuracy, chosen = about["metrics"]["test_accuracy"], about["selection"]
    say(
        console,
        f"{to}: {chosen['method']}, task {chosen['task']}, test accuracy {100 * accuracy:.2f} %",
    )
    if "compaction" in about:
        print_compaction(about["compaction"], console)
    if "check" in about:
        say(console, _checked(about["check"]))
    if format_of(to, "to").folder:
        say(console, f"{to}/MLmodel: what it is, how it was chosen, its digests")
        serve = shlex.join(["mlflow", "models", "serve", "-m", str(to), "--env-manager", "local"])
        say(console, f"Serve it: {serve}")
    else:
        say(console, f"{description_of(to)}: what it is, how it was chosen, its digests")


def print_index(index: Mapping[str, Any], to: Path, console: Console) -> None:
    """How many models were written, and of which chains there will be more."""
    for chain, tasks in index["unfinished"].items():
        say(console, f"{chain} is not finished: it has {tasks} tasks so far.")
    checks = [each["check"] for each in index["models"] if "check" in each]
    if checks:
        say(console, _checked(max(checks, key=lambda c: c["difference"] if c else 0.0)))
    say(console, f"{len(index['models'])} models in {to}; {to / INDEX} and {TABLE} list them")


def _checked(check: Mapping[str, Any] | None) -> str:
    if check is None:
        return "Not checked: onnxruntime is not installed (pip install onnxruntime)."
    return (
        f"checked with {check['with']}: the same classes on {check['images']} images, outputs "
        f"differ by {check['difference']:.0e} at most"
    )
