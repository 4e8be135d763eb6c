"""One table of asynchronous methods: virtual time, updates and bytes to 80 % on one grid.

    python benchmarks/async/measure.py --search    # chosen.json: six settings of each method
    python benchmarks/async/measure.py             # results.csv, the tables and results.svg
    python benchmarks/async/measure.py --tables    # of what results.csv has

Goes on where it was stopped, seed by seed. README.md says what to expect.
"""

from __future__ import annotations

import argparse
import csv
import json
import math
import statistics
import sys
from pathlib import Path
from typing import Any

import fluffle as fl

sys.path.insert(0, str(Path(__file__).parents[1]))

from methods import COMMON, DATA, GRID, IN_FLIGHT, METHODS, SEARCHED, SPEEDS, Cell, Settings, tried
from sweep import save

HERE = Path(__file__).parent
CHOSEN = HERE / "chosen.json"
SEEDS, SEARCH_SEED = (1, 2, 3, 4, 5), 100
TARGET = COMMON["experiment"]["target_accuracy"]
MEASURES = ("time", "updates", "arrived", "bytes")
Row = dict[str, Any]
#: Half of a 95 % interval of Student's t, in standard errors, by degrees of freedom.
_T = {1: 12.706, 2: 4.303, 3: 3.182, 4: 2.776}


def run(jobs: list[tuple[Row, Settings]], seeds: tuple[int, ...], out: Path) -> list[Row]:
    """A row for each run that has ended: what it is of, and what it took to the target."""
    try:
        sweep = fl.sweep(COMMON, [s for _, s in jobs], seeds=seeds, out=out, slots=1, target=TARGET)
    except fl.SweepStopped as stopped:
        sweep = stopped.sweep
        print(stopped, file=sys.stderr)
    return rows_of(sweep, jobs)


def rows_of(sweep: fl.Sweep, jobs: list[tuple[Row, Settings]]) -> list[Row]:
    """The same of the runs that a sweep has done."""
    of_settings = {_key(settings): of for of, settings in jobs}
    of_folder = {c.folder: of_settings.get(_key(c.settings)) for c in sweep.plan.cells}
    rows = []
    for row in sweep.rows(TARGET):
        if (of := of_folder[Path(row["run"]).name]) is None:  # of an earlier grid
            continue
        met = row["reached"]
        # A run ends at the target, so what it spent in all is what it took, lost work included.
        spent = {
            "time": row["target_time_s"],
            "updates": row["target_updates"],
            "arrived": row["updates_counted"] + row["rejected"] if met else None,
            "bytes": row["bytes_up"] + row["bytes_down"] if met else None,
        }
        rows.append({**of, "seed": row["seed"], **spent, "accuracy": row["accuracy"]})
    return rows


def _key(settings: Any) -> str:
    return json.dumps(settings, sort_keys=True)


def settings_of(method: str, cell: Cell, own: Settings) -> Settings:
    """The experiment of a method at a place on the grid."""
    return {**cell.settings, **METHODS[method](cell.in_flight), **own}


def search(cells: list[Cell], out: Path) -> None:
    """chosen.json: for each method and kind of data the settings that took the least time."""
    jobs = [
        ({"method": method, "data": cell.data, "own": own}, settings_of(method, cell, own))
        for cell in cells
        for method in METHODS
        for own in tried(method)
    ]
    rows = run(jobs, (SEARCH_SEED,), out / "search")
    known = json.loads(CHOSEN.read_text()) if CHOSEN.exists() else {}
    chosen: dict[str, dict[str, Any]] = {cell.data: {} for cell in cells}
    for data, of_data in chosen.items():
        for method in METHODS:
            mine = [r for r in rows if (r["method"], r["data"]) == (method, data)]
            if not mine:
                raise SystemExit(f"the search has no run of {method} yet: the same command goes on")
            best = min(mine, key=lambda r: (r["time"] or math.inf, -r["accuracy"]))
            met = sum(r["time"] is not None for r in mine)
            of_data[method] = {**best["own"], "time": best["time"], "met": f"{met} of {len(mine)}"}
    CHOSEN.write_text(json.dumps(known | chosen, indent=1) + "\n")


def table(cells: list[Cell], seeds: tuple[int, ...], out: Path) -> list[Row]:
    """results.csv: every method everywhere, with the settings of chosen.json."""
    return written(run(jobs_of(cells), seeds, out / "table"))


def jobs_of(cells: list[Cell]) -> list[tuple[Row, Settings]]:
    """Every method at these places, with what was chosen for it."""
    chosen = json.loads(CHOSEN.read_text())
    jobs = []
    for cell in cells:
        for method in METHODS:
            own = {k: v for k, v in chosen[cell.data][method].items() if "." in k}
            jobs.append(({"method": method, **cell._asdict()}, settings_of(method, cell, own)))
    return jobs


def written(rows: list[Row]) -> list[Row]:
    """results.csv has them."""
    with (HERE / "results.csv").open("w", newline="") as file:
        writer = csv.DictWriter(file, [*rows[0]])
        writer.writeheader()
        writer.writerows(rows)
    return rows


