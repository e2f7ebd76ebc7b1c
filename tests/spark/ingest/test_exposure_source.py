"""What the online side logged comes back once: feedback as interactions, what was shown in a table of its own, and both as labels."""

import datetime as dt
import re
from collections.abc import Callable, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from pyspark.sql import SparkSession

from recsys_batch.cli import run
from recsys_batch.config import Config
from recsys_batch.dataset.exposure_schema import EXPOSURES, FEEDBACK, exposure_schema, feedback_schema
from recsys_batch.dataset.log_columns import encode_exposures, encode_feedback
from recsys_batch.dataset.log_rows import Exposure, FeedbackEvent, encode_row
from recsys_batch.errors import EXIT_OK, EXIT_USAGE, SourceError
from recsys_batch.night import maintenance
from recsys_batch.online.exposure_log.segment_writer import SegmentWriter
from recsys_batch.read import open_table, read_table
from recsys_batch.schemas import TABLES, IdTypes
from recsys_batch.sources.source_format import SourceFormat
from recsys_batch.spark.ingest.pipeline import read_interactions, run_ingest
from recsys_batch.spark.ingest.sources import IngestRequest
from recsys_batch.spark.ingest.summary import IngestSummary
from recsys_batch.spark.tables import WarehouseTables

ROOT = Path(__file__).parents[3]
NOON = dt.datetime(2026, 3, 1, 12, tzinfo=dt.UTC)
IDS = IdTypes("BIGINT", "STRING")
EXPOSURE_LOG = SourceFormat(kind="exposures")


def shown(request_id: str, user_id: int | str, items: list[str], hours: float = 0) -> Exposure:
    when = NOON + dt.timedelta(hours=hours)
    scores = [1.0 - place / 10 for place in range(len(items))]
    ranks = list(range(len(items), 0, -1))
    context: dict[str, Any] = {"context_ts": when, "device": "ios", "session_item_ids": ["s1"], "attributes": {"query": "lamp", "n": 2}}
    return Exposure(request_id, when, user_id, "snap", "7", "ranker", None, items, scores, [s / 2 for s in scores], ranks, **context)


def event(
    request_id: str | None, user_id: int | str, item_id: str, hours: float = 0.1, kind: str = "click", weight: float = 1.0
) -> FeedbackEvent:
    return FeedbackEvent(request_id, user_id, item_id, NOON + dt.timedelta(hours=hours), kind, weight)


class Shop:
    """A warehouse and the folder that the online side logs to."""

    def __init__(self, spark: SparkSession, config: Config, folder: Path) -> None:
        self.spark, self.config, self.folder, self.tables = spark, config, folder, WarehouseTables(spark, config)

    def logged(self, exposures: Sequence[Exposure] = (), feedback: Sequence[FeedbackEvent] = ()) -> None:
        rows: dict[str, Sequence[Any]] = {EXPOSURES: exposures, FEEDBACK: feedback}
        for kind in rows:
            writer = SegmentWriter(self.folder, kind, worker=1)
            for row in rows[kind]:
                writer.append([encode_row(row)])
            writer.rotate()

    def ingest(self, **options: Any) -> IngestSummary:
        summary = run_ingest(self.spark, self.config, IngestRequest(**{"sources": (str(self.folder),), "format": EXPOSURE_LOG, **options}))
        for kind, s in summary.kinds.items():
            assert s.read == s.accepted + s.already_present + sum(s.rejected.values()), kind
        return summary

    def versions(self) -> dict[str, int]:
        names = ("interactions", "items", "exposures", "feedback", "rejected")
        return {name: self.tables.version(name) for name in names if self.tables.exists(name)}

    def rows(self, name: str, *columns: str) -> list[Any]:
        return sorted(tuple(row) for row in self.tables.read(name).select(*columns).collect())


@pytest.fixture
def shop(spark: SparkSession, config: Config, tmp_path: Path) -> Shop:
    return Shop(spark, config, tmp_path / "log")


