"""The published run that an incremental one goes on from: the users to compute again, or why the run has to be a full one.

Everything that a user's rows rest on is compared with the night that readers see: the model, the settings, the catalogue, the
rows of interactions and users. Popularity and counts that would move every row every night are frozen in the bundle.
"""

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
from recsys_batch.night.run_context import RunContext, partition_values
from recsys_batch.night.run_store import load_run_rows
from recsys_batch.night.seen_events import find_users_with_returned_items
from recsys_batch.spark.run_artifacts import RunArtifacts
from recsys_batch.storage.artifacts import catalogue_folder
from recsys_batch.storage.filesystems import basename, join, read_parquet
from recsys_batch.tables import run_manifest
from recsys_batch.tables.appended_files import NotAppendOnly, list_appended_files
from recsys_batch.tables.delta_log import list_data_files
from recsys_batch.tables.run_manifest import Run
from recsys_batch.tables.slice_writer import TableSlice
from recsys_batch.tables.tombstones import read_erasure
from recsys_batch.tables.user_ranges import LIST_ROWS, UserSortedFiles

_TOO_MANY = 0.3
"""Share of users from which on a full night is cheaper than to compute these and merge them."""

_CHANGED_FILE = "changed.parquet"
_USER_TABLES = ("candidates", "user_embeddings")


@dataclass(frozen=True)
class BaseRun:
    """The run that an incremental one goes on from.

    Attributes:
        changed: user_id of everybody whose rows are computed again, ascending.
        new_items: item_id of what can be recommended now and could not then, ascending; merged into the lists of all others.
        same_items: whether what can be recommended is what it was.
    """

    run: Run
    changed: pa.Array
    new_items: pa.Array
    same_items: bool


class FullRunRequired(Exception):
    """The night cannot be incremental; the message says why."""


def find_base(context: RunContext, catalogue: Catalogue) -> BaseRun:
    """Compare the inputs with the published run's, and record the base run as this run's pointer "base".

    Raises:
        FullRunRequired: with a sentence.
    """
    run = run_manifest.newest_published(load_run_rows(context.tables))
    if run is None:
        raise FullRunRequired("nothing is published yet")
    if run.metrics.get(run_manifest.GATE_REFUSED):
        raise FullRunRequired(f"run {run.run_id} was published although its audit refused it")
    for what, then, now in (
        ("model version", run.model_version, context.run.model_version),
        ("settings", run.config_hash, context.run.config_hash),
        ("release", run.code_version, __version__),
        (
            "scoring engine",
            RunArtifacts(context.config, run, context.ids, context.root).scoring_engine,
            context.run_artifacts.scoring_engine,
        ),
    ):
        if then != now:
            raise FullRunRequired(f"run {run.run_id} has {what} {then}, this one {now}")
    if why := read_erasure(context.root, run.run_id).get("popularity"):
        raise FullRunRequired(f"users were erased since run {run.run_id}, and its popularity {why}")
    before = context.run_artifacts.cache.local_copy(catalogue_folder(context.root, run.run_id))
    new_items, lost_items = _diff_catalogues(open_catalogue.__wrapped__(str(before)), catalogue, context)
    users, embedded = (
        list_slice_files(context.table_slice(name), run).between(columns=["user_id"])["user_id"].combine_chunks() for name in _USER_TABLES
    )
    parts = [
        _users_with_new_events(context, run),
        _users_with_changed_rows(context, run),
        find_users_with_returned_items(context, run),
        users.filter(pc.invert(pc.is_in(users, value_set=embedded))),  # their popular lists move every night
        *(_users_with_lost_items(context, run, lost_items) if len(lost_items) else []),
    ]
    changed = pa.chunked_array(parts).unique().sort()
    if len(changed) > _TOO_MANY * max(len(users), 1):
        raise FullRunRequired(f"{len(changed)} of {len(users)} users have changed, more than {_TOO_MANY:.0%}")
    table = pa.table({"user_id": changed})
    folder = context.put_folder("changed", lambda target: pq.write_table(table, target / _CHANGED_FILE))
    same_items = not len(new_items) and not len(lost_items)
    pointer = {"run_id": run.run_id, "changed": basename(folder), "gained": new_items.to_pylist(), "same_items": same_items}
    context.set_pointer("base", pointer)
    return BaseRun(run, changed, new_items, same_items)


def load_base(context: RunContext) -> BaseRun | None:
    """Load the base run that ``find_base`` recorded for this run; None for a full night."""
    if not context.has_pointer("base"):
        return None
    pointer = context.get_pointer("base")
    run = run_manifest.latest_state_by_run(load_run_rows(context.tables))[pointer["run_id"]]
    if run.status != "PUBLISHED" or not list_slice_files(context.table_slice("topk"), run).parts:
        reason = "was rolled back" if run.status != "PUBLISHED" else "is no longer kept"
        raise InputMissing(f"run {run.run_id}, from which {context.run.run_id} goes on, {reason}: begin a new run (--force)")
    changed = read_parquet(changed_users_path(context))["user_id"].combine_chunks()
    return BaseRun(run, changed, pa.array(pointer["gained"], type=context.ids.item_arrow), pointer["same_items"])


