"""Measures what a report shows from a run's tables: one pass over every row, the rest on sampled users."""

from dataclasses import dataclass

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc

from recsys_batch.dataset.popularity import counts_path, users_by_item
from recsys_batch.errors import InputMissing
from recsys_batch.evaluation.drift import RunComparison, compare_runs, sample_user_ranges
from recsys_batch.read import read_table, run_files, run_rows
from recsys_batch.report.cards import UserCard, make_cards
from recsys_batch.report.segments import Segment, measure_segments
from recsys_batch.storage.artifacts import artifact_root
from recsys_batch.storage.filesystems import read_parquet
from recsys_batch.tables.list_columns import flat_positions
from recsys_batch.tables.run_manifest import Run, published_previously
from recsys_batch.tables.user_ranges import UserSortedFiles

_COLUMNS = ["user_id", "rank", "item_id", "score", "candidate_rank", "source"]
_N_MOVERS = 6


@dataclass(frozen=True)
class Mover:
    """An item that sampled users' lists have more, or less, often than the earlier run's: shares of these users, 0 to 1."""

    title: str
    now: float
    before: float


@dataclass(frozen=True)
class Churn:
    """Changes against the run that was published before.

    Attributes:
        comparison: of the sampled users who are in both.
        movers: the items whose share rose most, then those whose share fell most.
    """

    run_id: str
    comparison: RunComparison
    movers: tuple[Mover, ...]


@dataclass(frozen=True)
class RunFacts:
    """Figures and rows of a run that the page shows.

    Attributes:
        run: its manifest row.
        available: bool [n_items], of the catalogue.
        listed: int64 [n_items], lists that have the item, over all users.
        taken: int64 [n_items], users who took it before the night; None where the run's counts are gone.
        sample: topk's rows of users sampled evenly over user_id; ``n_sampled_users`` is their number.
        segments: of the sampled users, largest first.
    """

    run: Run
    available: np.ndarray
    listed: np.ndarray
    taken: np.ndarray | None
    sample: pa.Table
    n_sampled_users: int
    churn: Churn | None
    segments: tuple[Segment, ...]
    cards: tuple[UserCard, ...]


def collect_facts(warehouse: str, run: Run, min_weight: float, n_cards: int = 4) -> RunFacts:
    """Collect everything that the page shows of one run.

    Args:
        run: the manifest row of the run; it may be one that a gate refused.
        min_weight: interactions above it are positive.
        n_cards: users whose lists are shown in full.

    Memory: the catalogue's titles, and about a million rows of topk, whatever its size.

    Raises:
        InputMissing: the run wrote no lists, or they were removed since.
    """
    topk = run_files(warehouse, "topk", run)
    if not topk.parts:
        raise InputMissing(f"run {run.run_id} ({run.status}) has no rows in topk: it did not get so far, or they were removed since")
    items, sample = _read_items(warehouse, run), sample_lists(topk)
    item_ids = items["item_id"].combine_chunks()
    taken = _read_user_counts(warehouse, run, item_ids)
    return RunFacts(
        run=run,
        available=np.asarray(items["is_available"].to_numpy(zero_copy_only=False), dtype=bool),
        listed=_count_lists(topk, item_ids),
        taken=taken,
        sample=sample,
        n_sampled_users=len(pc.unique(sample["user_id"])),
        churn=_measure_churn(warehouse, run, topk, items),
        segments=measure_segments(warehouse, run, sample, item_ids, taken, min_weight),
        cards=make_cards(warehouse, run, sample, items, min_weight, n_cards),
    )


def sample_lists(topk: UserSortedFiles) -> pa.Table:
    """Sample whole lists, evenly over user_id."""
    return pa.concat_tables([topk.between(bounds, _COLUMNS) for bounds in sample_user_ranges(topk)]).unify_dictionaries().combine_chunks()


def _read_items(warehouse: str, run: Run) -> pa.Table:
    """Read item_id, title, categories, is_available as the night read them, or as they are now where that version was removed."""
    columns = ["item_id", "title", "categories", "is_available"]
    try:
        return read_table(warehouse, "items", columns=columns, version=run.input_versions["items"])
    except InputMissing:
        return read_table(warehouse, "items", columns=columns)


def _count_lists(topk: UserSortedFiles, item_ids: pa.Array) -> np.ndarray:
    counts = np.zeros(len(item_ids), dtype=np.int64)
    for batch in topk.batches(columns=["item_id"]):
        codes = flat_positions(batch["item_id"], item_ids)
        counts += np.bincount(codes[codes >= 0], minlength=len(counts))
    return counts


def _read_user_counts(warehouse: str, run: Run, item_ids: pa.Array) -> np.ndarray | None:
    try:
        counts = read_parquet(counts_path(artifact_root(warehouse), run.run_id))
    except (InputMissing, FileNotFoundError):
        return None
    return users_by_item(counts, item_ids).astype(np.int64)


def _measure_churn(warehouse: str, run: Run, topk: UserSortedFiles, items: pa.Table) -> Churn | None:
    earlier = published_previously(run_rows(warehouse), run)
    if earlier is None:
        return None
    earlier_topk = run_files(warehouse, "topk", earlier)
    comparison = compare_runs(topk, earlier_topk)
    return None if comparison is None else Churn(earlier.run_id, comparison, _find_movers(topk, earlier_topk, items))


def _find_movers(now: UserSortedFiles, earlier: UserSortedFiles, items: pa.Table) -> tuple[Mover, ...]:
    shares, item_ids, titles = [], items["item_id"].combine_chunks(), items["title"]
    for files in (now, earlier):
        rows = pa.concat_tables([files.between(bounds, ["user_id", "item_id"]) for bounds in sample_user_ranges(now)])
        codes = flat_positions(rows["item_id"].combine_chunks(), item_ids)
        shares.append(np.bincount(codes[codes >= 0], minlength=len(item_ids)) / max(len(pc.unique(rows["user_id"])), 1))
    change = shares[0] - shares[1]
    order = np.argsort(-change, kind="stable")
    rose, fell = order[:_N_MOVERS], order[::-1][:_N_MOVERS]
    chosen = [int(code) for code in (*rose[change[rose] > 0], *fell[change[fell] < 0])]
    names = [titles[code].as_py() or str(item_ids[code].as_py()) for code in chosen]
    return tuple(Mover(name, float(shares[0][code]), float(shares[1][code])) for name, code in zip(names, chosen, strict=True))
