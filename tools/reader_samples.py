"""Small tables of the contract that hold what readers trip over, written as the product writes them."""

import datetime as dt
import json
import os
from itertools import pairwise
from pathlib import Path
from typing import Any

import pyarrow as pa
import pyarrow.parquet as pq
from deltalake import DeltaTable, convert_to_deltalake, write_deltalake
from reader_probes import BIG, EVENTS, MOMENT, ODD_IDS, ODD_USERS

from recsys_batch.digest.output import OutputBlock, open_output_file, publish_output
from recsys_batch.schemas import TABLES, IdTypes
from recsys_batch.tables.delta_log import commit
from recsys_batch.tables.slice_writer import TableSlice

IDS = IdTypes("STRING", "BIGINT")
RUNS = [(f"2026-03-0{day}-r1", dt.date(2026, 3, day)) for day in (1, 2, 3)]
USERS = [ODD_USERS[:2], ODD_USERS[2:]]
"""Users of each of a run's two files."""
WEIGHTS = [1.5, 0.0, -0.0, float("nan"), float("inf"), float("-inf"), None, 2.5]


def make_samples(folder: Path) -> None:
    """Write the tables to ``folder``/TABLE, and the digests to ``folder``/digest-KIND.jsonl and .parquet."""
    for run_id, run_date in RUNS:
        _append("runs", folder, [_run(run_id, run_date)])
        rows = [[_ranked(user, rank) for user in users for rank in (1, 2)] for users in USERS]
        _write_slice("topk", folder, {"run_date": run_date, "run_id": run_id}, rows)
        lists = [[{"user_id": user, "items": [{"item_id": BIG, "score": 0.5}]} for user in users] for users in USERS]
        _write_slice("candidates", folder, {"run_id": run_id}, lists)
        vectors = [[{"user_id": user, "embedding": [0.5, 0.25], "n_events": None} for user in users] for users in USERS]
        _write_slice("user_embeddings", folder, {"run_id": run_id}, vectors)
    events = [_event(n, weight) for n, weight in enumerate(WEIGHTS)]
    for first, last in pairwise((0, *EVENTS)):
        _append("interactions", folder, events[first:last])
    _date_commits(folder / "interactions", [dt.datetime(2026, 3, day, tzinfo=dt.UTC) for day in (1, 2, 3)])
    _append("items", folder, [_item(1, "first", MOMENT), _item(2, "second", None)])
    shown = {"request_id": "r", "user_id": "a", "item_id": 1, "shown_at": MOMENT, "shown_date": MOMENT.date()}
    _append("exposures", folder, [shown | {"position": 1, "ranker_position": 3}], without=("candidates",))
    _append("exposures", folder, [shown | {"position": 2, "candidates": "retrieved"}])
    (folder / "old_events").mkdir()
    old = pa.table({"event_ts": pa.array([MOMENT], pa.timestamp("us", "UTC"))})
    pq.write_table(old, folder / "old_events" / "part-0.parquet", use_deprecated_int96_timestamps=True)
    convert_to_deltalake(str(folder / "old_events"))
    for kind, ids in ODD_IDS.items():
        _write_digests(folder, kind, ids)


def _append(name: str, folder: Path, rows: list[dict[str, Any]], without: tuple[str, ...] = ()) -> None:
    spec = TABLES[name]
    schema = pa.schema([field for field in spec.arrow_schema(IDS) if field.name not in without])
    # No statistics of floats is right in every reader.
    floats = [field.name for field in spec.arrow_schema(IDS) if pa.types.is_floating(field.type)]
    stats = {"delta.dataSkippingStatsColumns": ",".join(name for name in spec.stats_columns(IDS) if name not in floats)}
    stats |= {"delta.deletedFileRetentionDuration": "interval 36500 days"}  # Spark reads no version that VACUUM might have emptied
    table = pa.Table.from_pylist(rows, schema)
    partitions = list(spec.partition_by) or None
    write_deltalake(str(folder / name), table, mode="append", partition_by=partitions, schema_mode="merge", configuration=stats)


def _write_slice(name: str, folder: Path, partition: dict[str, Any], files: list[list[dict[str, Any]]]) -> None:
    spec, path = TABLES[name], str(folder / name)
    DeltaTable.create(path, spec.arrow_schema(IDS), mode="ignore", partition_by=list(spec.partition_by))
    where = TableSlice(path, spec, IDS, partition, 2**20)
    written = [file for task, rows in enumerate(files) for file in where.write([pa.RecordBatch.from_pylist(rows, where.schema)], task)]
    commit(where, written, {})


def _run(run_id: str, run_date: dt.date) -> dict[str, Any]:
    published_at = dt.datetime.combine(run_date, dt.time(5), dt.UTC)
    n_users = None if run_date.day == 1 else 2**53 + 1
    row = {"run_id": run_id, "run_date": run_date, "attempt": 1, "status": "PUBLISHED", "published_at": published_at}
    return row | {"n_users": n_users, "metrics": [("event", 1.0)], "schema_version": 1}


def _ranked(user: str, rank: int) -> dict[str, Any]:
    row = {"user_id": user, "rank": rank, "item_id": BIG - rank, "score": 1 / rank, "candidate_rank": rank, "source": "model"}
    return row | {"model_version": "7", "generated_at": MOMENT}


def _event(n: int, weight: float | None) -> dict[str, Any]:
    return {"user_id": "a", "item_id": n, "event_ts": MOMENT, "event_type": "view", "weight": weight, "event_date": MOMENT.date()}


def _item(item_id: int, title: str, first_seen: dt.datetime | None) -> dict[str, Any]:
    row = {"item_id": item_id, "title": title, "categories": ["x", "y"], "is_available": True, "first_seen_ts": first_seen}
    return row | {"attributes": [("year", "1994")]}


def _date_commits(table: Path, moments: list[dt.datetime]) -> None:
    """Make the commits of a table those of given moments: some readers go by what the log says, others by the file's time."""
    for version, moment in enumerate(moments):
        path = table / "_delta_log" / f"{version:020d}.json"
        actions = [json.loads(line) for line in path.read_text(encoding="utf-8").splitlines()]
        for action in actions:
            if "commitInfo" in action:
                action["commitInfo"]["timestamp"] = int(moment.timestamp() * 1000)
        path.write_text("".join(json.dumps(action) + "\n" for action in actions), encoding="utf-8")
        os.utime(path, (moment.timestamp(), moment.timestamp()))


def _write_digests(folder: Path, kind: str, ids: list[str]) -> None:
    same = {"slot": 1, "title": "Title", "score": 0.5, "source": "model", "reason": "picked for you", "because_item_id": None}
    slots: dict[str, list[Any]] = {name: [value] * len(ids) for name, value in same.items()} | {"item_id": ids}
    texts = IdTypes("STRING", "STRING")
    for form in ("jsonl", "parquet"):
        path = folder / f"digest-{kind}.{form}"
        with open_output_file(path, form, texts, "2026-03-03-r1", "7") as sink:
            sink.write(OutputBlock(ids, list(range(len(ids) + 1)), slots))
        publish_output(path, form, texts)
