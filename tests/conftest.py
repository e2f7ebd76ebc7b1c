"""One Spark session for the whole suite; a config whose warehouse is a fresh folder for each test."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path
from typing import TYPE_CHECKING

import pytest

from recsys_batch.config import Config, load_config

if TYPE_CHECKING:
    from pyspark.sql import SparkSession

ROOT = Path(__file__).parent.parent


@pytest.fixture
def config(tmp_path: Path) -> Config:
    """conf/smoke.toml with warehouse and state under this test's own folder."""
    return load_config(
        ROOT / "conf" / "smoke.toml",
        [f"paths.warehouse={tmp_path / 'warehouse'}", f"paths.state={tmp_path / 'state'}", f"paths.jars={ROOT / '.jars'}"],
    )


@pytest.fixture(scope="session")
def spark() -> Iterator[SparkSession]:
    """The session-scoped Spark session, by the same code and settings as the product's."""
    from recsys_batch.spark.session import get_session

    session = get_session(load_config(ROOT / "conf" / "smoke.toml", [f"paths.jars={ROOT / '.jars'}"]))
    yield session
    session.stop()
