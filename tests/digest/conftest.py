"""A published run without Spark: a few users with lists that a person can read."""

import datetime as dt
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pytest
from deltalake import DeltaTable, write_deltalake

from recsys_batch.dataset.catalogue import Catalogue, write_catalogue
from recsys_batch.dataset.seen_policy import make_seen_policy
from recsys_batch.digest.builder import DigestResult, make_digest
from recsys_batch.digest.slot_choosers import DigestRequest
from recsys_batch.schemas import TABLES, IdTypes
from recsys_batch.storage.artifacts import artifact_root, put_folder, set_pointer
from recsys_batch.storage.filesystems import basename
from recsys_batch.storage.node_cache import NodeCache
from recsys_batch.tables.delta_log import append, commit
from recsys_batch.tables.slice_writer import TableSlice

NIGHT = dt.datetime(2026, 3, 1, 1, tzinfo=dt.UTC)
MORNING = dt.datetime(2026, 3, 1, 6, tzinfo=dt.UTC)
N_ITEMS, N_LISTED = 40, 12


@dataclass
class House:
    """A warehouse with runs, and digests of them.

    Attributes:
        lists: of the newest run, user -> item numbers.
        liked: user -> item numbers, oldest first.
    """

    folder: Path
    ids: IdTypes
    lists: dict[Any, list[int]] = field(default_factory=dict)
    liked: dict[Any, list[int]] = field(default_factory=dict)

    @property
    def warehouse(self) -> str:
        return str(self.folder / "warehouse")

    def user(self, number: int) -> Any:
        return number if self.ids.user == "BIGINT" else f"u{number:03d}"

    def item(self, number: int) -> Any:
        return number if self.ids.item == "BIGINT" else f"i{number:03d}"

    def number(self, item: Any) -> int:
        return item if self.ids.item == "BIGINT" else int(item[1:])

    def publish(
        self, day: dt.date, lists: Mapping[int, Sequence[int]], *, run: str = "r1", files: int = 2, status: str = "PUBLISHED"
    ) -> str:
        """A run with these lists; users in several files, in order."""
        run_id = f"{day}-{run}"
        began = dt.datetime.combine(day, NIGHT.timetz())
        users = sorted(lists)
        self.lists = {self.user(user): list(lists[user]) for user in users}
        where = self._slice("topk", {"run_date": day, "run_id": run_id})
        parts = [
            part
            for task, some in enumerate(np.array_split(np.array(users), files))
            if len(some)
            for part in where.write([self._topk(where.schema, lists, some.tolist(), began)], task)
        ]
        commit(where, parts, {})
        popular = [("all", rank, 30 + rank) for rank in range(1, 7)] + [("north", rank, 25 + rank) for rank in range(1, 4)]
        rows = [{"segment": s, "rank": rank, "item_id": self.item(item), "score": 100.0 - rank} for s, rank, item in popular]
        where = self._slice("popular", {"run_id": run_id})
        commit(where, list(where.write(pa.Table.from_pylist(rows, where.schema).to_batches(), 0)), {})
        self._artefacts(run_id)
        self.event(run_id, day, status, began)
        return run_id

    def event(self, run_id: str, day: dt.date, status: str, began: dt.datetime, number: float = 1.0) -> None:
        """A row of the manifest."""
        versions = {name: DeltaTable(f"{self.warehouse}/{name}").version() for name in ("interactions", "items", "users")}
        row = {"run_id": run_id, "run_date": day, "attempt": 1, "status": status, "table_versions": {}, "input_versions": versions}
        row |= {"published_at": began + dt.timedelta(hours=number) if status == "PUBLISHED" else None, "model_version": "7"}
        row |= {"metrics": {"started_at": began.timestamp(), "event": number}, "schema_version": 1}
        where = self._slice("runs", {})
        append(where, pa.Table.from_pylist([row], where.schema), {})

    def inputs(self, liked: Mapping[int, Sequence[int]], segments: Mapping[int, str], unavailable: Sequence[int] = ()) -> None:
        """Interactions (later ones newer), users and items; again they replace what was there."""
        self.liked = {self.user(user): list(items) for user, items in liked.items()}
        events = [
            {"user_id": self.user(user), "item_id": self.item(item), "event_ts": NIGHT - dt.timedelta(days=90 - n), "weight": 1.0}
            for user, items in liked.items()
            for n, item in enumerate(items)
        ]
        self._replace("interactions", events)
        self._replace("users", [{"user_id": self.user(user), "segment": segment} for user, segment in segments.items()])
        titles = [f"Title {n}" if n % 10 else None for n in range(N_ITEMS)]
        items = [{"item_id": self.item(n), "title": title, "is_available": n not in unavailable} for n, title in enumerate(titles)]
        self._replace("items", items)

    def order(self, **changes: Any) -> DigestRequest:
        given = {"run_date": NIGHT.date(), "slots": 5, "segment": None, "shard": (1, 1), "out": self.folder / "out.jsonl", "form": "jsonl"}
        given |= {"repeat_days": 30, "max_age": dt.timedelta(hours=36), "digest_id": "digest", "seen": "exclude"} | changes
        given["seen"] = make_seen_policy(given["seen"], given["run_date"])  # type: ignore[arg-type]
        return DigestRequest(**given)  # type: ignore[arg-type]

    def digest(self, now: dt.datetime | None = None, *, dry_run: bool = False, **changes: Any) -> DigestResult:
        order = self.order(**changes)
        now = now or dt.datetime.combine(order.run_date, MORNING.timetz())
        cache = NodeCache(str(self.folder / "cache"))
        return make_digest(self.warehouse, cache, order, now, 0.0, dry_run=dry_run, progress=lambda done, of: None)

    def _replace(self, name: str, rows: list[dict[str, Any]]) -> None:
        table = pa.Table.from_pylist(rows, TABLES[name].arrow_schema(self.ids))
        write_deltalake(f"{self.warehouse}/{name}", table, mode="overwrite")

    def _topk(self, schema: pa.Schema, lists: Mapping[int, Sequence[int]], users: list[int], began: dt.datetime) -> pa.RecordBatch:
        rows = [
            {"user_id": self.user(user), "rank": rank, "item_id": self.item(item), "score": 10.0 - rank, "candidate_rank": rank}
            | {"source": "model", "model_version": "7", "generated_at": began}
            for user in users
            for rank, item in enumerate(lists[user], start=1)
        ]
        return pa.RecordBatch.from_pylist(rows, schema)

    def _slice(self, name: str, partition: dict[str, Any]) -> TableSlice:
        path, spec = f"{self.warehouse}/{name}", TABLES[name]
        DeltaTable.create(path, spec.arrow_schema(self.ids), mode="ignore", partition_by=list(spec.partition_by))
        return TableSlice(path, spec, self.ids, partition, 2**20)

    def _artefacts(self, run_id: str) -> None:
        angle = np.arange(N_ITEMS) / 8  # neighbours by number are neighbours by angle
        vectors = np.stack([np.cos(angle), np.sin(angle)], axis=1).astype(np.float32)
        ids = pa.array([self.item(n) for n in range(N_ITEMS)], self.ids.item_arrow)
        zeros = np.zeros(N_ITEMS, np.float32)
        catalogue = Catalogue(ids, vectors, np.zeros((N_ITEMS, 0), np.float32), zeros, np.ones(N_ITEMS, bool))
        root = artifact_root(self.warehouse)
        folder = put_folder(root, "catalogues", lambda target: write_catalogue(target, catalogue))
        set_pointer(root, run_id, "catalogue", {"folder": basename(folder)})


LISTS = {user: [(user + 5 * place) % 24 for place in range(N_LISTED - user % 3)] for user in range(1, 10)}


@pytest.fixture(params=[("BIGINT", "STRING"), ("STRING", "BIGINT")], ids=lambda kinds: "-".join(kinds))
def house(request: pytest.FixtureRequest, tmp_path: Path) -> House:
    """Nine users with lists of ten to twelve items; the first three have liked something, user 1 is of the north."""
    found = House(tmp_path, IdTypes(*request.param))
    found.inputs({1: [5, 20, 8], 2: [12], 3: [30]}, {1: "north", 2: "north", 3: "south"})
    found.publish(NIGHT.date(), LISTS)
    return found
