"""The command line."""

from __future__ import annotations

import errno
import json
import os
from pathlib import Path
from typing import Annotated

import typer
from rich.console import Console

from clsearch.errors import MISSING, InputError
from clsearch.records import NOT_STATED

app = typer.Typer(
    name="clsearch",
    help="Hyperparameter and graceful-forgetting search for continual learning.",
    no_args_is_help=True,
    add_completion=False,
    pretty_exceptions_enable=False,
    rich_markup_mode=None,
)

Folder = Annotated[Path, typer.Argument(metavar="DIR", help="Output folder of a run.")]
FolderOrJob = Annotated[
    str,
    typer.Argument(
        metavar="DIR|JOB",
        help="Output folder of a run, or the id of a launched search (clsearch-NAME-xxxxxx; a "
        "folder of such a name is written ./NAME).",
    ),
]
Job = Annotated[str, typer.Argument(metavar="JOB", help="The id of a launched search.")]
Address = Annotated[
    str | None,
    typer.Option(help="Join a running Ray cluster: `auto` or HOST:PORT. Default: a local one."),
]
Cluster = Annotated[
    str,
    typer.Option(
        "--address",
        help="The Ray cluster: http://HOST:PORT of its dashboard, HOST:PORT of itself, or `auto`.",
    ),
]
TrackingUri = Annotated[
    str | None, typer.Option(help="MLflow server. Default: a database in the output folder.")
]
Workers = Annotated[int | None, typer.Option(min=1, help="Worker processes of a local run.")]
Data = Annotated[Path | None, typer.Option(help="Folder of the data sets.")]
Storage = Annotated[
    str | None,
    typer.Option(help="Journal and checkpoints: s3://…, gs://… or file://…. Default: OUT."),
]


class Screen(Console):
    """Standard output. Where nobody reads it any more, the command says so, and not rich."""

    def on_broken_pipe(self) -> None:
        raise BrokenPipeError(errno.EPIPE, os.strerror(errno.EPIPE))


@app.command()
def run(
    config: Annotated[Path, typer.Argument(metavar="CONFIG", help="YAML file of the search.")],
    out: Annotated[
        Path | None, typer.Option(help="Output folder. Default: runs/NAME of the config.")
    ] = None,
    address: Address = None,
    tracking_uri: TrackingUri = None,
    workers: Workers = None,
    data: Data = None,
    storage: Storage = None,
    dry_run: Annotated[
        bool, typer.Option(help="Print tasks, trials, packs, memory and time; train nothing.")
    ] = False,
) -> None:
    """Search a sequence of tasks: train, select, commit, and seed the next task.

    Run again, it trains only what is missing: after an interruption, with a larger grid, with
    another margin.
    """
    from clsearch import api
    from clsearch.driver import Options, plan_search

    loaded, console = api.load_config(config), Screen()
    if dry_run:
        target = out or Path("runs") / loaded.name
        plan_search(loaded, target, Options(address, tracking_uri, workers, data, storage), console)
        return
    api.run(
        loaded,
        out,
        address=address,
        tracking_uri=tracking_uri,
        workers=workers,
        data=data,
        storage=storage,
        console=console,
    )


@app.command()
def resume(
    out: FolderOrJob,
    address: Address = None,
    tracking_uri: TrackingUri = None,
    workers: Workers = None,
    data: Data = None,
) -> None:
    """Finish an interrupted run: nothing that had finished is trained again.

    A launched search goes on as a job of its cluster, whose --address is then as for `launch`.
    """
    from clsearch import launch
    from clsearch.driver import Options

    if launch.is_job(out, address):
        launch.resume(out, Options(address, tracking_uri, workers, data), Screen())
        return
    from clsearch import api

    api.run(
        api.Results(out).config,
        out,
        address=address,
        tracking_uri=tracking_uri,
        workers=workers,
        data=data,
        console=Screen(),
    )