def stored() -> list[Row]:
    """The rows of results.csv."""
    with (HERE / "results.csv").open(newline="") as file:
        rows: list[Row] = list(csv.DictReader(file))
    for row in rows:
        row["in_flight"] = int(row["in_flight"])
        for name in MEASURES:
            row[name] = float(row[name]) if row[name] else None
    return rows


def interval(values: list[float]) -> tuple[float, float]:
    """The mean, and half of its 95 % interval."""
    if len(values) < 2:
        return statistics.fmean(values), math.nan
    return statistics.fmean(values), _T[len(values) - 1] * statistics.stdev(values) / math.sqrt(
        len(values)
    )


def of(rows: list[Row], method: str, cell: Cell, measure: str) -> list[float | None]:
    """What the seeds of a method took at a place, None where one never arrived."""
    return [r[measure] for r in rows if (r["method"], *_place(r)) == (method, *cell)]


def _place(row: Row) -> tuple[str, str, int]:
    return row["speed"], row["data"], row["in_flight"]


def shown(values: list[float | None], digits: int, unit: float = 1.0) -> str:
    """Mean and interval, or how many arrived."""
    met = [value / unit for value in values if value is not None]
    if not values:
        return "not run"
    if len(met) < len(values):
        return f"{len(met)} of {len(values)} runs"
    mean, half = interval(met)
    return f"{mean:.{digits}f}" + ("" if math.isnan(half) else f" ± {half:.{digits}f}")


def print_tables(rows: list[Row]) -> None:
    """One table for each kind of data: places below each other, methods side by side."""
    for data in DATA:
        print(f"\n**{data}**\n")
        heads = ("speeds", "in flight", "method", "virtual s", "counted", "arrived", "MB")
        print(f"| {' | '.join(heads)} |\n" + "| --- " * len(heads) + "|")
        for cell in (cell for cell in GRID if cell.data == data):
            if not of(rows, "FedAvg", cell, "time"):
                print(f"| {cell.speed} | {cell.in_flight} | not run | | | | |")
                continue
            for method in METHODS:
                time, updates, arrived, size = (of(rows, method, cell, name) for name in MEASURES)
                print(
                    f"| {cell.speed} | {cell.in_flight} | {method} | {shown(time, 1)} | "
                    f"{shown(updates, 0)} | {shown(arrived, 0)} | {shown(size, 2, 1e6)} |"
                )


def draw(rows: list[Row], path: Path) -> None:
    """Virtual time to the target: a panel for each kind of data and number in flight."""
    import matplotlib

    matplotlib.use("svg")
    from matplotlib import pyplot

    panels = sorted({(row["data"], row["in_flight"]) for row in rows})
    figure, axes = pyplot.subplots(
        1, len(panels), figsize=(5 + 4 * len(panels), 4.2), layout="constrained", squeeze=False
    )
    width = 0.8 / len(METHODS)
    for axis, (data, in_flight) in zip(axes[0], panels, strict=True):
        for number, method in enumerate(METHODS):
            bars = []
            for at, speed in enumerate(SPEEDS):
                values = of(rows, method, Cell(speed, data, in_flight), "time")
                met = [value for value in values if value is not None]
                if met and len(met) == len(values):
                    mean, half = interval(met)
                    place = at + (number - len(METHODS) / 2 + 0.5) * width
                    bars.append((place, mean, 0 if math.isnan(half) else half))
            if bars:
                places, means, halves = zip(*bars, strict=True)
                axis.bar(places, means, width, yerr=halves, capsize=1.5, label=method)
        axis.set_xticks(range(len(SPEEDS)), [*SPEEDS])
        axis.set(yscale="log", title=f"{data}, {in_flight} in flight")
    axes[0][0].set_ylabel(f"virtual s to {TARGET:.0%}")
    figure.legend(*axes[0][0].get_legend_handles_labels(), loc="outside lower center", ncols=4)
    save(figure, path)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--search", action="store_true")
    parser.add_argument("--tables", action="store_true", help="run nothing")
    parser.add_argument("--seeds", type=int, default=len(SEEDS))
    parser.add_argument("--out", type=Path, default=Path("runs/async"))
    parser.add_argument("--speed", action="append", choices=[*SPEEDS], help="default: all")
    parser.add_argument("--data", action="append", choices=[*DATA], help="default: all")
    parser.add_argument("--in-flight", action="append", type=int, choices=IN_FLIGHT)
    options = parser.parse_args()
    data = options.data or [*DATA]
    if options.search:
        search([cell for cell in SEARCHED if cell.data in data], options.out)
        return
    cells = [
        cell
        for cell in GRID
        if cell.data in data
        and cell.speed in (options.speed or SPEEDS)
        and cell.in_flight in (options.in_flight or IN_FLIGHT)
    ]
    rows = stored() if options.tables else table(cells, SEEDS[: options.seeds], options.out)
    print_tables(rows)
    draw(rows, HERE / "results.svg")


if __name__ == "__main__":
    main()
