"""What environments of model servers are made of."""

import ast
import re
import sys
from pathlib import Path

import pytest

from tools import model_servers
from tools.model_servers import RECIPES, NotInstalled, Recipe, find

ROOT = Path(__file__).parents[2]
DISTRIBUTIONS = {
    "mlserver": "mlserver",
    "pytriton": "nvidia-pytriton",
    "tensorflow": "tensorflow-cpu",
    "ts": "torchserve",
}
"""Of modules that are called otherwise than what is installed for them."""
BROUGHT_BY_THE_SERVER = {"triton_python_backend_utils"}


def files_of(recipe: Recipe) -> list[Path]:
    given = [ROOT / name for name in recipe.files]
    return [file for path in given for file in (sorted(path.rglob("*.py")) if path.is_dir() else [path])]


def imported_modules(file: Path) -> set[str]:
    """The top-level modules that a file imports anywhere, in functions too."""
    modules = set[str]()
    for node in ast.walk(ast.parse(file.read_text(encoding="utf-8"))):
        if isinstance(node, ast.Import):
            modules |= {alias.name.partition(".")[0] for alias in node.names}
        elif isinstance(node, ast.ImportFrom) and node.level == 0 and node.module:
            modules.add(node.module.partition(".")[0])
    return modules


@pytest.mark.parametrize("name", RECIPES)
def test_an_environment_lists_all_that_its_files_import(name: str) -> None:
    recipe, files = RECIPES[name], files_of(RECIPES[name])
    assert files and all(file.exists() for file in files)
    ours = {file.stem for file in files} | set(sys.stdlib_module_names) | BROUGHT_BY_THE_SERVER
    imported = set().union(*map(imported_modules, files)) - ours
    assert imported, "files of a server that import nothing of it are not its files"
    listed = {re.split(r"[<>=!~\[]", package)[0] for package in recipe.packages}
    missing = {DISTRIBUTIONS.get(module, module) for module in imported} - listed
    assert not missing, f"{name} imports {sorted(missing)}: list it in RECIPES of tools/model_servers.py"


def test_all_files_that_run_on_servers_of_others_belong_to_an_environment() -> None:
    known = {file for recipe in RECIPES.values() for file in files_of(recipe)}
    there = [file for folder in (model_servers._EXPORTED, model_servers._PEERS) for file in (ROOT / folder).rglob("*.py")]
    assert len(there) >= 7
    assert set(there) == known


def test_an_environment_of_other_packages_than_are_listed_is_not_ready(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """One that was made before a package was added lacks it, and its server would fail only when it is started."""
    monkeypatch.setattr(model_servers, "FOLDER", tmp_path)
    (tmp_path / "mlserver").mkdir()
    with pytest.raises(NotInstalled, match="make servers"):
        find("mlserver")
    mark = tmp_path / "mlserver" / ".ready"
    mark.write_text("\n".join(RECIPES["mlserver"].packages) + "\n")
    assert find("mlserver") == tmp_path / "mlserver" / "bin" / "python"
    mark.write_text(mark.read_text().replace("numpy\n", ""))
    with pytest.raises(NotInstalled, match="other packages"):
        find("mlserver")