def test_what_was_shown_and_what_came_of_it_are_brought_in_once(shop: Shop) -> None:
    shop.logged(
        [shown("r1", 1, ["a", "b"]), shown("r2", 2, ["b"], 13)], [event("r1", 1, "b", kind="purchase", weight=3), event(None, 2, "c")]
    )
    summary = shop.ingest()
    assert {kind: (s.read, s.accepted) for kind, s in summary.kinds.items()} == {"interactions": (2, 2), "exposures": (3, 3)}
    assert shop.tables.ids() == IDS
    assert shop.rows("interactions", "user_id", "item_id", "event_type", "weight") == [(1, "b", "purchase", 3.0), (2, "c", "click", 1.0)]
    assert shop.rows("feedback", "request_id", "user_id", "item_id") == [("r1", 1, "b")]
    columns = ("request_id", "user_id", "item_id", "position", "candidate_rank", "shown_date")
    assert shop.rows("exposures", *columns) == [
        ("r1", 1, "a", 1, 2, dt.date(2026, 3, 1)),
        ("r1", 1, "b", 2, 1, dt.date(2026, 3, 1)),
        ("r2", 2, "b", 1, 1, dt.date(2026, 3, 2)),
    ]
    row = shop.tables.read("exposures").where("request_id = 'r1' AND position = 2").head()
    assert row is not None
    assert (row.score, row.batch_score) == (pytest.approx(0.9), pytest.approx(0.45))
    assert (row.device, row.session_item_ids, row.attributes) == ("ios", ["s1"], {"query": "lamp", "n": "2"})
    assert (row.source, row.degraded, row.snapshot_id, row.model_version) == ("ranker", None, "snap", "7")
    assert row.shown_at == row.context_ts

    before = shop.versions()
    repeated = shop.ingest()
    assert shop.versions() == before
    assert {kind: s.already_present for kind, s in repeated.kinds.items()} == {"interactions": 2, "exposures": 3}
    shop.logged([shown("r3", 1, ["a"], 14)])
    assert {kind: s.accepted for kind, s in shop.ingest().kinds.items()} == {"interactions": 0, "exposures": 1}
    assert len(shop.rows("exposures", "request_id")) == 4


def test_files_of_older_releases_and_segments_are_one_log(shop: Shop) -> None:
    shop.folder.mkdir()
    older = encode_exposures([shown("r1", 1, ["a"]), shown("r2", 2, ["b"])], IDS, exposure_schema(IDS))
    pq.write_table(pa.Table.from_batches([older]), shop.folder / "exposures-1.parquet")
    pq.write_table(
        pa.Table.from_batches([encode_feedback([event("r1", 1, "a")], IDS, feedback_schema(IDS))]), shop.folder / "feedback-1.parquet"
    )
    shop.logged([shown("r2", "2", ["b"]), shown("r3", 3, ["c"])], [event("r1", "1", "a"), event("r3", 3, "c")])
    summary = shop.ingest()
    assert shop.tables.ids() == IDS
    assert shop.rows("exposures", "request_id", "user_id", "item_id", "session_item_ids") == [
        ("r1", 1, "a", ["s1"]),
        ("r2", 2, "b", ["s1"]),
        ("r3", 3, "c", ["s1"]),
    ]
    assert shop.rows("interactions", "user_id", "item_id") == [(1, "a"), (3, "c")]
    assert summary.kinds["exposures"].rejected == summary.kinds["interactions"].rejected == {"duplicate": 1}


def test_rows_that_were_sent_twice_come_in_once(shop: Shop) -> None:
    for _ in range(2):
        shop.logged([shown("r1", 1, ["a", "b"])], [event("r1", 1, "b"), event(None, 1, "c")])
    summary = shop.ingest()
    assert shop.rows("exposures", "request_id", "item_id") == [("r1", "a"), ("r1", "b")]
    assert shop.rows("interactions", "item_id") == [("b",), ("c",)] and shop.rows("feedback", "item_id") == [("b",)]
    assert summary.kinds["exposures"].rejected == {"duplicate": 2} and summary.kinds["interactions"].rejected == {"duplicate": 2}


def test_guests_among_users_with_numbers_are_rejected_where_everybody_sees_it(shop: Shop) -> None:
    shop.logged([shown("r1", 1, ["a"])], [event("r1", 1, "a")])
    shop.ingest()
    shop.logged([shown("r2", "guest-1", ["a"]), shown("r3", 2**70, ["a"])], [event("r2", "guest-1", "a"), event("r3", 2**70, "a")])
    summary = shop.ingest()
    assert summary.kinds["exposures"].rejected == summary.kinds["interactions"].rejected == {"bad_user_id": 2}
    rejected = shop.rows("rejected", "kind", "reason", "row")
    assert [(kind, reason) for kind, reason, _ in rejected] == [("exposures", "bad_user_id")] * 2 + [("interactions", "bad_user_id")] * 2
    assert all("guest-1" in row or str(2**70) in row for *_, row in rejected)


def test_a_torn_end_costs_the_rows_in_it_alone_and_is_told(shop: Shop) -> None:
    for number in range(2):
        shop.logged([shown(f"r{number}", 1, ["a"]), shown(f"torn{number}", 1, ["a"])])
    for file in shop.folder.iterdir():
        file.write_bytes(file.read_bytes()[:-3])
    (shop.folder / "exposures-9.segment").write_bytes(b"RECL")
    summary = shop.ingest()
    assert shop.rows("exposures", "request_id") == [("r0",), ("r1",)]
    assert any(re.search(r"3 files of exposures end in rows that were not finished \(\d+ bytes\)", note) for note in summary.notes)
    (shop.folder / "exposures-9.segment").write_bytes(b"PAR1 and so on")
    with pytest.raises(SourceError, match=r"exposures-9.segment cannot be read: it is no segment of a log: it begins with b'PAR1"):
        shop.ingest()


