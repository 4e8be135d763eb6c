"""A heat map of the labels of each client: as text for a terminal, as a picture for a paper."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Self

import numpy as np
from numpy.typing import NDArray

from fluffle.schemas import UserError
from fluffle.schemas.experiment import PartitionTable

#: Columns and rows that a terminal shows; more clients share a column, rarer labels a line.
_COLUMNS = 60
_ROWS = 20
#: Up to here a cell of the picture has room for its number.
_NUMBERED = 15
_BLOCKS = " ▁▂▃▄▅▆▇█"

#: Kind -> its parameter's key, what it is by default, and how it is said.
_PARAMETERS: dict[str, tuple[str, float, str]] = {
    "dirichlet": ("alpha", 0.5, "alpha {:g} over all classes, client by client"),
    "dirichlet-by-class": ("alpha", 0.5, "alpha {:g} for each client, class by class"),
    "labels": ("labels_per_client", 2, "{:g} classes each"),
    "quantity": ("alpha", 0.5, "alpha {:g} for each client, sizes alone"),
    "shards": ("shards_per_client", 2, "{:g} for each"),
    "power-law": ("exponent", 1, "exponent {:g}"),
    "similarity": ("similarity", 10, "{:g} %"),
}


@dataclass(frozen=True, eq=False)
class Shares:
    """How many examples of each label each client has."""

    title: str
    #: What the labels are called.
    labels: Sequence[str]
    #: Shape (labels, clients). Where an example has a label for each position, these are counted.
    counts: NDArray[np.int64]
    #: Examples of each client, shape (clients,).
    sizes: NDArray[np.int64]

    @classmethod
    def of(
        cls,
        title: str,
        targets: NDArray[Any],
        parts: Sequence[NDArray[np.int32]],
        labels: Sequence[str],
    ) -> Self:
        """What ``parts`` have of ``targets``, shape (examples, …), each the index of a label."""
        columns = [np.bincount(targets[part].ravel(), minlength=len(labels)) for part in parts]
        sizes = np.array([len(part) for part in parts])
        return cls(title, [_visible(label) for label in labels], np.stack(columns, axis=1), sizes)

    @property
    def skewed(self) -> bool:
        """Whether most cells would look empty on a linear scale."""
        return bool(np.median(self.counts[self.counts > 0]) < self.counts.max() / 100)


def describe(table: PartitionTable) -> str:
    """A partition's kind with its parameter: ``dirichlet (alpha 0.5)``."""
    if table.kind not in _PARAMETERS:
        return table.kind
    key, default, text = _PARAMETERS[table.kind]
    value = getattr(table, key)
    return f"{table.kind} ({text.format(default if value is None else value)})"


def as_text(shares: Shares) -> str:
    """One line for each label, one column for each client (or for several that stand together)."""
    clients = len(shares.sizes)
    edges = np.unique(np.linspace(0, clients, min(clients, _COLUMNS) + 1).round().astype(int))
    cells = np.add.reduceat(shares.counts, edges[:-1], axis=1) / np.diff(edges)
    totals = shares.counts.sum(axis=1)
    shown = np.sort(np.argsort(-totals, kind="stable")[:_ROWS])
    heights = np.log1p(cells) if shares.skewed else cells
    levels = np.ceil(heights / heights.max() * (len(_BLOCKS) - 1)).astype(int)
    width = max(len("label"), *(len(shares.labels[row]) for row in shown))
    each = f"{clients / _COLUMNS:.3g} clients" if clients > _COLUMNS else "a client"
    scale = ", on a logarithmic scale" if shares.skewed else ""
    held = (shares.counts > 0).sum(axis=0)
    lines = [
        shares.title,
        f"{'label':>{width}} each column is {each}{scale}; then all of the label",
    ]
    lines += [
        f"{shares.labels[row]:>{width}} {''.join(_BLOCKS[level] for level in levels[row])} "
        f"{totals[row]:,}"
        for row in shown
    ]
    if rest := len(totals) - len(shown):
        lines.append(f"… and {rest} labels that are rarer")
    lines.append(f"examples of a client: {_spread(shares.sizes)}; labels: {_spread(held)}")
    return "\n".join(lines)


def draw(shares: Shares, out: Path) -> None:
    """The label-by-client heat map, with the clients' sizes above it. Raises: UserError."""
    try:
        import matplotlib as mpl
        from matplotlib.colors import LogNorm, Normalize
        from matplotlib.figure import Figure
        from matplotlib.ticker import MaxNLocator
    except ImportError:
        raise UserError(
            "drawing needs matplotlib: pip install 'fluffle[report]', or leave --out away"
        ) from None
    labels, clients = shares.counts.shape
    figure = Figure(figsize=(7.2, min(9.0, 2.2 + 0.28 * max(labels, 5))), layout="constrained")
    sizes, cells = figure.subplots(
        2, 1, sharex=True, gridspec_kw={"height_ratios": [1, max(3.0, labels / 4)]}
    )
    figure.suptitle(shares.title, fontsize=11)
    sizes.bar(range(clients), shares.sizes, width=0.8 if clients <= 100 else 1.0, color="#7a7a7a")
    sizes.set_ylabel("examples")
    sizes.yaxis.set_major_locator(MaxNLocator(2))
    sizes.spines[["top", "right"]].set_visible(False)
    most = shares.counts.max()
    norm = LogNorm(0.5, most) if shares.skewed else Normalize(0, most)
    none = np.ma.masked_equal(shares.counts, 0)
    image = cells.imshow(none, cmap="Blues", norm=norm, aspect="auto", interpolation="nearest")
    cells.set_xlabel("client")
    cells.xaxis.set_major_locator(MaxNLocator(20, integer=True))
    cells.set_yticks(range(labels), shares.labels, fontsize=9 if labels <= 30 else 5)
    if clients <= _NUMBERED and labels <= _NUMBERED:
        for row, column in np.ndindex(labels, clients):
            if count := shares.counts[row, column]:
                colour = "white" if norm(count) > 0.5 else "#333333"
                cells.text(column, row, count, ha="center", va="center", size=6.5, color=colour)
    figure.colorbar(image, ax=[sizes, cells], label="examples of the label", pad=0.01)
    with mpl.rc_context({"svg.hashsalt": "fluffle"}):
        try:
            figure.savefig(out, metadata={"Date": None} if out.suffix == ".svg" else None, dpi=200)
        except (ValueError, OSError) as error:
            raise UserError(f"cannot draw into {out}: {error}") from None


def _visible(label: str) -> str:
    return {" ": "space", "\n": "newline"}.get(label, label)


def _spread(values: NDArray[np.int64]) -> str:
    least, most = values.min(), values.max()
    return f"{least:,} to {most:,}" if least != most else f"{most:,} each"
