"""docs/architecture.md names files and functions that are there, in ways that do not turn back; what contributors are shown is real."""

import ast
import re
import runpy
from pathlib import Path

import pytest

ROOT = Path(__file__).parent.parent
DOCUMENT = (ROOT / "docs" / "architecture.md").read_text(encoding="utf-8")
WALKS = [re.findall(r"^\| `([\w/]+\.py)` \| `([\w.]+)` \|", part, re.MULTILINE) for part in DOCUMENT.split("| in | by |")[1:]]
ROOMS = [path.parent for path in sorted((ROOT / "recsys_batch").rglob("__init__.py"))]


def definitions(file: Path) -> set[str]:
    """Functions and classes of a module, and methods as Class.method."""
    names = set()
    for node in ast.parse(file.read_text(encoding="utf-8")).body:
        if isinstance(node, ast.FunctionDef | ast.AsyncFunctionDef | ast.ClassDef):
            names.add(node.name)
        if isinstance(node, ast.ClassDef):
            names |= {f"{node.name}.{method.name}" for method in node.body if isinstance(method, ast.FunctionDef | ast.AsyncFunctionDef)}
    return names


def test_every_station_of_a_walk_is_there() -> None:
    stations = [station for walk in WALKS for station in walk]
    assert len(WALKS) == 5 and len(stations) > 40
    assert [(file, name) for file, name in stations if not (ROOT / file).is_file() or name not in definitions(ROOT / file)] == []


@pytest.mark.parametrize("walk", WALKS)
def test_no_walk_comes_back_to_a_file_that_it_has_left(walk: list[tuple[str, str]]) -> None:
    files = [file for file, _ in walk]
    assert len(files) == len(set(files))


def test_every_room_says_what_it_is_and_lists_its_modules() -> None:
    missing = []
    for room in ROOMS:
        text = ast.get_docstring(ast.parse((room / "__init__.py").read_text(encoding="utf-8"))) or ""
        modules = {path.stem for path in room.glob("*.py") if not path.stem.startswith("_")}
        modules |= {path.parent.name for path in room.glob("*/__init__.py")}
        missing += [f"{room.name}: {module}" for module in modules if not re.search(rf"\b{module}\b", text)]
    assert missing == []


def test_the_picture_of_the_rooms_is_the_one_of_today() -> None:
    tool = runpy.run_path(str(ROOT / "tools" / "draw_rooms.py"))
    assert tool["PICTURE"].read_text(encoding="utf-8") == tool["draw"](), "run: python tools/draw_rooms.py --write"


def test_the_models_in_contributing_are_code_of_this_project() -> None:
    models = re.findall(r"```python\n(.*?)```", (ROOT / "CONTRIBUTING.md").read_text(encoding="utf-8"), re.DOTALL)
    sources = [path.read_text(encoding="utf-8") for room in ("recsys_batch", "tests") for path in (ROOT / room).rglob("*.py")]
    assert len(models) == 2 and all(any(model in source for source in sources) for model in models)
