"""Every notebook runs from top to bottom on a published night, and is kept without outputs."""

import json
from pathlib import Path

import pytest
from nbmake.nb_run import NotebookRun

from recsys_batch.config import Config

NOTEBOOKS = sorted((Path(__file__).parent.parent.parent / "notebooks").glob("*.ipynb"))


@pytest.mark.parametrize("path", NOTEBOOKS, ids=lambda path: path.stem)
def test_it_runs(published: Config, path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("RECSYS_WAREHOUSE", published.paths.warehouse)
    monkeypatch.setenv("MPLBACKEND", "module://matplotlib_inline.backend_inline")
    result = NotebookRun(path, 120).execute()
    assert result.error is None, result.error.trace if result.error else ""


def test_there_are_four() -> None:
    assert [path.stem[:2] for path in NOTEBOOKS] == ["01", "02", "03", "04"]


@pytest.mark.parametrize("path", NOTEBOOKS, ids=lambda path: path.stem)
def test_it_is_kept_without_outputs(path: Path) -> None:
    cells = json.loads(path.read_text(encoding="utf-8"))["cells"]
    assert all(cell["outputs"] == [] and cell["execution_count"] is None for cell in cells if cell["cell_type"] == "code")
