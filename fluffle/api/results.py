"""Results of runs: a row for each, rows for each setting over its seeds, and files of them.

What never reached the target has no number there, and ``reached`` says how many did.
"""

from __future__ import annotations

import csv
import io
import json
import statistics
from collections.abc import Callable, Mapping, Sequence
from contextlib import closing
from pathlib import Path
from typing import Any

from fluffle.aggregator.ledger.damage import blamed
from fluffle.aggregator.ledger.reader import LedgerReader
from fluffle.aggregator.ledger.summary import summarise
from fluffle.api.plans import is_sweep, load_plan
from fluffle.history import columns, history
from fluffle.schemas import Experiment, UserError
from fluffle.settings import differences, given

Row = dict[str, Any]
FORMATS = ("csv", "parquet", "json", "latex")
#: Of a summary, besides its metrics.
_COUNTS = ("versions", "updates_counted", "dropouts", "failures", "bytes_up", "bytes_down")
#: What a row is called by, which no mean is taken of.
_NAMES = ("run", "status", "seed")


def run_folders(folders: Sequence[Path]) -> list[Path]:
    """These run folders, and of folders of sweeps their runs that have begun."""
    found: list[Path] = []
    for folder in folders:
        if is_sweep(folder):
            places = [folder / cell.folder for cell in load_plan(folder).cells]
            found += [place for place in places if _has_version(place)]
        else:
            found.append(folder)
    return found


def rows_of(folders: Sequence[Path], target: float | None = None) -> list[Row]:
    """A row for each run: the settings in which they differ, the seed, and what came of it.

    ``accuracy`` and ``loss`` are of test examples. ``time_s`` is virtual or real; ``target_…`` is
    what a run had spent at the first evaluation with at least this accuracy (on validation
    examples where there are any, as the run decides), None where there was none. Raises: UserError.
    """
    read = [_read(folder, target) for folder in run_folders(folders)]
    experiments = [experiment for experiment, _ in read]
    named = {n for e in experiments for n in given(e)} - {"experiment.seed"}
    differ = {n: v for n, v in differences(experiments).items() if n in named}
    rows = []
    for index, (experiment, result) in enumerate(read):
        row: Row = {"run": result.pop("run")}
        row |= {_short(name, differ): values[index] for name, values in differ.items()}
        rows.append(row | {"seed": experiment.experiment.seed} | result)
    return rows


def over_seeds(rows: Sequence[Row], settings: Sequence[str]) -> list[Row]:
    """A row for each setting: the number of seeds, then mean and sample standard deviation of each
    number, ``accuracy`` and ``accuracy_std``; of what only some runs have, of those.
    """
    groups: dict[str, list[Row]] = {}
    for row in rows:
        key = json.dumps([row.get(name) for name in settings], sort_keys=True)
        groups.setdefault(key, []).append(row)
    numbers = [n for n in columns(rows) if n not in (*_NAMES, *settings, "reached")]
    result = []
    for group in groups.values():
        made: Row = {name: group[0].get(name) for name in settings}
        made["seeds"] = len(group)
        for name in numbers:
            values = [row[name] for row in group if isinstance(row.get(name), int | float)]
            made[name] = statistics.fmean(values) if values else None
            made[f"{name}_std"] = statistics.stdev(values) if len(values) > 1 else None
        if "reached" in group[0]:
            made["reached"] = sum(row["reached"] for row in group)
        result.append(made)
    return result


def settings_in(rows: Sequence[Row]) -> list[str]:
    """The columns that are settings: those between a run's name and its seed."""
    names = columns(rows)
    return names[1 : names.index("seed")] if "seed" in names else []


def write_rows(rows: Sequence[Row], kind: str, path: Path | None) -> str | None:
    """Write them into a file, or give them as text where there is none. Raises: UserError."""
    if kind not in FORMATS:
        raise UserError(f"--format {kind}: it is {', '.join(FORMATS)}")
    if kind == "parquet":
        if path is None:
            raise UserError("--format parquet needs a file: add --out FILE.parquet")
        _write_parquet(rows, path)
        return None
    form: Callable[[Sequence[Row]], str] = {"csv": _csv, "json": _json, "latex": latex}[kind]
    text = form(rows)
    if path is None:
        return text
    try:
        path.write_text(text, encoding="utf-8")
    except OSError as error:
        raise UserError(f"cannot write {path}: {error.strerror or error}") from None
    return None