@app.command()
def launch(
    config: Annotated[Path, typer.Argument(metavar="CONFIG", help="YAML file of the search.")],
    address: Cluster,
    out: Annotated[Path, typer.Option(help="Output folder on the cluster, an absolute path.")],
    tracking_uri: TrackingUri = None,
    data: Data = None,
    storage: Storage = None,
) -> None:
    """Have a Ray cluster search on its own: submit a job, print its id, and return.

    The config goes along; folders are the cluster's. `status`, `logs`, `stop` and `resume` follow
    the search from any machine that reaches the cluster and has its token.
    """
    from clsearch import api
    from clsearch import launch as room
    from clsearch.driver import Options

    options = Options(address, tracking_uri, None, data, storage)
    room.launch(api.load_config(config), out, options, Screen())


@app.command()
def status(
    out: FolderOrJob,
    address: Annotated[
        str | None, typer.Option(help="Of a launched search, its cluster, as for `launch`.")
    ] = None,
) -> None:
    """Show how far a run or a launched search is."""
    from clsearch import launch

    if address is not None or launch.is_job(out, address):
        launch.print_status(out, address, Screen())
    else:
        from clsearch import status as room

        room.print_status(Path(out), Screen())


@app.command()
def logs(
    job: Job,
    address: Cluster,
    follow: Annotated[
        bool, typer.Option("--follow", help="Go on until it ends. Ctrl-C ends this command alone.")
    ] = False,
) -> None:
    """Print what a launched search says."""
    from clsearch import launch

    launch.print_log(job, address, follow, Screen())


@app.command()
def stop(job: Job, address: Cluster) -> None:
    """Stop a launched search as Ctrl-C does: what has finished is kept, `resume` goes on."""
    from clsearch import launch

    launch.stop(job, address, Screen())


@app.command()
def select(
    out: Folder,
    margin: Annotated[float, typer.Option(help="Percentage points of validation accuracy.")],
    to: Annotated[Path | None, typer.Option(help="Also write the selections, as JSON.")] = None,
    force: Annotated[bool, typer.Option(help="Replace the file if it exists.")] = False,
) -> None:
    """Select again from a run's finished trials, with another margin. Trains nothing."""
    from clsearch import api
    from clsearch.files import atomic_write, check_writable
    from clsearch.reselect import print_selections

    if to is not None:
        if out.resolve() in to.resolve().parents:
            raise InputError("to", str(to), f"a file outside {out}, which the run's own are in")
        check_writable(to, force)
    chosen = api.select(out, margin)
    print_selections(out, margin, chosen, Screen())
    if to is not None:
        atomic_write(to, json.dumps([s.to_json() for s in chosen], indent=1) + "\n")


@app.command()
def export(
    out: Folder,
    to: Annotated[
        Path,
        typer.Option(
            help="Where to; the ending says what: .pt2 (torch.export), .onnx, .safetensors, or "
            ".mlflow, a folder for `mlflow models serve`. With --all, a new folder."
        ),
    ],
    method: Annotated[str | None, typer.Option(help="Method, by its label.")] = None,
    task: Annotated[int | None, typer.Option(help="Task, counted from 1.")] = None,
    seed: Annotated[int | None, typer.Option(help="Seed. Default: the run's first.")] = None,
    every: Annotated[
        bool, typer.Option("--all", help="Every selected model, with an index.")
    ] = False,
    format: Annotated[
        str | None,
        typer.Option(help="With --all: pt2, onnx, safetensors or mlflow. Default: pt2."),
    ] = None,
    compact: Annotated[
        bool, typer.Option(help="Only the neurons that the task needs; says what that saves.")
    ] = False,
    licence: Annotated[str, typer.Option(help="Licence of the model.")] = NOT_STATED,
    force: Annotated[bool, typer.Option(help="Replace what was exported there.")] = False,
) -> None:
    """Write the selected model of a task, with its head, to a file. Or all of them.

    It takes pixels as the data set stores them: what stands between them and the network is inside.
    """
    from clsearch import api
    from clsearch.exports.shown import print_export, print_index
    from clsearch.messages import say

    console = Screen()
    chosen = {"--method": method, "--task": task, "--seed": seed}
    if every:
        for name, value in chosen.items():
            if value is not None:
                raise InputError(name, value, "nothing beside --all, which exports every model")
        index = api.export_all(
            out,
            to,
            format="pt2" if format is None else format,
            compact=compact,
            licence=licence,
            force=force,
            note=lambda line: say(console, line),
        )
        print_index(index, to, console)
        return
    if format is not None:
        raise InputError("--format", format, "nothing without --all: the ending of --to says it")
    if method is None or task is None:
        missing = "--method" if method is None else "--task"
        raise InputError(missing, MISSING, "the model to export by its method and task, or --all")
    about = api.export(
        out, method, task, to, seed=seed, compact=compact, licence=licence, force=force
    )
    print_export(about, to, console)


