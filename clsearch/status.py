"""How far a run is."""

from __future__ import annotations

from pathlib import Path

from rich.console import Console

from clsearch.files import holder
from clsearch.folder import about, open_chains, open_store, results_of, run_config
from clsearch.messages import command, say


def print_status(out: Path, console: Console) -> None:
    """Prints how far a run is, and whether a driver is at work on it."""
    config = run_config(out)
    results = results_of(out)
    at_work = holder(out)
    tasks = len(about(out).get("tasks", ()))  # 0: it is not known before all data is read
    of_all = f"of {tasks} tasks" if tasks else "tasks"
    stored, shared = open_store(out, config).count("trials"), config.resources.storage
    whose = f" at {shared}, of all searches that write there" if shared else ""
    say(console, f"{config.name} in {out}: {stored} finished trials in the journal{whose}")
    for method in config.methods:
        for seed in config.seeds:
            of_chain = [
                r
                for r in results
                if (r.selection.method, r.selection.seed) == (method.chain_name, seed)
            ]
            own = [r.selection for r in of_chain]
            ended = next((s for s in own if s.outcome != "selected"), None)
            line = f"  {method.chain_name}/seed-{seed}: {len(own)} {of_all}"
            transferred = [str(r.selection.task) for r in of_chain if r.transfer]
            if transferred:
                line += f", last-layer transfer at {', '.join(transferred)}"
            if ended:
                line = f"  {ended.chain}: {ended.outcome} at task {ended.task}: {ended.reason}"
            say(console, line)
    if at_work:
        say(console, f"A run is at work on it: {at_work}.")
    elif tasks and not open_chains(config, results, tasks):
        say(console, "Finished.")
    else:
        say(console, f"Not finished. Go on with: {command('resume', out)}")
