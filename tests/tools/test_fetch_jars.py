"""The Delta jars are resolved once, flat, and a flaky network gets another chance."""

import runpy
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pyspark
import pytest

TOOL = Path(__file__).parent.parent.parent / "tools" / "fetch_jars.py"


@pytest.fixture
def tool(monkeypatch: pytest.MonkeyPatch) -> SimpleNamespace:
    """The tool without its pauses; ``put(name, value)`` replaces what it calls."""
    names = runpy.run_path(str(TOOL))
    inside = names["main"].__globals__
    monkeypatch.setitem(inside, "PAUSE_S", 0)
    monkeypatch.setitem(inside, "ensure_java", lambda: None)
    return SimpleNamespace(main=names["main"], s3a_jars=names["s3a_jars"], put=lambda name, value: monkeypatch.setitem(inside, name, value))


class Resolver:
    """Fails ``failures`` times, then has downloaded one jar."""

    def __init__(self, failures: int) -> None:
        self.failures, self.calls = failures, 0

    def __call__(self, coordinates: str, folder: Path) -> tuple[list[Path], str]:
        self.calls += 1
        if self.calls <= self.failures:
            return [], "download failed: io.delta#delta-spark"
        jar = folder / "io.delta_delta-spark_4.2_2.13-4.4.0.jar"
        jar.write_bytes(b"jar")
        return [jar], ""


def test_a_second_try_is_enough_and_the_jars_lie_flat(tool: Any, tmp_path: Path) -> None:
    tool.put("_resolve", Resolver(failures=1))
    assert tool.main(tmp_path / "jars") == 0
    assert [path.name for path in (tmp_path / "jars").glob("*.jar")] == ["delta-spark_4.2_2.13-4.4.0.jar"]


def test_what_is_there_is_not_resolved_again(tool: Any, tmp_path: Path) -> None:
    resolver = Resolver(failures=0)
    tool.put("_resolve", resolver)
    assert tool.main(tmp_path / "jars") == tool.main(tmp_path / "jars") == 0
    assert resolver.calls == 1


def test_jars_of_another_release_give_way(tool: Any, tmp_path: Path) -> None:
    tool.put("_resolve", Resolver(failures=0))
    old = tmp_path / "jars" / "delta-spark_4.0_2.13-4.0.0.jar"
    old.parent.mkdir()
    old.touch()
    (old.parent / "delta-4.0.0-spark-4.0.resolved").touch()
    assert tool.main(tmp_path / "jars") == 0
    assert not old.exists()


def test_no_network_ends_with_a_sentence_and_keeps_what_was_there(tool: Any, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    tool.put("_resolve", Resolver(failures=99))
    old = tmp_path / "jars" / "old.jar"
    old.parent.mkdir()
    old.touch()
    assert tool.main(tmp_path / "jars") == 1
    said = capsys.readouterr().err
    assert "io.delta:delta-spark_" in said and "could not be resolved in 3 tries" in said
    assert "download failed: io.delta#delta-spark" in said
    assert old.exists()


def test_those_for_s3a_are_of_the_hadoop_that_pyspark_brings_and_lie_apart(tool: Any, tmp_path: Path) -> None:
    asked: list[str] = []

    def resolve(coordinates: str, folder: Path) -> tuple[list[Path], str]:
        asked.append(coordinates)
        jars = [folder / "org.apache.hadoop_hadoop-aws-9.jar", folder / "software.amazon.awssdk_bundle-2.jar"]
        for jar in jars:
            jar.write_bytes(b"jar")
        return jars, ""

    tool.put("_resolve", resolve)
    assert tool.main(tmp_path / "s3a", tool.s3a_jars()) == tool.main(tmp_path / "s3a", tool.s3a_jars()) == 0
    assert sorted(path.name for path in (tmp_path / "s3a").glob("*.jar")) == ["bundle-2.jar", "hadoop-aws-9.jar"]
    (client,) = (Path(pyspark.__file__).parent / "jars").glob("hadoop-client-api-*.jar")
    assert asked == [f"org.apache.hadoop:hadoop-aws:{client.stem.rpartition('-')[2]}"]


def test_of_what_delta_brings_its_own_jars_are_kept(tool: Any, tmp_path: Path) -> None:
    def resolve(coordinates: str, folder: Path) -> tuple[list[Path], str]:
        jars = [folder / "io.delta_delta-storage-4.4.0.jar", folder / "org.antlr_antlr4-runtime-4.13.1.jar"]
        for jar in jars:
            jar.write_bytes(b"jar")
        return jars, ""

    tool.put("_resolve", resolve)
    assert tool.main(tmp_path / "jars") == 0
    assert [path.name for path in (tmp_path / "jars").glob("*.jar")] == ["delta-storage-4.4.0.jar"]