def test_what_was_only_shown_is_no_interaction(shop: Shop) -> None:
    shop.logged([shown("r1", 1, ["a", "b"])])
    assert list(shop.ingest().kinds) == ["exposures"]
    assert list(shop.versions()) == ["exposures", "rejected"]
    with pytest.raises(SourceError, match="no interactions"):
        shop.tables.ensure("interactions", IDS)
        read_interactions(shop.spark, shop.config, IngestRequest((str(shop.folder),), EXPOSURE_LOG))


def test_rows_that_cannot_be_used_are_rejected_with_a_reason(shop: Shop) -> None:
    (shop.folder).mkdir()
    (shop.folder / "items.csv").write_text("item_id\na\nb\n")
    run_ingest(shop.spark, shop.config, IngestRequest(items=(str(shop.folder / "items.csv"),)))
    # The same request again, later and in another order; and somebody else who chose the same request id.
    rows = [shown("", 1, ["a"]), shown("r9", 1, ["a", "gone"]), shown("r9", 1, ["gone", "a"], 1), shown("r9", 2, ["a"])]
    pq.write_table(pa.Table.from_batches([encode_exposures(rows, IDS, exposure_schema(IDS))]), shop.folder / "exposures-1.parquet")
    shop.logged([], [event("r1", 1, "gone"), event("r1", 1, "a", weight=float("nan")), event("r1", 1, "b"), event("r1", 1, "b")])
    summary = shop.ingest()
    assert summary.kinds["exposures"].rejected == {"null_request_id": 1, "duplicate": 2}
    assert summary.kinds["interactions"].rejected == {"unknown_item": 1, "bad_weight": 1, "duplicate": 1}
    assert shop.rows("exposures", "user_id", "item_id") == [(1, "a"), (1, "gone"), (2, "a")]
    assert shop.rows("feedback", "item_id") == [("b",)]
    kinds = [kind for (kind,) in shop.rows("rejected", "kind")]
    assert (kinds.count("exposures"), kinds.count("interactions")) == (3, 3)


def test_an_ingest_that_died_between_its_tables_is_completed_by_the_next(shop: Shop, monkeypatch: pytest.MonkeyPatch) -> None:
    shop.logged([shown("r1", 1, ["a"])], [event("r1", 1, "a")])
    append: Callable[..., int] = WarehouseTables.append

    def dying(tables: WarehouseTables, name: str, *rest: Any) -> int:
        if name == "feedback":
            raise OSError("killed")
        return append(tables, name, *rest)

    with monkeypatch.context() as patched, pytest.raises(OSError, match="killed"):
        patched.setattr(WarehouseTables, "append", dying)
        shop.ingest()
    assert shop.rows("interactions", "item_id") == [("a",)]
    shop.ingest()
    assert shop.rows("interactions", "item_id") == shop.rows("feedback", "item_id") == shop.rows("exposures", "item_id") == [("a",)]


def as_an_older_release(batch: pa.RecordBatch) -> pa.Table:
    """Leave out what the log got later."""
    table = pa.Table.from_batches([batch]).drop_columns(["lists", "candidates"])
    items = table.schema.field("items")
    older = pa.list_(pa.struct([field for field in items.type.value_type if field.name not in LATER]))
    rows = [[{field.name: item[field.name] for field in older.value_type} for item in row] for row in table["items"].to_pylist()]
    at = table.schema.get_field_index("items")
    return table.set_column(at, pa.field("items", older, False), pa.array(rows, older))


EXPLORATION = ("propensity", "ranker_position", "batch_position")
LATER = (*EXPLORATION, "candidate_score")
BROUGHT: dict[str, Any] = {"candidates": "request", "candidate_scores": [2.5, -1.0]}


def swapped(request_id: str) -> Exposure:
    row = shown(request_id, 1, ["a", "b"])
    return row._replace(lists="live", propensities=[0.9, 0.1], ranker_positions=[1, 5], batch_positions=[2, None], **BROUGHT)


def test_later_columns_are_brought_in_from_files_beside_those_of_an_older_release(shop: Shop) -> None:
    shop.folder.mkdir()
    first, last = (
        as_an_older_release(encode_exposures([shown(*row)], IDS, exposure_schema(IDS))) for row in (("r1", 1, ["a"]), ("r3", 1, ["c"]))
    )
    pq.write_table(first, shop.folder / "exposures-1.parquet")
    assert shop.ingest().kinds["exposures"].accepted == 1
    shop.logged([swapped("r2")])
    pq.write_table(last, shop.folder / "exposures-9.parquet")
    assert shop.ingest().kinds["exposures"].accepted == 3
    rows = (
        shop.tables.read("exposures")
        .select("request_id", "item_id", "lists", "candidates", *LATER)
        .orderBy("request_id", "item_id")
        .collect()
    )
    assert [tuple(row) for row in rows] == [
        ("r1", "a", None, None, None, None, None, None),
        ("r2", "a", "live", "request", pytest.approx(0.9), 1, 2, 2.5),
        ("r2", "b", "live", "request", pytest.approx(0.1), 5, None, -1.0),
        ("r3", "c", None, None, None, None, None, None),
    ]


