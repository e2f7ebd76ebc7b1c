"""Which Java is taken, told apart by launchers that only say who they are."""

from pathlib import Path

import pytest

from recsys_batch.errors import UsageError
from recsys_batch.spark import java
from recsys_batch.spark.java import ensure_java, find_java


def install(home: Path, version: int) -> Path:
    """A home whose bin/java prints what a real one prints."""
    launcher = home / "bin" / "java"
    launcher.parent.mkdir(parents=True)
    launcher.write_text(f"#!/bin/sh\necho '    java.home = {home}\n    java.specification.version = {version}' >&2\n")
    launcher.chmod(0o755)
    return home


@pytest.fixture(autouse=True)
def _elsewhere(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """No .java/ of the project."""
    monkeypatch.chdir(tmp_path)


def test_java_home_comes_before_path(tmp_path: Path) -> None:
    own, other = install(tmp_path / "own", 21), install(tmp_path / "other", 17)
    assert find_java({"JAVA_HOME": str(own), "PATH": str(other / "bin")}, []) == own


def test_a_java_home_that_is_too_old_is_passed_over(tmp_path: Path) -> None:
    old, good = install(tmp_path / "old", 11), install(tmp_path / "jvm" / "good", 17)
    assert find_java({"JAVA_HOME": str(old)}, [tmp_path / "jvm"]) == good


def test_a_java_home_that_does_not_exist_is_passed_over(tmp_path: Path) -> None:
    good = install(tmp_path / "good", 17)
    assert find_java({"JAVA_HOME": str(tmp_path / "gone"), "PATH": str(good / "bin")}, []) == good


def test_17_and_21_come_before_a_newer_one_on_path(tmp_path: Path) -> None:
    newer, good = install(tmp_path / "newer", 25), install(tmp_path / "jvm" / "good", 21)
    assert find_java({"PATH": str(newer / "bin")}, [tmp_path / "jvm"]) == good


def test_a_newer_one_is_taken_where_it_is_the_only_one_or_asked_for(tmp_path: Path) -> None:
    newer, good = install(tmp_path / "newer", 25), install(tmp_path / "jvm" / "good", 17)
    assert find_java({"PATH": str(newer / "bin")}, []) == newer
    assert find_java({"JAVA_HOME": str(newer), "PATH": str(good / "bin")}, []) == newer


@pytest.mark.parametrize("version", [16, 26])
def test_what_spark_does_not_run_on_is_never_taken(tmp_path: Path, version: int) -> None:
    home = install(tmp_path / "odd", version)
    assert find_java({"JAVA_HOME": str(home), "PATH": str(home / "bin")}, []) is None


def test_a_launcher_that_is_a_link_or_a_script_leads_to_its_real_home(tmp_path: Path) -> None:
    real = install(tmp_path / "real", 17)
    shims = tmp_path / "shims"
    shims.mkdir()
    (shims / "java").write_text(f'#!/bin/sh\nexec {real}/bin/java "$@"\n')
    (shims / "java").chmod(0o755)
    assert find_java({"PATH": str(shims)}, []) == real


def test_the_projects_own_java_is_found_in_both_layouts(tmp_path: Path) -> None:
    assert find_java({}, []) is None
    mac = install(tmp_path / ".java" / "b" / "Contents" / "Home", 17)
    assert find_java({}, []) == mac
    plain = install(tmp_path / ".java" / "a", 17)
    assert find_java({}, []) == plain


def test_something_called_java_that_is_none_is_passed_over(tmp_path: Path) -> None:
    (tmp_path / "java").write_text("#!/bin/sh\necho 'no runtime present' >&2; exit 1\n")
    (tmp_path / "java").chmod(0o755)
    assert find_java({"PATH": str(tmp_path)}, []) is None


def test_no_java_is_one_sentence_that_says_where_was_looked_and_what_helps(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(java, "find_java", lambda environ: None)
    with pytest.raises(UsageError, match=r"JAVA_HOME, PATH, /usr/lib/jvm.*openjdk-17-jre-headless"):
        ensure_java()
