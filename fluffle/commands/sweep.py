"""``fluffle sweep``: every combination of some settings, with several seeds."""

from __future__ import annotations

import logging
import os
import re
import tomllib
from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from fluffle.commands.options import Data, ExperimentFile, Settings
from fluffle.schemas.errors import UserError

if TYPE_CHECKING:
    from fluffle.api.random_search import Range
    from fluffle.api.sweeps import Sweep

_log = logging.getLogger(__name__)

Target = Annotated[
    float | None, typer.Option(help="An accuracy in (0, 1]: tables say what it took to reach it.")
]


def sweep(
    context: typer.Context,
    file: ExperimentFile,
    grid: Annotated[
        list[str] | None,
        typer.Option(
            "--grid", metavar="KEY=A,B,…", help="Values of a key; several make all combinations."
        ),
    ] = None,
    ranges: Annotated[
        list[str] | None,
        typer.Option(
            "--range", metavar="KEY=LOW..HIGH", help="Of --random: KEY=LOW..HIGH, or …:log."
        ),
    ] = None,
    random: Annotated[
        int | None,
        typer.Option(min=1, help="Draw so many settings from --range and --grid; not all."),
    ] = None,
    seeds: Annotated[
        int, typer.Option(min=1, help="How many seeds, from the experiment's own on.")
    ] = 1,
    jobs: Annotated[
        int, typer.Option(min=1, help="Processes that work on it. 1: this one, with --slots.")
    ] = 1,
    out: Annotated[
        Path | None, typer.Option(help="Its folder. One that holds this sweep goes on.")
    ] = None,
    settings: Settings = None,
    clock: Annotated[
        str, typer.Option(help="virtual, or real: then runs beside each other take longer.")
    ] = "virtual",
    slots: Annotated[
        int, typer.Option(min=0, help="Clients trained at the same time with one job. 0: by cores.")
    ] = 0,
    target: Target = None,
    data: Data = None,
    json: Annotated[
        bool, typer.Option("--json", help="The last line on stdout is one object.")
    ] = False,
) -> None:
    """Run an experiment with many settings and seeds; what is done is not done again."""
    from fluffle.api.sweeps import SweepStopped, as_json
    from fluffle.api.sweeps import sweep as run_sweep
    from fluffle.commands.run import given
    from fluffle.experiment_file import document_of
    from fluffle.invocation import to_paste
    from fluffle.launch import new_folder, use_data
    from fluffle.shipped import experiment_file

    file = experiment_file(file)
    document = document_of(file, settings or [], os.environ)
    use_data(data)
    name = (document.get("experiment") or {}).get("name", "experiment")
    folder = out or new_folder(f"sweep-{name}")
    values = dict(map(grid_values, grid or [])) | dict(map(range_of, ranges or []))
    if ranges and random is None:
        raise UserError("--range has no end of values: say how many settings to draw, --random 20")
    try:
        done = run_sweep(
            document,
            values,
            random=random,
            seeds=seeds,
            jobs=jobs,
            out=folder,
            clock=clock,
            slots=slots,
            code=file.parent,
            target=target,
        )
    except SweepStopped as stopped:
        again = to_paste(*given(context, without="out"), "--out", folder)
        _log.warning("stopped after %d of %d runs; to go on: %s",
                     len(stopped.sweep.runs), len(stopped.sweep), again)  # fmt: skip
        raise typer.Exit(130) from None
    if json:
        typer.echo(as_json(done, target))
    else:
        _print(done, target)
    if done.failed:
        why = next(iter(done.failed.items()))
        raise UserError(f"{len(done.failed)} of {len(done)} runs failed; {why[0]}: {why[1]}")


def grid_values(text: str) -> tuple[str, list[Any]]:
    """A key and its values, from ``KEY=A,B``; values as TOML has them, or words.

    Raises: UserError.
    """
    key, equals, values = text.partition("=")
    if not (equals and key.strip() and values.strip()):
        raise UserError(f"--grid {text}: write KEY=A,B, as in aggregation.quorum=1,3,10")
    try:
        return key.strip(), tomllib.loads(f"values = [{values}]")["values"]
    except tomllib.TOMLDecodeError:
        return key.strip(), [_value(word.strip()) for word in values.split(",")]


def range_of(text: str) -> tuple[str, Range]:
    """A key and its range, from ``KEY=LOW..HIGH`` or ``KEY=LOW..HIGH:log``. Raises: UserError."""
    from fluffle.api.random_search import Range

    found = re.fullmatch(r"([^=]+)=(.+?)\.\.(.+?)(:log)?", text)
    try:
        key, low, high, log = found.groups() if found else ("", "", "", None)
        return key.strip(), Range(_number(low), _number(high), log is not None)
    except ValueError:
        raise UserError(
            f"--range {text}: write KEY=LOW..HIGH, as in training.learning_rate=0.001..0.1:log"
        ) from None


def _number(word: str) -> float:
    try:
        return int(word)
    except ValueError:
        return float(word)


def _value(word: str) -> Any:
    try:
        return tomllib.loads(f"value = {word}")["value"]
    except tomllib.TOMLDecodeError:
        return word


def _print(done: Sweep, target: float | None) -> None:
    from rich.console import Console
    from rich.table import Table
    from rich.text import Text

    from fluffle.invocation import to_paste

    console = Console(highlight=False)
    if not console.is_terminal:
        console.width = 160  # of a file or a pipe
    rows = done.table_rows(target)
    table = Table(box=None, pad_edge=False, header_style="dim")
    columns = _columns(rows)
    for name in columns:
        table.add_column(
            _HEADS.get(name, name.replace("_", " ")),
            justify="left" if _is_text(rows, name) else "right",
        )
    for row in rows:
        table.add_row(*(Text(_cell(row, name)) for name in columns))
    console.print(table)
    console.print(
        f"tables  {done.folder / 'table.csv'}, {done.folder / 'runs.csv'}", soft_wrap=True
    )
    console.print(f"report  {to_paste('report', done.folder)}", soft_wrap=True)


#: How a terminal has columns' names, which have to be short.
_HEADS = {
    **{
        "accuracy": "test accuracy",
        "loss": "test loss",
        "updates_counted": "updates",
        "time_s": "time (s)",
    },
    **{"target_updates": "updates to target", "target_time_s": "time to target (s)"},
}


def _columns(rows: Sequence[dict[str, Any]]) -> list[str]:
    """What a terminal has room for: settings, seeds, metrics and time; to the target, with one."""
    names = list(dict.fromkeys(name for row in rows for name in row))
    first = names[: names.index("seeds") + 1] if "seeds" in names else []
    wanted = ("accuracy", "loss", "updates_counted", "time_s", "target_updates", "target_time_s")
    return [*first, *(n for n in (*wanted, "reached") if n in names)]


def _is_text(rows: Sequence[dict[str, Any]], name: str) -> bool:
    return any(isinstance(row.get(name), str) for row in rows)


def _cell(row: dict[str, Any], name: str) -> str:
    value, spread = row.get(name), row.get(f"{name}_std")
    if name == "reached":
        return f"{value} of {row['seeds']}"
    if not isinstance(value, float) or isinstance(value, bool):
        return "–" if value is None else str(value)
    if name == "accuracy":
        return f"{value:.2%}" + (f" ± {spread:.2%}" if spread else "")
    return f"{value:.4g}" + (f" ± {spread:.2g}" if spread else "")
