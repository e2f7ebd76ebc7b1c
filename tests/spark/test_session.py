"""A session has the jars that its warehouse needs, or says where they come from; it prints nothing."""

import os
import subprocess
import sys
from pathlib import Path

import pytest

from recsys_batch.config import Config, load_config
from recsys_batch.errors import UsageError
from recsys_batch.spark.session import _jars, _refuse_connect, get_session

ROOT = Path(__file__).parents[2]


@pytest.fixture
def folders(tmp_path: Path) -> list[str]:
    """Settings that name a folder of Delta's jars, and an empty one for s3a."""
    for folder, name in (("jars", "delta-spark_4.2_2.13-4.4.0.jar"), ("s3a", "")):
        (tmp_path / folder).mkdir()
        if name:
            (tmp_path / folder / name).touch()
    return [f"paths.jars={tmp_path / 'jars'}", f"paths.s3a_jars={tmp_path / 's3a'}"]


def names(config: Config) -> list[str]:
    return [Path(jar).name for jar in _jars(config).split(",")]


def test_a_path_needs_deltas_jars_and_what_the_config_names(folders: list[str], tmp_path: Path) -> None:
    (tmp_path / "s3a" / "hadoop-aws-3.5.0.jar").touch()
    assert names(load_config(None, folders)) == ["delta-spark_4.2_2.13-4.4.0.jar"]
    config = load_config(None, [*folders, "spark.conf.spark.jars=/opt/a.jar,/opt/b.jar"])
    assert names(config) == ["delta-spark_4.2_2.13-4.4.0.jar", "a.jar", "b.jar"]


def test_a_store_needs_its_own_too_or_says_how_to_get_them(folders: list[str], tmp_path: Path) -> None:
    there = [*folders, "paths.warehouse=s3a://bucket/recs"]
    with pytest.raises(UsageError, match="run `make s3a-jars`"):
        names(load_config(None, there))
    config = load_config(None, [*there, "spark.conf.spark.jars.packages=org.apache.hadoop:hadoop-aws:3.5.0"])
    assert names(config) == ["delta-spark_4.2_2.13-4.4.0.jar"]
    (tmp_path / "s3a" / "hadoop-aws-3.5.0.jar").touch()
    assert names(load_config(None, there)) == ["delta-spark_4.2_2.13-4.4.0.jar", "hadoop-aws-3.5.0.jar"]


def test_jars_of_another_spark_are_not_taken(folders: list[str], tmp_path: Path) -> None:
    (tmp_path / "jars" / "delta-spark_4.2_2.13-4.4.0.jar").rename(tmp_path / "jars" / "delta-spark_3.5_2.13-4.4.0.jar")
    with pytest.raises(UsageError, match=r"another release, delta-spark_3\.5_2\.13-4\.4\.0\.jar; pyspark .* run `make setup`"):
        _jars(load_config(None, folders))


@pytest.mark.parametrize(
    ("settings", "environment", "way"),
    [
        (["spark.master=sc://cluster:15002/;token=secret"], {}, "spark.master (sc://...)"),
        (["spark.conf.spark.remote=sc://cluster:15002/;token=secret"], {}, "spark.remote"),
        (["spark.conf.spark.api.mode=connect"], {}, "spark.api.mode or SPARK_API_MODE = connect"),
        ([], {"SPARK_REMOTE": "sc://cluster:15002/;token=secret"}, "SPARK_REMOTE in the environment"),
        ([], {"SPARK_API_MODE": "Connect"}, "spark.api.mode or SPARK_API_MODE = connect"),
        ([], {"SPARK_CONNECT_MODE_ENABLED": "1"}, "a Spark Connect session in this process (SPARK_CONNECT_MODE_ENABLED)"),
        ([], {"SPARK_CONNECT_MODE": "1"}, "the package pyspark-connect, or SPARK_CONNECT_MODE = 1"),
    ],
)
def test_spark_connect_is_refused_with_exit_code_2_before_anything_starts(
    settings: list[str], environment: dict[str, str], way: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    for name, value in environment.items():
        monkeypatch.setenv(name, value)
    with pytest.raises(UsageError) as refusal:
        get_session(load_config(None, settings))
    assert str(refusal.value).startswith(f"Spark Connect was asked for ({way}) and is not supported") and refusal.value.exit_code == 2
    assert "secret" not in str(refusal.value)


def test_classic_is_what_a_config_may_ask_for_where_connect_is_the_default(folders: list[str], monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("SPARK_CONNECT_MODE", "1")
    _refuse_connect(load_config(None, [*folders, "spark.conf.spark.api.mode=classic"]))


def test_a_session_of_its_own_process_leaves_nothing_on_standard_error(tmp_path: Path) -> None:
    """Start, a job in Python workers and the end: no banner of the JVM's, no hint of Spark's shell, no traceback of a worker."""
    script = tmp_path / "job.py"
    script.write_text(
        "from recsys_batch.config import load_config\n"
        "from recsys_batch.spark.session import get_session\n"
        f"session = get_session(load_config(None, ['paths.jars={ROOT / '.jars'}', 'spark.master=local[2]']))\n"
        "print(session.range(100, numPartitions=4).mapInArrow(lambda batches: batches, 'id long').count())\n"
    )
    job = subprocess.run(
        [sys.executable, script], capture_output=True, text=True, cwd=tmp_path, env={**os.environ, "PYTHONPATH": str(ROOT)}
    )
    assert (job.stdout, job.stderr, job.returncode) == ("100\n", "", 0)
