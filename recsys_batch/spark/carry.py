"""Executor code of an incremental night: rows carried forward from the night before, rows computed again put in their place."""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from functools import lru_cache
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc
import pyarrow.parquet as pq

from recsys_batch.ann.kernels import inner_products, normalised
from recsys_batch.catalogue import open_catalogue
from recsys_batch.ragged import column_matrix, list_column, ragged
from recsys_batch.slices import Part, Slice, counted, counts_of
from recsys_batch.spark.batches import BatchFunction
from recsys_batch.spark.score import ScoreTask, scorer
from recsys_batch.topk import NO_CODE, order_pairs

Range = tuple[Any, Any]
"""(after, up to): user_ids above the first and not above the second; None where it is open."""

CARRIED, COMPUTED = "users_carried", "users_computed"
"""Counts of a merge."""


@dataclass(frozen=True)
class Files:
    """Files of a slice."""

    where: Slice
    parts: Sequence[Part]

    def between(self, bounds: Range, columns: Sequence[str] | None = None) -> pa.Table:
        """Rows whose user is within the range, in the order of the files."""
        after, upto = bounds
        chosen = [part for part in self.parts if (after is None or part.last > after) and (upto is None or part.first <= upto)]
        schema = self.where.schema if columns is None else pa.schema([self.where.schema.field(name) for name in columns])
        condition = None
        for bound, compare in ((after, pc.greater), (upto, pc.less_equal)):
            if bound is not None:
                one = compare(pc.field("user_id"), pa.scalar(bound, self.where.schema.field("user_id").type))
                condition = one if condition is None else condition & one
        tables = [
            pq.read_table(Path(self.where.root) / part.path, columns=schema.names, filters=condition, partitioning=None, memory_map=True)
            for part in chosen
        ]
        return pa.concat_tables([table.cast(schema) for table in tables]) if tables else schema.empty_table()


def ranges(parts: Sequence[Part]) -> list[Range]:
    """A range per part (one for those that end alike), which together take in every user there could be."""
    lasts = sorted({part.last for part in parts})
    return list(zip([None, *lasts[:-1]], [*lasts[:-1], None], strict=True)) if lasts else [(None, None)]


def replaced(
    base: Files, fresh: Files, changed: Path, bounds: Sequence[Range], extend: Callable[[pa.Table, Range], pa.Table] | None = None
) -> BatchFunction:
    """A function for mapInArrow: numbers of ``bounds`` -> the base's rows without the changed users, and the fresh rows, by user.

    Args:
        changed: Parquet of user_id.
        extend: applied to the rows that are carried.
    """

    def run(batches: Iterator[pa.RecordBatch]) -> Iterator[pa.RecordBatch]:
        for number in (number for batch in batches for number in batch.column(0).to_pylist()):
            carried = base.between(bounds[number])
            carried = carried.filter(pc.invert(pc.is_in(carried["user_id"], value_set=_column(str(changed)))))
            if extend is not None and carried.num_rows:
                carried = extend(carried, bounds[number])
            new = fresh.between(bounds[number])
            rows = pa.concat_tables([carried, new]).sort_by("user_id") if new.num_rows else carried
            counts = {CARRIED: carried.num_rows, COMPUTED: new.num_rows}
            yield from _with_counts(rows, counts)

    return run


