"""Executor code of the stream: some users' events in, their top-K rows out, by the functions that a night's steps run.

The night embeds, retrieves and scores in three passes with a table after each, so that it can go on where it stopped. For few users the
same three run one after the other in memory; ``tests/stream`` holds the rows to be a full night's.
"""

import json
from collections.abc import Iterator, Sequence
from dataclasses import asdict, dataclass, replace
from typing import Literal

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc

from recsys_batch.dataset.popularity import add_counts, count_users, counts_schema, negate_counts
from recsys_batch.dataset.user_events import EVENTS, USERS, VECTORS, UserEvents
from recsys_batch.schemas import TABLES
from recsys_batch.spark.executors.embed import EmbedTask
from recsys_batch.spark.executors.functions import BatchFunction
from recsys_batch.spark.executors.new_items import find_pairs, insert_items
from recsys_batch.spark.executors.retrieve import RetrieveTask, make_retriever
from recsys_batch.spark.executors.score import ScoreTask, ScoringInput, make_scorer
from recsys_batch.tables.slice_writer import DataFile, TableSlice
from recsys_batch.tables.user_ranges import UserSortedFiles
from recsys_batch.tables.user_rows import UserSortedRows, UserSortedSource, read_rows_of_users

_USERS = 2_048  # users refreshed together
_EVERYBODY = (None, None)

Purpose = Literal["modelled", "popular", "counts"]
REFRESH_SCHEMA = pa.schema([("files", pa.string()), ("counts", pa.binary()), ("without_embedding", pa.binary())])
"""What a task tells: files that it wrote (JSON, by table), changes of popularity and users without an embedding (Arrow's IPC)."""


@dataclass(frozen=True)
class CatalogueChange:
    """Catalogue of what can be recommended now, where the items table has changed since the run's index was made.

    Attributes:
        catalogue_dir: location of the catalogue. cosine: whether candidates are scored by cosine.
        codes: int64, items of it that the index lacks, or has with another vector: searched beside it, exactly.
        n_withdrawn: items of the index that may come no more: so many more candidates are fetched from it.
        n_candidates: of a list.
    """

    catalogue_dir: str
    codes: np.ndarray
    n_withdrawn: int
    n_candidates: int
    cosine: bool


@dataclass(frozen=True)
class RefreshTask:
    """Settings and locations of a refresh; small, as it travels in the closure.

    Attributes:
        change: None where items are what they were.
        layers: what nights gathered of users, newest first: a user's events are those of the first layer that has any.
        target: the slice of topk_live that rows go to.
        records: where candidates and user embeddings go, for servers that rank them again; none where no server reads live lists.
        batch_id: of the micro-batch.
        purpose: lists of users with an embedding ("modelled"), lists of those without one ("popular"), or changes of popularity alone
            ("counts"). All users' changes are counted, and those without an embedding told of, whatever it is.
    """

    embed: EmbedTask
    retrieve: RetrieveTask
    score: ScoreTask
    change: CatalogueChange | None
    layers: Sequence[UserEvents]
    target: TableSlice
    records: Sequence[TableSlice]
    batch_id: int
    purpose: Purpose


@dataclass(frozen=True)
class RecentEvents:
    """Events since the night of users in order of user_id, as rows of EVENTS; ``before`` marks those that popularity counts already."""

    users: pa.Array
    events: pa.Table

    def of_users(self, first: int, last: int) -> "RecentEvents":
        """Give the users at places ``first`` to before ``last``, and their events."""
        users = self.users[first:last]
        return RecentEvents(users, self.events.filter(pc.is_in(self.events["user_id"], value_set=users)))


def make_refresher(task: RefreshTask, recent: RecentEvents, cuts: Sequence[int]) -> BatchFunction:
    """Make a function for mapInArrow: numbers of parts -> a row of REFRESH_SCHEMA each; part n is users ``cuts[n]`` to ``cuts[n + 1]``."""

    def run(batches: Iterator[pa.RecordBatch]) -> Iterator[pa.RecordBatch]:
        for number in (number for batch in batches for number in batch.column(0).to_pylist()):
            part = _Part(task, recent.of_users(cuts[number], cuts[number + 1]))
            files: dict[str, list[DataFile]] = {task.target.spec.name: list(task.target.write(part.rows(), number))}
            for where in task.records:
                files[where.spec.name] = list(where.write(part.records[where.spec.name], number))
            listed = json.dumps({name: [asdict(file) for file in written] for name, written in files.items()})
            without = pa.table({"user_id": pa.chunked_array(part.without_embedding, task.target.ids.user_arrow)})
            told = {"files": [listed], "counts": [_to_ipc(part.counts)], "without_embedding": [_to_ipc(without)]}
            yield pa.RecordBatch.from_pydict(told, schema=REFRESH_SCHEMA)

    return run


