"""Evaluate what was shown online by what users did later, from the tables alone; no JVM."""

import datetime as dt
import math
from dataclasses import dataclass

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc
import pyarrow.dataset as ds

from recsys_batch.errors import InputMissing
from recsys_batch.evaluation.exposure_metrics import (
    AnswerMetrics,
    PlaceMetrics,
    ShownItems,
    mark_hits,
    summarise_answers,
    summarise_places,
)
from recsys_batch.evaluation.off_policy import PolicyValue, compare_policies
from recsys_batch.read import has_table, table_dataset
from recsys_batch.tables.list_columns import flat_positions

GROUPS = {"source": "source", "degraded": "degraded", "lists": "lists", "candidates": "candidates", "snapshot": "snapshot_id"}
"""What answers are told apart by, and its column."""

POLICIES = {"ranker": "ranker_position", "batch": "batch_position"}
"""Orders that exploration says something of, and the column with an item's place in each."""


@dataclass(frozen=True)
class ExposureEvaluation:
    """Metrics of the answers of a span of days.

    Attributes:
        newest_event: time of the newest interaction, UTC; answers whose ``within_hours`` end later are open and left out.
        n_open_answers: number of those.
        by: group of GROUPS -> its value ("none" for null) -> metrics.
        n_explored: rows with a propensity. policies, differences: by ``compare_policies``, from those rows; empty where there is none.
    """

    first_date: dt.date
    last_date: dt.date
    within_hours: float
    newest_event: dt.datetime
    n_open_answers: int
    overall: AnswerMetrics
    by: dict[str, dict[str, AnswerMetrics]]
    positions: list[PlaceMetrics]
    n_explored: int
    policies: dict[str, PolicyValue]
    differences: dict[str, PolicyValue]


def evaluate_exposures(
    warehouse: str, first: dt.date | None, last: dt.date | None, within: dt.timedelta, min_weight: float
) -> ExposureEvaluation:
    """Join exposures to later interactions, and compute what ``ExposureEvaluation`` holds.

    A shown item is a hit where the user has an interaction with it of weight > min_weight in (shown_at, shown_at + within]; an interaction
    counts for the user's last showing of the item before it. An answer is a request of a user at a time.

    Args:
        first, last: UTC dates of shown_at, both included; None for no bound.

    Raises:
        InputMissing: no table, no exposure in the span, or no answer whose window is over.
    """
    rows = _read_exposures(warehouse, first, last, within)
    shown_at = _microseconds(rows["shown_at"])
    users, user_ids = _encode(rows["user_id"])
    items, item_ids = _encode(rows["item_id"])
    events, newest = _read_events(warehouse, user_ids, item_ids, int(shown_at.min()), min_weight)
    window = within // dt.timedelta(microseconds=1)
    hits = mark_hits(users * len(item_ids) + items, shown_at, *events, window)

    # Later showings than the span's were read too, so that an event after one of them does not count for an earlier one.
    last = last or pc.max(rows["shown_date"]).as_py()
    in_span = np.asarray(pc.less_equal(rows["shown_date"], last))
    requests, _ = _encode(rows["request_id"])
    position = rows["position"].to_numpy().astype(np.int64)
    order = np.lexsort((position, shown_at, requests * len(user_ids) + users))
    order = order[in_span[order]]
    is_complete = shown_at[order] + window <= newest
    n_open = len(_answer_starts(requests, users, shown_at, order[~is_complete]))
    order = order[is_complete]
    newest_event = dt.datetime.fromtimestamp(newest / 1e6, dt.UTC)
    if not len(order):
        raise InputMissing(
            f"of {n_open} answers none is {within} old at the newest interaction ({newest_event:%Y-%m-%d %H:%M} UTC): "
            "ingest later interactions, or pass a shorter --within"
        )
    starts = _answer_starts(requests, users, shown_at, order)
    shown = ShownItems(starts, users[order], position[order], hits[order])
    policies, differences, n_explored = _compare(rows, order, shown)
    return ExposureEvaluation(
        first or pc.min(rows["shown_date"]).as_py(),
        last,
        within / dt.timedelta(hours=1),
        newest_event,
        n_open,
        summarise_answers(shown, np.zeros(len(starts), dtype=np.int64), 1)[0],
        {name: _summarise_by(rows[column], order[starts], shown) for name, column in GROUPS.items()},
        summarise_places(shown),
        n_explored,
        policies,
        differences,
    )


