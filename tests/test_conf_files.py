"""Every file in conf/ is read by what it is for, and the settings that others paid for stay as they are."""

from importlib.metadata import version
from pathlib import Path

import pytest

from recsys_batch.config import load_config

CONF = Path(__file__).parent.parent / "conf"
FRAGMENTS = sorted(CONF.glob("spark-defaults.*.conf"))


@pytest.mark.parametrize("path", sorted(set(CONF.glob("*.toml")) - {CONF / "surfaces.toml"}), ids=lambda path: path.name)
def test_every_toml_file_is_a_valid_config(path: Path) -> None:
    load_config(path)


def test_the_demo_writes_under_data_alone() -> None:
    paths = load_config(CONF / "local.toml").paths
    assert (paths.warehouse, paths.state, paths.jars) == ("data/warehouse", "data/state", ".jars")


def test_there_is_a_fragment_for_each_cluster_manager() -> None:
    assert [path.name.split(".")[1] for path in FRAGMENTS] == ["k8s", "standalone", "yarn"]


@pytest.mark.parametrize("path", FRAGMENTS, ids=lambda path: path.name)
def test_a_fragment_sets_sparks_properties_once_each(path: Path) -> None:
    pairs = [line.split(maxsplit=1) for line in path.read_text().splitlines() if line and not line.startswith("#")]
    keys = [pair[0] for pair in pairs]
    assert all(len(pair) == 2 for pair in pairs)
    assert all(key.startswith("spark.") for key in keys)
    assert len(set(keys)) == len(keys)
    assert "spark.executor.pyspark.memory" not in keys  # RLIMIT_AS: a mapped index counts in full
    packages = dict(pairs).get("spark.jars.packages", "")
    assert not packages or packages.endswith(f":{version('delta-spark')}")