class _Part:
    """Refreshes the users of a part; what is told of them is complete when all rows were made."""

    def __init__(self, task: RefreshTask, recent: RecentEvents) -> None:
        self._task, self._recent = task, recent
        self.counts = counts_schema(task.target.ids).empty_table()
        self.without_embedding: list[pa.Array] = []
        self.records: dict[str, list[pa.RecordBatch]] = {"candidates": [], "user_embeddings": []}

    def rows(self) -> Iterator[pa.RecordBatch]:
        """Make the rows of topk_live, by user_id and rank."""
        for first in range(0, len(self._recent.users), _USERS):
            recent = self._recent.of_users(first, min(first + _USERS, len(self._recent.users)))
            user_events = gather_user_events(self._task.layers, recent)
            self.counts = add_counts(self.counts, count_new_positives(user_events, self._task.embed.min_weight))
            newest_us = _newest_event(user_events, recent.users)
            is_embedded = pc.is_in(recent.users, value_set=find_users_with_embedding(user_events, self._task.embed.min_weight))
            groups = {"modelled": recent.users.filter(is_embedded), "popular": recent.users.filter(pc.invert(is_embedded))}
            self.without_embedding.append(groups["popular"])
            listed = groups.get(self._task.purpose)
            if listed is not None and len(listed):
                refreshed = refresh_users(self._task, user_events, listed)
                for batch in refreshed.topk:
                    yield self._as_live(batch, recent.users, newest_us)
                if self._task.records:
                    self.records["candidates"] += refreshed.candidates.to_batches()
                    self.records["user_embeddings"] += refreshed.embeddings.to_batches()

    def _as_live(self, batch: pa.RecordBatch, users: pa.Array, newest_us: pa.Array) -> pa.RecordBatch:
        rows = pc.index_in(batch["user_id"], value_set=users)
        schema = TABLES["topk_live"].arrow_schema(self._task.target.ids)
        through = newest_us.take(rows).cast(schema.field("events_through").type)
        columns = {name: batch[name] for name in batch.schema.names}
        columns |= {"batch_id": pa.repeat(pa.scalar(self._task.batch_id, pa.int64()), batch.num_rows), "events_through": through}
        return pa.RecordBatch.from_arrays([columns[name] for name in schema.names], names=schema.names)


@dataclass(frozen=True)
class RefreshedUsers:
    """Rows of some users in topk, candidates and user_embeddings; those of topk are made while they are read."""

    topk: Iterator[pa.RecordBatch]
    candidates: pa.Table
    embeddings: pa.Table


def refresh_users(task: RefreshTask, user_events: UserEvents, users: pa.Array) -> RefreshedUsers:
    """Embed, retrieve and score users as a night does.

    Args:
        user_events: all that is known of these users.
        users: user_ids, ascending; all with an embedding, or all without.
    """
    catalogue_dir = task.score.catalogue_dir if task.change is None else task.change.catalogue_dir
    embed = replace(task.embed, user_events=user_events, catalogue_dir=catalogue_dir)
    encode = embed.encode_range if user_events.vectors is None else embed.copy_imported_range
    slices = {name: replace(task.target, spec=TABLES[name], partition={}) for name in ("user_embeddings", "candidates")}
    rows = encode(_EVERYBODY) if task.purpose == "modelled" else iter(())
    embeddings = UserSortedRows(slices["user_embeddings"], _table(rows, slices["user_embeddings"]))
    known = user_events.known_users(embeddings, _EVERYBODY, _USERS, task.retrieve.seen, users)
    candidates = UserSortedRows(slices["candidates"], _table(_retrieve(task, known, user_events, embeddings.rows), slices["candidates"]))
    topk = make_scorer(replace(task.score, catalogue_dir=catalogue_dir))(ScoringInput(candidates, embeddings).batches(_EVERYBODY))
    return RefreshedUsers(topk, candidates.rows, embeddings.rows)


