"""A published run's ranker, exported, and requests of its users."""

from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest

from benchmarks.scoring_calls import ScoringCall, make_calls
from recsys_batch.cli import run
from recsys_batch.config import Config
from recsys_batch.online.export.published_run import open_published_run
from recsys_batch.online.export.snapshot_export import export_snapshot
from recsys_batch.online.snapshot.reader import Snapshot, open_snapshot
from recsys_batch.storage.node_cache import NodeCache
from tests.online.conftest import Servers


@pytest.fixture(scope="session")
def published_snapshot(published: Config, tmp_path_factory: pytest.TempPathFactory) -> Snapshot:
    folder = tmp_path_factory.mktemp("snapshots")
    opened = open_published_run(published.paths.warehouse, NodeCache.from_paths(published.paths))
    return open_snapshot(folder / export_snapshot(opened, folder, activate=True).snapshot_id)


@pytest.fixture(scope="session")
def export(published: Config, options: Any, tmp_path_factory: pytest.TempPathFactory) -> Callable[..., Path]:
    """Runs export-model for the published run; the folder."""

    def make(target: str, *more: str) -> Path:
        folder = tmp_path_factory.mktemp("exports") / target
        assert run(["export-model", "--target", target, "--out", str(folder), *more, *options(published)]) == 0
        return folder

    return make


@pytest.fixture(scope="session")
def calls(published_snapshot: Snapshot) -> list[ScoringCall]:
    """1,000 requests one by one, and one call of 64."""
    return make_calls(published_snapshot, 1000)


@pytest.fixture
def serve(tmp_path: Path) -> Iterator[Servers]:
    """Our own servers, of this test."""
    servers = Servers(tmp_path)
    yield servers
    servers.end()
