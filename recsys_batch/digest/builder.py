"""Makes a digest: chosen range by range, logged, then handed out. Killed anywhere, the same call ends with the same file and log entry."""

import datetime as dt
from collections.abc import Iterator
from dataclasses import dataclass

import numpy as np
import pyarrow as pa

from recsys_batch.digest.digest_users import SlotProgress, open_digest_users
from recsys_batch.digest.output import OutputSink, draft_path, open_output_file, publish_output
from recsys_batch.digest.sent_log import SentLog
from recsys_batch.digest.slot_blocks import SlotBlock
from recsys_batch.digest.slot_choosers import DigestRequest, FreshChooser, LoggedChooser
from recsys_batch.errors import InputMissing
from recsys_batch.read import id_types, published_on
from recsys_batch.storage.node_cache import NodeCache
from recsys_batch.tables.run_manifest import Run


@dataclass
class DigestResult:
    """Counts of a digest that was made.

    Attributes:
        n_short: users with fewer slots than asked for; n_without: users who get nothing, and are not in the file.
        n_popular: slots filled from popular lists.
        logged_before: the digest was in the log already; the file has what the log says.
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


def make_digest(
    warehouse: str,
    cache: NodeCache,
    request: DigestRequest,
    now: dt.datetime,
    min_weight: float,
    *,
    dry_run: bool = False,
    progress: SlotProgress,
) -> DigestResult:
    """Make one digest: write its file, and log what is in it.

    First the draft, then the log, then the file: what a sender reads is logged, and what was logged is what every later call gives.

    Args:
        cache: of this machine, for artefacts in an object store.
        now: when the digest is sent; the run's age is measured at it.
        dry_run: count, and leave neither file nor log.

    Raises:
        InputMissing: no run of that date is published, it is too old, or its rows are gone.
        UsageError: no such segment, or a file that cannot be written.
        Busy: another process makes the same digest.
    """
    ids = id_types(warehouse)
    log = SentLog(warehouse, ids)
    logged = log.find_run(request.digest_id)
    run = published_on(warehouse, request.run_date, logged or None)
    _check_run_age(run, request.max_age, now)
    chooser = LoggedChooser(log, request.digest_id) if logged else FreshChooser(log, request)
    result = DigestResult(request.digest_id, run.run_id, str(request.out), logged_before=logged is not None)
    with open_digest_users(warehouse, cache, run, request, min_weight) as digest_users:
        blocks = _count_slots(digest_users.slot_blocks(chooser, progress), result)
        if dry_run:
            for _ in blocks:
                pass
            return result
        try:
            with open_output_file(request.out, request.form, ids, run.run_id, run.model_version) as sink:
                if logged is None:
                    log.create_table()
                    day_slice = log.slice_of_day(request.run_date)
                    files = list(day_slice.write(_write_and_log(blocks, sink, request.digest_id, run.run_id, day_slice.schema), 0))
                else:
                    for block in blocks:
                        sink.write(block.to_output())
            if logged is None:
                log.append(request.digest_id, day_slice, files, {"run_id": run.run_id})
            publish_output(request.out, request.form, ids)
        finally:
            draft_path(request.out).unlink(missing_ok=True)
    return result


def _write_and_log(
    blocks: Iterator[SlotBlock], sink: OutputSink, digest_id: str, run_id: str, schema: pa.Schema
) -> Iterator[pa.RecordBatch]:
    """Write each block to the file, and yield it as rows of the log."""
    for block in blocks:
        sink.write(block.to_output())
        n = len(block.chosen)
        columns = {**block.columns, "digest_id": pa.repeat(digest_id, n), "run_id": pa.repeat(run_id, n), "user_id": block.user_ids()}
        yield pa.RecordBatch.from_arrays([pa.array(columns[field.name], field.type) for field in schema], schema=schema)


def _count_slots(blocks: Iterator[SlotBlock], result: DigestResult) -> Iterator[SlotBlock]:
    for block in blocks:
        counts = np.bincount(block.chosen.owner, minlength=len(block.users))
        result.n_users += int(np.count_nonzero(counts))
        result.n_without += int(np.count_nonzero(counts == 0))
        result.n_short += int(np.count_nonzero((counts > 0) & (counts < block.wanted)))
        result.n_slots += len(block.chosen)
        result.n_popular += int(np.count_nonzero(block.chosen.popular))
        yield block


def _check_run_age(run: Run, max_age: dt.timedelta, now: dt.datetime) -> None:
    began = run.started_at
    if now - began > max_age:
        hours, limit = (now - began) / dt.timedelta(hours=1), max_age / dt.timedelta(hours=1)
        raise InputMissing(
            f"run {run.run_id} began {began:%Y-%m-%d %H:%M} UTC, {hours:.0f} hours ago; digest.max_age_hours = {limit:g}: "
            "send a newer night's, or set it higher"
        )
