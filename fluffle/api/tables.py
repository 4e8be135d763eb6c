"""Tables of a run as rows, and as pandas DataFrames where pandas is there and asked for."""

from __future__ import annotations

import json
from collections.abc import Sequence
from contextlib import closing
from pathlib import Path
from typing import TYPE_CHECKING, Any

from fluffle.aggregator.ledger.damage import blamed
from fluffle.aggregator.ledger.reader import LedgerReader
from fluffle.history import columns, history
from fluffle.schemas import UserError

if TYPE_CHECKING:
    import pandas as pd

Row = dict[str, Any]
_OF_UPDATE = (
    *("update_id", "disposition", "version", "client", "turn", "base_version", "staleness"),
    *("examples", "worker", "train_s", "slot_s", "bytes_up", "bytes_down"),
)


def history_rows(folder: Path) -> list[Row]:
    """A row for each version, as ``fluffle export --format csv`` has them."""
    with blamed(folder), closing(LedgerReader(folder)) as ledger:
        return history(ledger)


def update_rows(folder: Path) -> list[Row]:
    """A row for each update that arrived and was folded, in the order of its version and arrival.

    ``version`` is the one that counts it, None for none; ``train_…`` what its client measured.
    """
    with blamed(folder), closing(LedgerReader(folder)) as ledger:
        found = ledger.query(
            f"SELECT {', '.join(_OF_UPDATE)}, metrics FROM updates WHERE turn > 0"
            " ORDER BY version IS NULL, version, position"
        )
    rows = []
    for *values, metrics in found:
        row: Row = dict(zip(_OF_UPDATE, values, strict=True))
        rows.append(row | {f"train_{name}": v for name, v in json.loads(metrics).items()})
    return rows


def frame(rows: Sequence[Row], index: str | None = None) -> pd.DataFrame:
    """The rows as a DataFrame. Raises: UserError where pandas is not installed."""
    try:
        import pandas as pd
    except ModuleNotFoundError:
        raise UserError("tables need pandas: pip install 'fluffle[pandas]'") from None
    made = pd.DataFrame(list(rows), columns=columns(rows))
    return made if index is None or index not in made else made.set_index(index)