def latex(rows: Sequence[Row]) -> str:
    r"""A table of rows for a paper (booktabs); ``x`` and ``x_std`` become one cell, ``x \pm y``."""
    names = columns(rows)
    shown = [name for name in names if not (name.endswith("_std") and name[:-4] in names)]
    shown = [name for name in shown if any(row.get(name) is not None for row in rows)]
    numeric = [any(isinstance(row.get(n), int | float) for row in rows) for n in shown]
    lines = [
        r"\begin{tabular}{" + "".join("r" if is_number else "l" for is_number in numeric) + "}",
        r"\toprule",
        " & ".join(_escaped(name.replace("_", " ")) for name in shown) + r" \\",
        r"\midrule",
        *(" & ".join(_cell(row, name) for name in shown) + r" \\" for row in rows),
        r"\bottomrule",
        r"\end{tabular}",
    ]
    return "\n".join(lines) + "\n"


def _read(folder: Path, target: float | None) -> tuple[Experiment, Row]:
    with blamed(folder), closing(LedgerReader(folder)) as ledger:
        meta = ledger.meta
        if "experiment" not in meta or ledger.latest_version() < 0:
            raise UserError(f"{folder} has no results yet: no version has been made")
        summary = summarise(ledger)
        rows = history(ledger) if target is not None else []
    experiment = Experiment.stored(meta["experiment"])
    result: Row = {"run": str(folder), "status": summary["status"]}
    result |= summary["metrics"]
    result |= {f"client_{name}": v for name, v in (summary["by_client"] or {}).items()}
    result |= {name: summary[name] for name in _COUNTS}
    result["rejected"] = sum(summary["updates_rejected"].values())
    result["time_s"] = summary["wall_s"]
    if target is not None:
        result |= _at(rows, target)
    return experiment, result


def _at(rows: Sequence[Row], target: float) -> Row:
    up = down = 0
    for row in rows:
        up, down = up + row["bytes_up"], down + row["bytes_down"]
        accuracy = row.get("validation_accuracy", row.get("accuracy"))
        if accuracy is not None and accuracy >= target:
            spent = {"target_updates": row["updates_total"], "target_time_s": row["time_s"]}
            return {"reached": True, **spent, "target_bytes": up + down}
    nothing = dict.fromkeys(("target_updates", "target_time_s", "target_bytes"))
    return {"reached": False, **nothing}


def _has_version(folder: Path) -> bool:
    try:
        with closing(LedgerReader(folder)) as ledger:
            return ledger.latest_version() >= 0
    except UserError:
        return False


def _short(name: str, names: Mapping[str, Any]) -> str:
    """A setting's key without its table, where no other has the key, and no column of results."""
    key = name.rpartition(".")[2]
    alone = sum(other.rpartition(".")[2] == key for other in names) == 1
    return key if alone and key not in (*_NAMES, *_COUNTS, "name", "kind") else name


def _csv(rows: Sequence[Row]) -> str:
    names = columns(rows)
    text = io.StringIO()
    writer = csv.writer(text, lineterminator="\n")
    writer.writerow(names)
    writer.writerows([_plain(row.get(name)) for name in names] for row in rows)
    return text.getvalue()


def _plain(value: Any) -> Any:
    if value is None:
        return ""
    return json.dumps(value) if isinstance(value, list | dict) else value


def _json(rows: Sequence[Row]) -> str:
    return json.dumps(list(rows), indent=1) + "\n"


def _write_parquet(rows: Sequence[Row], path: Path) -> None:
    try:
        import pyarrow as pa
        from pyarrow import parquet
    except ModuleNotFoundError:
        raise UserError("Parquet needs pyarrow: pip install 'fluffle[data]'") from None
    table = {name: [_of_one_type(row.get(name)) for row in rows] for name in columns(rows)}
    for name, values in table.items():  # a column has one type, and a setting may have several
        if len({type(v) for v in values if v is not None} - {int, float}) > 1:
            table[name] = [None if v is None else str(v) for v in values]
    try:
        parquet.write_table(pa.table(table), path)
    except OSError as error:
        raise UserError(f"cannot write {path}: {error.strerror or error}") from None


def _of_one_type(value: Any) -> Any:
    return json.dumps(value) if isinstance(value, list | dict) else value


def _cell(row: Row, name: str) -> str:
    value, spread = row.get(name), row.get(f"{name}_std")
    if value is None:
        return "--"
    if isinstance(value, bool) or not isinstance(value, int | float):
        return _escaped(str(value))
    text = _number(value)
    return text if spread is None else rf"${text} \pm {_number(spread)}$"


def _number(value: float) -> str:
    if float(value).is_integer() and abs(value) < 1e15:
        return f"{value:.0f}"
    return f"{value:.4g}" if 1e-3 <= abs(value) < 1e6 else f"{value:.3e}"


def _escaped(text: str) -> str:
    special = {"\\": r"\textbackslash{}", "~": r"\textasciitilde{}", "^": r"\textasciicircum{}"}
    return "".join(special.get(c, rf"\{c}" if c in "&%$#_{}" else c) for c in text)