def changed_users_path(context: RunContext) -> str:
    """Locate the Parquet file of the users to compute again: user_id, ascending."""
    return join(context.root, "changed", str(context.get_pointer("base")["changed"]), _CHANGED_FILE)


def _diff_catalogues(before: Catalogue, now: Catalogue, context: RunContext) -> tuple[pa.Array, pa.Array]:
    """Compare two catalogues: item_ids that can be recommended now only, and before only.

    Raises:
        FullRunRequired: something that everybody's rows rest on is not what it was.
    """
    common_ids = before.item_ids.filter(pc.is_in(before.item_ids, value_set=now.item_ids))
    codes_before, codes_now = before.codes(common_ids), now.codes(common_ids)
    arrays = [("vectors", before.embeddings, now.embeddings), ("history vectors", before.history, now.history)]
    arrays += [(f"eligibility for {segment}", before.eligible[segment], mask) for segment, mask in now.eligible.items()]
    for name in ("boost", "blocked", "stale"):
        if getattr(now.item_rules, name) is not None:
            arrays.append((f"rules ({name})", getattr(before.item_rules, name), getattr(now.item_rules, name)))
    for name, then, current in arrays:
        is_same = np.asarray(then[codes_before] == current[codes_now]).reshape(len(common_ids), -1).all(axis=1)
        if not is_same.all():
            raise FullRunRequired(f"the {name} of {int(np.count_nonzero(~is_same))} items are not what they were")
    if now.item_rules.max_per_category is not None:
        if not before.item_ids.equals(now.item_ids):
            raise FullRunRequired("items came or went, and rules.max_per_category weighs all of a list against each other")
        for name in ("category_codes", "category_offsets"):
            if not np.array_equal(getattr(before.item_rules, name), getattr(now.item_rules, name)):
                raise FullRunRequired("categories of items are not what they were, and rules.max_per_category goes by them")
    ids_before, ids_now = before.item_ids.filter(pa.array(before.retrievable)), now.item_ids.filter(pa.array(now.retrievable))
    new_items = ids_now.filter(pc.invert(pc.is_in(ids_now, value_set=ids_before)))
    lost_items = ids_before.filter(pc.invert(pc.is_in(ids_before, value_set=ids_now)))
    if len(new_items) and now.eligible:
        raise FullRunRequired(f"{len(new_items)} items came, and retrieval.eligibility says for each segment whether they may")
    return new_items, lost_items


def list_event_files(context: RunContext, run: Run) -> tuple[list[str], list[str]]:
    """List the files of interactions that ``run`` read, and those that came since.

    Raises:
        FullRunRequired: some are no longer there.
    """
    then, now = (versions["interactions"] for versions in (run.input_versions, context.run.input_versions))
    try:
        return list_appended_files(context.tables.folder("interactions"), then, now)
    except NotAppendOnly as error:
        raise FullRunRequired(str(error)) from None


def _users_with_new_events(context: RunContext, run: Run) -> pa.Array:
    """Read the users of the files that interactions got since ``run``."""
    _, files = list_event_files(context, run)
    if files and context.bundle.kind == "embeddings" and context.bundle.ranker_path is not None:
        raise FullRunRequired("there are new interactions, and the ranker that was brought reads popularity, which they move")
    columns = [read_parquet(path, columns=["user_id"])["user_id"].unique() for path in files]
    return pa.chunked_array(columns, type=context.ids.user_arrow).unique()


def _users_with_changed_rows(context: RunContext, run: Run) -> pa.Array:
    """Find the users whose row in the users table changed, came or went."""
    then, now = run.input_versions.get("users"), context.run.input_versions.get("users")
    if then == now:
        return pa.array([], type=context.ids.user_arrow)
    sides = [_comparable_rows(context.tables.read("users", version)) for version in (then, now) if version is not None]
    rows = sides[0] if len(sides) == 1 else sides[0].exceptAll(sides[1]).unionByName(sides[1].exceptAll(sides[0]))
    return rows.select("user_id").distinct().toArrow()["user_id"].combine_chunks().cast(context.ids.user_arrow)


def _comparable_rows(users: DataFrame) -> DataFrame:
    """Make rows of users comparable: maps as sorted entries, as Spark compares no maps."""
    return users.select("user_id", "segment", F.array_sort(F.map_entries("attributes")).alias("attributes"))


def _users_with_lost_items(context: RunContext, run: Run, lost_items: pa.Array) -> Iterator[pa.Array]:
    """Find the users with a candidate that can no longer be recommended."""
    for batch in list_slice_files(context.table_slice("candidates"), run).batches(columns=["user_id", "items"], n_rows=LIST_ROWS):
        is_lost = pc.is_in(batch["items"].flatten().field("item_id"), value_set=lost_items)
        yield batch["user_id"].take(pc.list_parent_indices(batch["items"]).filter(is_lost).unique())


def list_slice_files(table: TableSlice, run: Run) -> UserSortedFiles:
    """List a run's files of the table that ``table`` is a slice of."""
    run_slice = replace(table, partition=partition_values(table.spec, run))
    return UserSortedFiles(run_slice, list_data_files(run_slice))  # of the newest version: a published slice is never written again
