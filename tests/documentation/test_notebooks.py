"""The notebooks of docs/notebooks run from their first cell to their last."""

from __future__ import annotations

from pathlib import Path

import nbformat
import pytest

from tests.docs import ROOT
from tests.notebooks import execute

NOTEBOOKS = sorted((ROOT / "docs" / "notebooks").glob("*.ipynb"))

pytestmark = [pytest.mark.slow, pytest.mark.tensorflow]


@pytest.mark.parametrize("notebook", NOTEBOOKS, ids=lambda path: path.stem)
def test_a_notebook_runs_from_its_first_cell_to_its_last(notebook: Path, tmp_path: Path) -> None:
    pytest.importorskip("pandas")
    shown = execute(notebook, tmp_path)
    # Then what it shows is results: no progress that was left behind, nothing that failed
    assert "finished, version" in shown or "updates_counted" in shown
    for garbage in ("failed", "Traceback", "\r", "\x1b["):
        assert garbage not in shown


@pytest.mark.parametrize("notebook", NOTEBOOKS, ids=lambda path: path.stem)
def test_a_notebook_is_kept_without_its_outputs(notebook: Path) -> None:
    cells = nbformat.read(notebook, as_version=4).cells
    assert not [cell for cell in cells if cell.get("outputs") or cell.get("execution_count")]
