"""Which users an incremental night has to compute again, or why it has to be a full one.

Everything that a user's rows rest on is compared with the night that readers see: the model, the settings, the catalogue, the
rows of interactions and users. Popularity and counts that would move every row every night are frozen in the bundle.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass, replace

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc
import pyarrow.parquet as pq
from pyspark.sql import DataFrame
from pyspark.sql import functions as F

from recsys_batch import __version__
from recsys_batch.dataset.catalogue import Catalogue, open_catalogue
from recsys_batch.errors import InputMissing
from recsys_batch.night.incremental.appended_files import NotAppendOnly, list_appended_files
from recsys_batch.night.run_context import RunContext, partition_values
from recsys_batch.night.run_store import load_run_rows
from recsys_batch.storage.artifacts import catalogue_folder
from recsys_batch.storage.filesystems import basename, join, read_parquet
from recsys_batch.tables import run_manifest
from recsys_batch.tables.delta_log import list_data_files
from recsys_batch.tables.run_manifest import Run
from recsys_batch.tables.slice_writer import TableSlice
from recsys_batch.tables.user_ranges import LIST_ROWS, UserSortedFiles

_TOO_MANY = 0.3
"""Share of users from which on a full night is cheaper than to compute these and merge them."""

_CHANGED = "changed.parquet"
_OF_USERS = ("candidates", "user_embeddings")


@dataclass(frozen=True)
class BaseRun:
    """The night that an incremental one goes on from.

    Attributes:
        changed: user_id of everybody whose rows are computed again, ascending.
        gained: item_id of what can be recommended now and could not then, ascending; merged into the lists of all others.
        same_items: whether what can be recommended is what it was.
    """

    run: Run
    changed: pa.Array
    new_items: pa.Array
    same_items: bool

    def files(self, where: TableSlice) -> UserSortedFiles:
        """The base's rows of the table that ``where`` is a slice of."""
        return list_slice_files(where, self.run)


class FullRunRequired(Exception):
    """The night cannot be incremental; the message says why."""


def find_base(night: RunContext, catalogue: Catalogue) -> BaseRun:
    """Compare with the published night, and record what is found as the run's pointer "base".

    Raises:
        NeedsFull: with a sentence.
    """
    run = run_manifest.newest_published(load_run_rows(night.tables))
    if run is None:
        raise FullRunRequired("nothing is published yet")
    if run.metrics.get(run_manifest.GATE_REFUSED):
        raise FullRunRequired(f"run {run.run_id} was published although its audit refused it")
    for what, then, now in (
        ("model version", run.model_version, night.run.model_version),
        ("settings", run.config_hash, night.run.config_hash),
        ("release", run.code_version, __version__),
    ):
        if then != now:
            raise FullRunRequired(f"run {run.run_id} has {what} {then}, this one {now}")
    before = night.cache.local_copy(catalogue_folder(night.root, run.run_id))
    gained, lost = _compared(open_catalogue.__wrapped__(str(before)), catalogue, night)
    users, embedded = (
        list_slice_files(night.table_slice(name), run).between(columns=["user_id"])["user_id"].combine_chunks() for name in _OF_USERS
    )
    parts = [
        _with_new_events(night, run),
        _with_other_rows(night, run),
        users.filter(pc.invert(pc.is_in(users, value_set=embedded))),  # their popular lists move every night
        *(_holding(night, run, lost) if len(lost) else []),
    ]
    changed = pa.chunked_array(parts).unique().sort()
    if len(changed) > _TOO_MANY * max(len(users), 1):
        raise FullRunRequired(f"{len(changed)} of {len(users)} users have changed, more than {_TOO_MANY:.0%}")
    table = pa.table({"user_id": changed})
    folder = night.put_folder("changed", lambda target: pq.write_table(table, target / _CHANGED))
    same_items = not len(gained) and not len(lost)
    found = {"run_id": run.run_id, "changed": basename(folder), "gained": gained.to_pylist(), "same_items": same_items}
    night.set_pointer("base", found)
    return BaseRun(run, changed, gained, same_items)


def load_base(night: RunContext) -> BaseRun | None:
    """What ``find_base`` recorded for this run; None for a full night."""
    if not night.has_pointer("base"):
        return None
    pointer = night.get_pointer("base")
    run = run_manifest.latest_state_by_run(load_run_rows(night.tables))[pointer["run_id"]]
    if run.status != "PUBLISHED" or not list_slice_files(night.table_slice("topk"), run).parts:
        gone = "was rolled back" if run.status != "PUBLISHED" else "is no longer kept"
        raise InputMissing(f"run {run.run_id}, from which {night.run.run_id} goes on, {gone}: begin a new run (--force)")
    changed = read_parquet(changed_users_path(night))["user_id"].combine_chunks()
    return BaseRun(run, changed, pa.array(pointer["gained"], type=night.ids.item_arrow), pointer["same_items"])