def _retrieve(
    task: RefreshTask, known: Iterator[pa.RecordBatch], user_events: UserEvents, embeddings: pa.Table
) -> Iterator[pa.RecordBatch]:
    """Retrieve candidates from the run's index, and beside it where items have changed since."""
    change = task.change
    if change is None:
        yield from make_retriever(task.retrieve)(known)
        return
    now = replace(task.retrieve, catalogue_dir=change.catalogue_dir, n_candidates=change.n_candidates)
    if task.purpose == "popular":  # no index is searched for them
        yield from make_retriever(now)(known)
        return
    catalogue, seen = now.catalogue(), user_events.seen(_EVERYBODY, now.seen)
    retriever = make_retriever(replace(task.retrieve, n_candidates=task.retrieve.n_candidates + change.n_withdrawn))
    for users in known:
        rules = catalogue.rules_by_segment(users["segment"])
        allowed = np.stack([catalogue.eligible_mask(int(rule), change.codes) for rule in rules])
        seen_users, seen_items = find_pairs(seen, users["user_id"], catalogue.ids(change.codes))
        allowed[seen_users, seen_items] = False
        excluded_users, excluded_items = np.nonzero(~allowed)
        excluded = excluded_users, excluded_items
        for rows in retriever(iter([users])):
            yield insert_items(rows, embeddings, change.codes, catalogue, change.cosine, change.n_candidates, excluded)


def find_users_with_embedding(user_events: UserEvents, min_weight: float) -> pa.Array:
    """Find the users whom the model knows: those with a positive event, or with an imported vector."""
    rows = user_events.positives(_EVERYBODY, min_weight) if user_events.vectors is None else user_events.vectors.between(_EVERYBODY)
    return pc.unique(rows["user_id"].combine_chunks())


def gather_user_events(layers: Sequence[UserEvents], recent: RecentEvents) -> UserEvents:
    """Gather all events, profiles and imported vectors of users: what nights gathered, and what came since."""
    events = pa.concat_tables([_read_layers([layer.events for layer in layers], recent.users), recent.events])
    is_known = pa.concat_arrays([pa.repeat(True, len(events) - len(recent.events)), recent.events["before"].combine_chunks()])
    events = events.set_column(events.schema.get_field_index("before"), "before", is_known).sort_by("user_id").combine_chunks()

    def rows(name: str, where: TableSlice) -> UserSortedRows | None:
        files = [getattr(layer, name) for layer in layers]
        return None if files[0] is None else UserSortedRows(where, _read_layers([one for one in files if one], recent.users))

    where = layers[0].events.where
    users, vectors = rows("users", replace(where, spec=USERS)), rows("vectors", replace(where, spec=VECTORS))
    return UserEvents([_EVERYBODY], UserSortedRows(replace(where, spec=EVENTS), events), users, vectors)


def count_new_positives(user_events: UserEvents, min_weight: float) -> pa.Table:
    """Count users per segment and item by positive events that are not marked ``before``, less those who had one before."""
    ids = user_events.events.where.ids
    positives, profiles = user_events.positives(_EVERYBODY, min_weight), user_events.profiles(_EVERYBODY)
    segments = profiles.select(["user_id", "segment"]) if user_events.users is not None else None
    before = count_users(positives.filter(positives["before"]), segments, ids)
    return add_counts(count_users(positives, segments, ids), negate_counts(before))


def _read_layers(layers: Sequence[UserSortedSource], users: pa.Array) -> pa.Table:
    """Read the rows of users, each user's from the newest layer that has any, in order of user_id."""
    tables, missing = [], users
    for files in layers:
        assert isinstance(files, UserSortedFiles)
        tables.append(read_rows_of_users(files, missing))
        missing = missing.filter(pc.invert(pc.is_in(missing, value_set=tables[-1]["user_id"].combine_chunks())))
    return pa.concat_tables(tables).sort_by("user_id").combine_chunks()


def _newest_event(user_events: UserEvents, users: pa.Array) -> pa.Array:
    """Find the newest event of each user: microseconds, null where none has a time."""
    events = user_events.events.between(_EVERYBODY, ["user_id", "event_us"])
    newest = events.group_by("user_id").aggregate([("event_us", "max")])
    return newest["event_us_max"].combine_chunks().take(pc.index_in(users, value_set=newest["user_id"].combine_chunks()))


def _table(batches: Iterator[pa.RecordBatch], where: TableSlice) -> pa.Table:
    return pa.Table.from_batches(list(batches), where.spec.arrow_schema(where.ids)).combine_chunks()


def _to_ipc(table: pa.Table) -> bytes:
    sink = pa.BufferOutputStream()
    with pa.ipc.new_stream(sink, table.schema) as writer:
        writer.write_table(table)
    return bytes(sink.getvalue())
