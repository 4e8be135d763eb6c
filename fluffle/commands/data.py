"""``fluffle data``: which data sets there are, fetching one, and who gets what of it."""

from __future__ import annotations

import os
from json import dumps
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from fluffle.commands.options import OneObject, Settings
from fluffle.schemas import Experiment

if TYPE_CHECKING:
    from numpy.typing import NDArray

    from fluffle.heatmap import Shares
    from fluffle.worker.datasets import Dataset, Progress

app = typer.Typer(help="Data sets.", no_args_is_help=True)

#: The data set that is generated, not fetched.
_SYNTHETIC = "synthetic"

Name = Annotated[str, typer.Argument(help="As in fluffle data list.")]


@app.command("list")
def data_list(json: OneObject = False) -> None:
    """The data sets, and whether they are here."""
    from fluffle.worker.datasets import describe

    if json:
        found = [
            {"name": recipe.name, "summary": recipe.summary, "path": str(path) if path else None}
            for recipe, path in describe()
        ]
        typer.echo(dumps({"datasets": found}))
        return
    for recipe, path in describe():
        where = str(path) if path else f"not here yet: fluffle data fetch {recipe.name}"
        typer.echo(f"{recipe.name:16} {recipe.summary}\n{'':16} {where}")
    typer.echo(f"{_SYNTHETIC:16} synthetic(alpha, beta): generated when it is used")


@app.command("fetch")
def data_fetch(
    name: Name,
    brought: Annotated[
        Path | None,
        typer.Option("--from", help="A file or folder that you have, to be read instead."),
    ] = None,
) -> None:
    """Fetch a data set, and check it."""
    from fluffle.display import Display
    from fluffle.worker.datasets import fetch

    with Display(name) as display:
        path = fetch(name, display.fetching, brought)
    typer.echo(f"{name}: {path}")


@app.command("show")
def data_show(
    name: Name,
    partition: Annotated[
        str, typer.Option(help="partition.kind; default: natural where data has owners, else iid.")
    ] = "",
    clients: Annotated[
        int, typer.Option(min=0, help="task.clients; 0: all owners if natural, else 10.")
    ] = 0,
    settings: Settings = None,
    out: Annotated[
        Path | None,
        typer.Option(help="Draw the heat map into this file: .svg, .pdf or .png."),
    ] = None,
    json: OneObject = False,
) -> None:
    """How many examples of each label each client gets."""
    from fluffle.display import Display
    from fluffle.heatmap import as_text, draw

    with Display(name) as display:
        shares = _shares(name, partition, clients, settings or [], display.fetching)
    if json:
        table = {"labels": list(shares.labels), "examples": shares.sizes.tolist()}
        typer.echo(dumps({"title": shares.title, **table, "counts": shares.counts.T.tolist()}))
    else:
        typer.echo(as_text(shares))
    if out is not None:
        draw(shares, out)
    if out is not None and not json:
        typer.echo(f"drawn: {out}")


def _shares(name: str, kind: str, clients: int, settings: list[str], progress: Progress) -> Shares:
    from fluffle.experiment_file import load_experiment
    from fluffle.heatmap import Shares, describe
    from fluffle.worker.tasks.partitions import partition

    chosen = [f"partition.kind='{kind}'"] if kind else []
    chosen += [f"task.clients={clients}"] if clients else []
    chosen += ["task.name='synthetic-lr'"] if name == _SYNTHETIC else []
    experiment = load_experiment(None, [*settings, *chosen], os.environ)
    data, classes = _data(name, experiment, progress)
    if not kind and "kind" not in experiment.partition.model_fields_set:
        kind = "iid" if data.owner_train is None else "natural"
    table = experiment.partition.model_copy(update={"kind": kind} if kind else {})
    if not clients and "clients" not in experiment.task.model_fields_set:
        owners: NDArray[Any] | None = data.owner_train
        clients = 10 if owners is None or table.kind != "natural" else len(set(owners.tolist()))
    clients = clients or experiment.task.clients
    seed = experiment.experiment.seed
    parts = partition(table, data.y_train, clients, seed, data.owner_train)
    return Shares.of(f"{name}, {describe(table)}, {clients} clients", data.y_train, parts, classes)


def _data(name: str, experiment: Experiment, progress: Progress) -> tuple[Dataset, tuple[str, ...]]:
    from fluffle.worker.datasets import load, recipe, synthetic

    if name == _SYNTHETIC:
        from fluffle.worker.tasks.synthetic import SyntheticLr

        task = SyntheticLr.of(experiment.task, experiment.partition, experiment.experiment.seed)
        return task.data, tuple(map(str, range(synthetic.CLASSES)))
    return load(name, progress), recipe(name).classes
