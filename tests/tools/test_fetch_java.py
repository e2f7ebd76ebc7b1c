"""Set-up takes the machine's Java, else fetches one, else says what to do."""

import runpy
import sys
from pathlib import Path
from types import ModuleType
from typing import Any

import pytest

from recsys_batch.spark import java

TOOL = Path(__file__).parent.parent.parent / "tools" / "fetch_java.py"


@pytest.fixture
def run(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Any:
    """Runs the tool on a machine without Java; ``install`` stands for the download."""

    def go(install: Any) -> int:
        monkeypatch.chdir(tmp_path)
        monkeypatch.setattr(java, "find_java", lambda environ: next(iter(sorted(Path(".java").glob("*/bin"))), None))
        module = ModuleType("jdk")
        module.install = install  # type: ignore[attr-defined]
        monkeypatch.setitem(sys.modules, "jdk", module)
        tool = runpy.run_path(str(TOOL))
        return int(tool["main"]())

    return go


def test_a_failed_download_ends_with_one_sentence(run: Any, capsys: pytest.CaptureFixture[str]) -> None:
    def unreachable(*args: Any, **kwargs: Any) -> None:
        raise OSError("name or service not known")

    assert run(unreachable) == 1
    (sentence,) = capsys.readouterr().err.splitlines()
    for words in ("no Java 17 to 25", "JAVA_HOME, PATH, /usr/lib/jvm", "name or service not known", "openjdk-17-jre-headless"):
        assert words in sentence


def test_a_download_that_does_not_start_is_said(run: Any, capsys: pytest.CaptureFixture[str]) -> None:
    assert run(lambda *args, **kwargs: None) == 1
    assert "does not start on this machine" in capsys.readouterr().err


def test_a_fetched_java_lies_in_the_project_and_is_fetched_once(run: Any) -> None:
    calls: list[str] = []

    def install(version: str, *, jre: bool, path: str) -> None:
        calls.append(version)
        (Path(path) / "jdk-17-jre" / "bin").mkdir(parents=True)

    assert run(install) == 0
    assert run(install) == 0
    assert calls == ["17"]