def _read_exposures(warehouse: str, first: dt.date | None, last: dt.date | None, within: dt.timedelta) -> pa.Table:
    if not has_table(warehouse, "exposures"):
        raise InputMissing(f"there is no table exposures in {warehouse}: run `recsys-batch ingest --format exposures` first")
    dataset = table_dataset(warehouse, "exposures")
    date, where = ds.field("shown_date"), ds.scalar(True)
    if first is not None:
        where &= date >= pa.scalar(first)
    if last is not None:
        where &= date <= pa.scalar(last + dt.timedelta(days=math.ceil(within / dt.timedelta(days=1))))
    columns = ["request_id", "user_id", "item_id", "position", "shown_at", "shown_date", *GROUPS.values(), "propensity", *POLICIES.values()]
    rows = dataset.to_table(columns=[name for name in columns if name in dataset.schema.names], filter=where)
    earliest = pc.min(rows["shown_date"]).as_py()
    if earliest is None or (last is not None and earliest > last):
        dates = pc.min_max(dataset.to_table(columns=["shown_date"])["shown_date"]).as_py()
        raise InputMissing(
            f"nothing was shown from {first or 'the beginning'} to {last or 'today'}: exposures are of {dates['min']} to {dates['max']}"
        )
    # A table that an older release wrote has no propensities yet.
    for name in columns:
        if name not in rows.column_names:
            rows = rows.append_column(name, pa.nulls(rows.num_rows, pa.string() if name in GROUPS.values() else pa.float64()))
    return rows


def _read_events(
    warehouse: str, user_ids: pa.Array, item_ids: pa.Array, after: int, min_weight: float
) -> tuple[tuple[np.ndarray, np.ndarray], int]:
    """Read positive events of shown users and items after ``after`` (us): ((pair codes, times in us), time of the newest event of all)."""
    if not has_table(warehouse, "interactions"):
        raise InputMissing(f"there is no table interactions in {warehouse}: run `recsys-batch ingest` first")
    pairs, times, newest = [np.zeros(0, np.int64)], [np.zeros(0, np.int64)], after
    where = ds.field("event_ts") > pa.scalar(after, pa.timestamp("us", "UTC"))
    columns = ["user_id", "item_id", "event_ts", "weight"]
    for batch in table_dataset(warehouse, "interactions").to_batches(columns=columns, filter=where):
        if not batch.num_rows:
            continue
        event_at = _microseconds(batch["event_ts"])
        newest = max(newest, int(event_at.max()))
        users, items = (flat_positions(batch[name], ids) for name, ids in (("user_id", user_ids), ("item_id", item_ids)))
        keep = (users >= 0) & (items >= 0) & (batch["weight"].to_numpy(zero_copy_only=False) > min_weight)
        pairs.append(users[keep] * len(item_ids) + items[keep])
        times.append(event_at[keep])
    return (np.concatenate(pairs), np.concatenate(times)), newest


def _compare(rows: pa.Table, order: np.ndarray, shown: ShownItems) -> tuple[dict[str, PolicyValue], dict[str, PolicyValue], int]:
    """(values, differences, number of explored rows)."""
    propensity = _floats(rows["propensity"])[order]
    explored = np.isfinite(propensity)
    n_explored = int(explored.sum())
    if not n_explored:
        return {}, {}, 0
    positions = {policy: _floats(rows[column])[order][explored] for policy, column in POLICIES.items()}
    of_rows = (shown.position[explored], propensity[explored], shown.hits[explored], shown.users[explored])
    return *compare_policies(positions, *of_rows), n_explored


def _summarise_by(column: pa.ChunkedArray, first_rows: np.ndarray, shown: ShownItems) -> dict[str, AnswerMetrics]:
    codes, values = _encode(pc.fill_null(column, "none").take(pa.array(first_rows)))
    return dict(sorted(zip(values.to_pylist(), summarise_answers(shown, codes, len(values)), strict=True)))


def _answer_starts(requests: np.ndarray, users: np.ndarray, shown_at: np.ndarray, order: np.ndarray) -> np.ndarray:
    """Find where answers begin in rows that ``order`` sorts by answer: int64."""
    is_first = np.zeros(len(order), dtype=bool)
    is_first[:1] = True
    for key in (requests, users, shown_at):
        is_first[1:] |= key[order[1:]] != key[order[:-1]]
    return np.flatnonzero(is_first)


def _encode(column: pa.ChunkedArray) -> tuple[np.ndarray, pa.Array]:
    """Encode values as int64 codes of the distinct ones: (codes, values)."""
    encoded = column.dictionary_encode().unify_dictionaries()
    codes = np.concatenate([np.zeros(0, np.int64), *(chunk.indices.to_numpy() for chunk in encoded.chunks)])
    return codes.astype(np.int64), encoded.chunk(0).dictionary


def _microseconds(column: pa.Array | pa.ChunkedArray) -> np.ndarray:
    return np.asarray(pc.cast(column, pa.timestamp("us", "UTC")).cast(pa.int64()))


def _floats(column: pa.ChunkedArray) -> np.ndarray:
    return np.asarray(pc.fill_null(pc.cast(column, pa.float64()), math.nan))