def changed_users_path(night: RunContext) -> str:
    """Location of a Parquet file of user_id, ascending."""
    return join(night.root, "changed", str(night.get_pointer("base")["changed"]), _CHANGED)


def _compared(before: Catalogue, now: Catalogue, night: RunContext) -> tuple[pa.Array, pa.Array]:
    """item_ids that came and that went.

    Raises:
        NeedsFull: something that everybody's rows rest on is not what it was.
    """
    both = before.item_ids.filter(pc.is_in(before.item_ids, value_set=now.item_ids))
    old, new = before.codes(both), now.codes(both)
    arrays = [("vectors", before.embeddings, now.embeddings), ("history vectors", before.history, now.history)]
    for segment in now.eligible:
        arrays.append((f"eligibility for {segment}", before.eligible[segment], now.eligible[segment]))
    for name in ("boost", "blocked", "stale"):
        if getattr(now.item_rules, name) is not None:
            arrays.append((f"rules ({name})", getattr(before.item_rules, name), getattr(now.item_rules, name)))
    for name, then, today in arrays:
        same = np.asarray(then[old] == today[new]).reshape(len(both), -1).all(axis=1)
        if not same.all():
            raise FullRunRequired(f"the {name} of {int(np.count_nonzero(~same))} items are not what they were")
    if now.item_rules.max_per_category is not None:
        if not before.item_ids.equals(now.item_ids):
            raise FullRunRequired("items came or went, and rules.max_per_category weighs all of a list against each other")
        for name in ("category_codes", "category_offsets"):
            if not np.array_equal(getattr(before.item_rules, name), getattr(now.item_rules, name)):
                raise FullRunRequired("categories of items are not what they were, and rules.max_per_category goes by them")
    was, now_is = before.item_ids.filter(pa.array(before.retrievable)), now.item_ids.filter(pa.array(now.retrievable))
    gained, lost = now_is.filter(pc.invert(pc.is_in(now_is, value_set=was))), was.filter(pc.invert(pc.is_in(was, value_set=now_is)))
    if len(gained) and now.eligible:
        raise FullRunRequired(f"{len(gained)} items came, and retrieval.eligibility says for each segment whether they may")
    return gained, lost


def list_event_files(night: RunContext, run: Run) -> tuple[list[str], list[str]]:
    """Files of interactions that the run read, and those that came since.

    Raises:
        NeedsFull: some are no longer there.
    """
    then, now = (versions["interactions"] for versions in (run.input_versions, night.run.input_versions))
    try:
        return list_appended_files(night.tables.folder("interactions"), then, now)
    except NotAppendOnly as why:
        raise FullRunRequired(str(why)) from None


def _with_new_events(night: RunContext, run: Run) -> pa.Array:
    """Users of the files that interactions has got since."""
    _, files = list_event_files(night, run)
    if files and night.bundle.kind == "embeddings" and night.bundle.ranker_path is not None:
        raise FullRunRequired("there are new interactions, and the ranker that was brought reads popularity, which they move")
    columns = [read_parquet(path, columns=["user_id"])["user_id"].unique() for path in files]
    return pa.chunked_array(columns, type=night.ids.user_arrow).unique()


def _with_other_rows(night: RunContext, run: Run) -> pa.Array:
    """Users whose row in users is another one, or came, or went."""
    then, now = run.input_versions.get("users"), night.run.input_versions.get("users")
    if then == now:
        return pa.array([], type=night.ids.user_arrow)
    sides = [_comparable(night.tables.read("users", version)) for version in (then, now) if version is not None]
    rows = sides[0] if len(sides) == 1 else sides[0].exceptAll(sides[1]).unionByName(sides[1].exceptAll(sides[0]))
    return rows.select("user_id").distinct().toArrow()["user_id"].combine_chunks().cast(night.ids.user_arrow)


def _comparable(users: DataFrame) -> DataFrame:
    """Maps as sorted entries, as Spark compares no maps."""
    return users.select("user_id", "segment", F.array_sort(F.map_entries("attributes")).alias("attributes"))


def _holding(night: RunContext, run: Run, lost: pa.Array) -> Iterator[pa.Array]:
    """Users with a candidate that is gone."""
    for batch in list_slice_files(night.table_slice("candidates"), run).batches(columns=["user_id", "items"], n_rows=LIST_ROWS):
        hit = pc.is_in(batch["items"].flatten().field("item_id"), value_set=lost)
        yield batch["user_id"].take(pc.list_parent_indices(batch["items"]).filter(hit).unique())


def list_slice_files(where: TableSlice, run: Run) -> UserSortedFiles:
    """A run's files of the table that ``where`` is a slice of."""
    theirs = replace(where, partition=partition_values(where.spec, run))
    return UserSortedFiles(theirs, list_data_files(theirs))  # of the newest version: a published slice is never written again
