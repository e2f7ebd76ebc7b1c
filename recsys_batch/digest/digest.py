"""A digest: chosen range by range, logged, then handed out. Killed anywhere, the same call ends with the same file and one log entry."""

from __future__ import annotations

import datetime as dt
from collections.abc import Callable, Iterator
from dataclasses import dataclass

import numpy as np
import pyarrow as pa

from recsys_batch.digest.output import OutputSink, draft_path, open_output_file, publish_output
from recsys_batch.digest.sent_log import SentLog, sent_rows
from recsys_batch.digest.user_slots import DigestRequest, FreshChooser, LoggedChooser, SlotBlock, open_digest_users
from recsys_batch.errors import InputMissing
from recsys_batch.read import read_id_types, run_published_on
from recsys_batch.storage.node_cache import NodeCache
from recsys_batch.tables.run_manifest import Run


@dataclass
class DigestResult:
    """What came of it.

    Attributes:
        n_short: users with fewer slots than asked for; n_without: users who get nothing, and are not in the file.
        n_popular: slots filled from popular lists.
        logged_before: the digest was in the log already, and this is what it said.
    """

    digest_id: str
    run_id: str
    out: str
    n_users: int = 0
    n_slots: int = 0
    n_popular: int = 0
    n_short: int = 0
    n_without: int = 0
    logged_before: bool = False


DigestProgress = Callable[[int, int], None]
"""Called with (ranges done, of how many)."""


def make_digest(
    warehouse: str,
    cache: NodeCache,
    order: DigestRequest,
    now: dt.datetime,
    min_weight: float,
    *,
    dry_run: bool = False,
    progress: DigestProgress,
) -> DigestResult:
    """Write the digest, and log what is in it.

    First the draft, then the log, then the file: what a sender finds is logged, and what was logged is what every later call gives.

    Args:
        cache: of this machine, for what lies in a store.
        now: when it is sent, for the age of the run.
        dry_run: count, and leave neither file nor log.

    Raises:
        InputMissing: no run of that date is published, it is too old, or its rows are gone.
        UsageError: no such segment, or a file that cannot be written.
        Busy: another process makes the same digest.
    """
    ids = read_id_types(warehouse)
    log = SentLog(warehouse, ids)
    logged = log.run_of(order.digest_id)
    run = run_published_on(warehouse, order.run_date, logged or None)
    _check_age(run, order.max_age, now)
    chooser = LoggedChooser(log, order.digest_id) if logged else FreshChooser(log, order)
    result = DigestResult(order.digest_id, run.run_id, str(order.out), logged_before=logged is not None)
    with open_digest_users(warehouse, cache, run, order, min_weight) as users:
        made = _counted(users.slots(chooser, progress), result)
        if dry_run:
            for _ in made:
                pass
            return result
        try:
            with open_output_file(order.out, order.form, ids, run.run_id, run.model_version) as sink:
                if logged is None:
                    log.make()
                    where = log.slice_on(order.run_date)
                    parts = list(where.write(_both(made, sink, order.digest_id, run.run_id, where.schema), 0))
                else:
                    for one in made:
                        sink.write(one.block())
            if logged is None:
                log.append(order.digest_id, where, parts, {"run_id": run.run_id})
            publish_output(order.out)
        finally:
            draft_path(order.out).unlink(missing_ok=True)
    return result


def _both(made: Iterator[SlotBlock], sink: OutputSink, digest_id: str, run_id: str, schema: pa.Schema) -> Iterator[pa.RecordBatch]:
    """Slots into the file, and as rows of the log."""
    for one in made:
        sink.write(one.block())
        columns = one.columns
        n = len(columns["item_id"])
        names = {"digest_id": pa.repeat(digest_id, n), "run_id": pa.repeat(run_id, n), "user_id": one.user_of_each()}
        yield sent_rows(schema, {**names, "slot": columns["slot"], "item_id": columns["item_id"]})


def _counted(made: Iterator[SlotBlock], result: DigestResult) -> Iterator[SlotBlock]:
    for one in made:
        counts = np.bincount(one.chosen.owner, minlength=len(one.users))
        result.n_users += int(np.count_nonzero(counts))
        result.n_without += int(np.count_nonzero(counts == 0))
        result.n_short += int(np.count_nonzero((counts > 0) & (counts < one.wanted)))
        result.n_slots += len(one.chosen)
        result.n_popular += int(np.count_nonzero(one.chosen.popular))
        yield one


def _check_age(run: Run, max_age: dt.timedelta, now: dt.datetime) -> None:
    began = run.started_at
    if now - began > max_age:
        hours, limit = (now - began) / dt.timedelta(hours=1), max_age / dt.timedelta(hours=1)
        raise InputMissing(
            f"run {run.run_id} began {began:%Y-%m-%d %H:%M} UTC, {hours:.0f} hours ago; digest.max_age_hours = {limit:g}: "
            "send a newer night's, or set it higher"
        )