def test_a_table_of_an_older_release_gets_the_columns_that_it_lacks(shop: Shop, monkeypatch: pytest.MonkeyPatch) -> None:
    spec = TABLES["exposures"]
    older = replace(spec, columns=tuple(column for column in spec.columns if column.name not in (*LATER, "lists", "candidates")))
    with monkeypatch.context() as patched:
        patched.setitem(TABLES, "exposures", older)
        shop.logged([shown("r1", 1, ["a"])])
        shop.ingest()
    assert "propensity" not in shop.tables.read("exposures").columns
    shop.logged([swapped("r2")])
    shop.ingest()
    assert shop.rows("exposures", "request_id", "item_id", "lists", "candidates", "ranker_position") == [
        ("r1", "a", None, None, None),
        ("r2", "a", "live", "request", 1),
        ("r2", "b", "live", "request", 5),
    ]
    comments = {field.name: field.metadata.get("comment") for field in shop.tables.read("exposures").schema}
    assert comments["propensity"] == next(column.comment for column in spec.columns if column.name == "propensity")
    assert read_table(shop.config.paths.warehouse, "exposures", columns=["propensity"])["propensity"].null_count == 1
    version = shop.tables.version("exposures")
    shop.ingest()
    assert shop.tables.version("exposures") == version


def test_a_folder_without_logs_and_options_that_do_not_go_with_them_are_refused(shop: Shop) -> None:
    shop.folder.mkdir()
    (shop.folder / "other.parquet").write_bytes(b"other")
    with pytest.raises(SourceError, match=r"holds no exposures-\* and no feedback-\* file of a log, but other.parquet"):
        shop.ingest()
    with pytest.raises(SourceError, match="--format exposures reads what the online side logs"):
        shop.ingest(format=replace(EXPOSURE_LOG, columns={"user_id": "who"}))
    with pytest.raises(SourceError, match="--holdout"):
        shop.ingest(holdout=0.2)


def test_by_the_command_line_and_what_maintain_compacts_is_the_same(
    shop: Shop, options: Callable[[Config], list[str]], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(maintenance, "_SMALL_FILES", 1)
    command = ["ingest", "--format", "exposures", "--source", str(shop.folder), *options(shop.config)]
    assert run(command) == EXIT_USAGE  # no folder yet
    for number in range(2):
        shop.logged([shown(f"r{number}", 1, ["a", "b"])], [event(f"r{number}", 1, "b", number)])
        assert run(command) == EXIT_OK
    assert run([*command, "--holdout", "0.2"]) == EXIT_USAGE
    before = {name: read_table(shop.config.paths.warehouse, name).num_rows for name in ("exposures", "feedback")}
    assert before == {"exposures": 4, "feedback": 2}
    assert run(["maintain", *options(shop.config)]) == EXIT_OK
    for name, n_rows in before.items():
        assert len(open_table(shop.config.paths.warehouse, name).file_uris()) == 1
        assert read_table(shop.config.paths.warehouse, name).num_rows == shop.tables.read(name).count() == n_rows


def test_the_documents_query_gives_each_item_that_was_shown_its_label(shop: Shop) -> None:
    shop.logged(
        [shown("r1", 1, ["a", "b", "c"]), shown("r2", 2, ["a", "b"])],
        [event("r1", 1, "b"), event("r1", 1, "b", 0.2, "purchase", 5), event("r1", 1, "c", kind="hide", weight=-1), event("r2", 2, "z")],
    )
    shop.ingest()
    document = (ROOT / "docs" / "data-contract.md").read_text(encoding="utf-8")
    found = re.search(r"```sql\n(SELECT e\.request_id, .*?)```", document, re.DOTALL)
    assert found is not None
    query = found.group(1).replace("/srv/recsys/warehouse", str(Path(shop.config.paths.warehouse).absolute()))
    labels = [(row.request_id, row.position, row.item_id, row.clicked, row.weight) for row in shop.spark.sql(query).collect()]
    assert sorted(labels) == [
        ("r1", 1, "a", False, 0.0),
        ("r1", 2, "b", True, 6.0),
        ("r1", 3, "c", False, -1.0),
        ("r2", 1, "a", False, 0.0),
        ("r2", 2, "b", False, 0.0),
    ]