@app.command()
def report(
    outs: Annotated[list[Path], typer.Argument(metavar="DIR", help="Output folders of runs.")],
    to: Annotated[
        Path | None,
        typer.Option(help="Folder to write. Default: DIR/report; several runs need one."),
    ] = None,
    csv: Annotated[bool, typer.Option("--csv", help="Also write the tables as CSV.")] = False,
    latex: Annotated[bool, typer.Option("--latex", help="Also write the tables as LaTeX.")] = False,
    force: Annotated[bool, typer.Option(help="Write into a folder that is not empty.")] = False,
) -> None:
    """Write a report on a run, or on several side by side: HTML, Markdown and figures."""
    from clsearch import reporting as room

    written = room.report(outs, to, csv=csv, latex=latex, force=force)
    room.print_written(written, csv or latex, Screen())


@app.command()
def ui(
    out: Folder,
    port: Annotated[
        int | None, typer.Option(min=1, max=65535, help="Port. Default: a free one.")
    ] = None,
) -> None:
    """Open the audit trail: serve MLflow's UI on this machine until Ctrl-C."""
    from clsearch.ui import serve

    serve(out, port, Screen())


@app.command()
def evaluate(
    file: Annotated[Path, typer.Argument(metavar="FILE", help="An exported model.")],
    data: Annotated[
        str | None,
        typer.Option(
            help="What to measure it on: the name of a data set, or a YAML file that describes a "
            "data set as `scenario.source` does, or a scenario. Default: its own task."
        ),
    ] = None,
    task: Annotated[int | None, typer.Option(help="Of a scenario, the task, from 1.")] = None,
    part: Annotated[str, typer.Option(help="test, validation, train or all.")] = "test",
    classes: Annotated[
        str | None, typer.Option(help="Classes, with commas. Default: all that both have.")
    ] = None,
    root: Annotated[Path | None, typer.Option(help="Folder of the data sets.")] = None,
    as_json: Annotated[bool, typer.Option("--json", help="Print JSON.")] = False,
) -> None:
    """Measure an exported model on data: of its own task, or any other.

    Classes of the model and of the data are the same by name.
    """
    from clsearch import evaluate as room

    chosen = None if classes is None else classes.split(",")
    found = room.evaluate(file, data, task=task, part=part, classes=chosen, root=root)
    if as_json:
        print(json.dumps(found.to_json(), indent=1))
    else:
        room.print_evaluation(found, Screen())


@app.command()
def compare(
    a: Annotated[Path, typer.Argument(metavar="DIR_A", help="Output folder of a run.")],
    b: Annotated[Path, typer.Argument(metavar="DIR_B", help="That of another.")],
    as_json: Annotated[bool, typer.Option("--json", help="Print JSON.")] = False,
) -> None:
    """Compare two runs: which selections differ, and why."""
    from clsearch import compare as room

    found = room.compare(a, b)
    if as_json:
        print(json.dumps(found, indent=1))
    else:
        room.print_comparison(found, Screen())


@app.command()
def doctor(data: Data = None) -> None:
    """Check versions, devices, Ray, MLflow and data folders; say what to mend."""
    from clsearch.doctor import examine

    raise typer.Exit(examine(data, Screen()))


@app.command()
def methods(
    name: Annotated[
        str | None, typer.Argument(metavar="NAME", help="One of them. Default: all.")
    ] = None,
) -> None:
    """Describe the methods, regularisers and activations: equations, options, hyperparameters."""
    from clsearch.catalogue import print_methods

    print_methods(name, Screen())