@dataclass(frozen=True)
class GainedItems:
    """Items that everybody may get now.

    Attributes:
        codes: int64 [g], ascending. item_ids: their ids.
        seen: Parquet of (user_id, item_id), who has seen which of them.
    """

    codes: np.ndarray
    catalogue_dir: str
    cosine: bool
    n_candidates: int
    seen: Path
    embeddings: Files

    def extend(self, rows: pa.Table, bounds: Range) -> pa.Table:
        """Rows of candidates with the gained items in their places; the best n_candidates stay."""
        catalogue = open_catalogue(self.catalogue_dir)
        known = self.embeddings.between(bounds, ["user_id", "embedding"])
        place = pc.index_in(rows["user_id"], value_set=known["user_id"].combine_chunks())
        queries = column_matrix(known["embedding"].combine_chunks().take(place.combine_chunks()))
        vectors = np.ascontiguousarray(catalogue.embeddings[self.codes])
        if self.cosine:
            queries, vectors = normalised(queries), normalised(vectors)
        scores = inner_products(
            np.ascontiguousarray(queries), vectors, np.broadcast_to(np.arange(len(self.codes)), (len(queries), len(self.codes)))
        )
        scores[self._seen(rows["user_id"].combine_chunks(), catalogue.ids(self.codes))] = -np.inf
        pairs, offsets = ragged(rows["items"].combine_chunks())
        lengths = np.diff(offsets)
        width = max(int(lengths.max(initial=0)), 1)
        there = np.arange(width) < lengths[:, None]
        old_codes, old_scores = np.full(there.shape, NO_CODE, np.int64), np.full(there.shape, -np.inf, np.float32)
        old_codes[there] = catalogue.codes(pairs.field("item_id"))
        old_scores[there] = pairs.field("score").to_numpy(zero_copy_only=False)
        new_codes = np.where(np.isfinite(scores), self.codes, NO_CODE)
        best, codes = order_pairs(
            np.concatenate([old_scores, scores], axis=1), np.concatenate([old_codes, new_codes], axis=1), self.n_candidates
        )
        kept = codes != NO_CODE
        kind = rows.schema.field("items").type
        structs = pa.StructArray.from_arrays([catalogue.ids(codes[kept]), pa.array(best[kept])], fields=list(kind.value_type))
        items = list_column(structs, np.concatenate([[0], np.cumsum(kept.sum(axis=1))])).cast(kind)
        return rows.set_column(rows.schema.get_field_index("items"), rows.schema.field("items"), items)

    def _seen(self, users: pa.Array, item_ids: pa.Array) -> tuple[np.ndarray, np.ndarray]:
        """Places (user, item) of what was seen."""
        table = pq.read_table(self.seen)
        rows = pc.index_in(table["user_id"].combine_chunks(), value_set=users)
        columns = pc.index_in(table["item_id"].combine_chunks(), value_set=item_ids)
        both = pc.and_(rows.is_valid(), columns.is_valid())
        return np.asarray(rows.filter(both)), np.asarray(columns.filter(both))


def carried_scorer(
    task: ScoreTask, candidates: Files, embeddings: Files, topk: Files, changed: Path, gained: pa.Array, bounds: Sequence[Range]
) -> BatchFunction:
    """A function for mapInArrow: numbers of ``bounds`` -> rows of topk.

    Users who changed, and users with a gained item among their candidates, are scored; the others' rows are the base's, of the new
    night's ``generated_at``.
    """
    score = scorer(task)

    def run(batches: Iterator[pa.RecordBatch]) -> Iterator[pa.RecordBatch]:
        for number in (number for batch in batches for number in batch.column(0).to_pylist()):
            lists = candidates.between(bounds[number])
            again = pc.is_in(lists["user_id"], value_set=_column(str(changed))).combine_chunks()
            if len(gained):
                again = pc.or_(again, _any_of(lists["items"].combine_chunks(), gained))
            lists = lists.filter(again)
            known = embeddings.between(bounds[number])
            place = pc.index_in(lists["user_id"], value_set=known["user_id"].combine_chunks()).combine_chunks()
            for name in ("embedding", "n_events"):
                lists = lists.append_column(name, known[name].combine_chunks().take(place))
            scored = list(score(iter(lists.combine_chunks().to_batches())))
            carried = topk.between(bounds[number])
            carried = carried.filter(pc.invert(pc.is_in(carried["user_id"], value_set=lists["user_id"].combine_chunks())))
            stamp = pa.repeat(pa.scalar(task.generated_at, carried.schema.field("generated_at").type), carried.num_rows)
            carried = carried.set_column(carried.schema.get_field_index("generated_at"), carried.schema.field("generated_at"), stamp)
            fresh = [batch.select(carried.schema.names).replace_schema_metadata(None).cast(carried.schema) for batch in scored]
            rows = pa.concat_tables([carried, pa.Table.from_batches(fresh, carried.schema)])
            rows = rows.sort_by([("user_id", "ascending"), ("rank", "ascending")]) if fresh else rows
            counts = sum((Counter(counts_of(batch)) for batch in scored), Counter({COMPUTED: lists.num_rows}))
            yield from _with_counts(rows, counts)

    return run


def _any_of(lists: pa.ListArray, item_ids: pa.Array) -> pa.Array:
    """bool per list: whether one of the items is in it."""
    hit = pc.is_in(lists.flatten().field("item_id"), value_set=item_ids)
    found = np.zeros(len(lists), dtype=bool)
    found[np.asarray(pc.list_parent_indices(lists).filter(hit))] = True
    return pa.array(found)


def _with_counts(rows: pa.Table, counts: Mapping[str, int]) -> Iterator[pa.RecordBatch]:
    for place, batch in enumerate(rows.to_batches()):
        yield counted(batch, counts) if place == 0 else batch


@lru_cache(maxsize=2)
def _column(path: str) -> pa.Array:
    return pq.read_table(path)["user_id"].combine_chunks()
