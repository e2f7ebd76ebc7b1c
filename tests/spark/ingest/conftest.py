"""A warehouse, a folder of source files, and what to ask of them."""

import json
from collections import defaultdict
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
from pyspark.sql import SparkSession

from recsys_batch.config import Config
from recsys_batch.sources.source_format import SourceFormat
from recsys_batch.spark.ingest.pipeline import run_ingest
from recsys_batch.spark.ingest.sources import IngestRequest
from recsys_batch.spark.ingest.summary import IngestSummary
from recsys_batch.spark.tables import WarehouseTables

TABLES = ("interactions", "holdout", "items", "users", "rejected")


class FileShop:
    """A warehouse, a folder of source files, and what to ask of them."""

    def __init__(self, spark: SparkSession, config: Config, folder: Path) -> None:
        self.spark, self.config, self.folder = spark, config, folder
        self.tables = WarehouseTables(spark, config)

    def file(self, name: str, text: str) -> str:
        path = self.folder / name
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_text(text, encoding="utf-8")
        return str(path)

    def ingest(self, *sources: str, **options: Any) -> IngestSummary:
        """Ingest CSV files, or others by format=; columns=, items= and users= as the command's options."""
        formats = {kind: options.pop(f"{kind}format", SourceFormat()) for kind in ("", "item_", "user_")}
        for kind, how in formats.items():
            options[f"{kind}format"] = replace(how, columns=options.pop(f"{kind}columns", how.columns))
        for kind in ("items", "users"):
            options[kind] = tuple(path for path in [options.get(kind)] if path is not None)
        summary = run_ingest(self.spark, self.config, IngestRequest(sources=sources, **options))
        for kind, s in summary.kinds.items():
            assert s.read == s.accepted + s.held_out + s.already_present + s.superseded + sum(s.rejected.values()), kind
        return summary

    def versions(self, *names: str) -> dict[str, int]:
        return {name: self.tables.version(name) for name in names or TABLES if self.tables.exists(name)}

    def rows(self, name: str, *columns: str) -> list[Any]:
        found = self.tables.read(name).select(*columns).collect()
        return sorted(tuple(row) if len(columns) > 1 else row[0] for row in found)

    def rejected(self) -> dict[str, list[dict[str, str]]]:
        by_reason = defaultdict(list)
        for reason, row in self.rows("rejected", "reason", "row"):
            by_reason[reason].append(json.loads(row))
        return dict(by_reason)


@pytest.fixture
def shop(spark: SparkSession, config: Config, tmp_path: Path) -> FileShop:
    return FileShop(spark, config, tmp_path / "files")
