"""export-snapshot and serve: the online side, and users' records into Redis, from Spark's executors."""

from __future__ import annotations

import contextlib
import functools
import os
import tempfile
import time
from contextlib import closing
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

import click

from recsys_batch.commands.options import json_option, with_config, with_config_if_any
from recsys_batch.commands.output import format_count, print_result
from recsys_batch.config import Config
from recsys_batch.errors import UsageError

if TYPE_CHECKING:
    from recsys_batch.online.export.published_run import PublishedRun
    from recsys_batch.online.export.record_builder import RecordBuilder
    from recsys_batch.storage.node_cache import NodeCache
    from recsys_batch.tables.user_ranges import UserRange


@click.command(
    "export-snapshot", help="Turn a published run into a snapshot for the online ranker. No JVM where lists go into the snapshot."
)
@click.option("--run-id", help="A published run other than the current one.")
@click.option("--out", type=click.Path(path_type=Path), help="Folder of snapshots.  [default: online.snapshots]")
@click.option("--activate/--no-activate", default=True, show_default=True, help="Let servers go over to it.")
@json_option
@with_config
def export_snapshot_command(config: Config, run_id: str | None, out: Path | None, activate: bool, as_json: bool) -> None:
    from recsys_batch.night.run_locks import user_rows_lock
    from recsys_batch.online.export.published_run import open_published_run
    from recsys_batch.online.export.snapshot_export import export_snapshot
    from recsys_batch.online.snapshot import repository
    from recsys_batch.storage.node_cache import NodeCache

    online, began = config.online, time.monotonic()
    folder = out or Path(online.snapshots)
    retrieval, cache = config.retrieval, NodeCache.from_paths(config.paths)
    with contextlib.ExitStack() as held:
        with contextlib.suppress(OSError):  # a host may only read the warehouse
            held.enter_context(user_rows_lock(config))
        run = open_published_run(config.paths.warehouse, cache, run_id, retrieval.metric, retrieval.seen)
        store = _RedisRecords(config) if online.store == "redis" else None
        done = export_snapshot(run, folder, store, n_samples=online.samples, activate=activate, keep=online.keep)
    name, written = done.snapshot_id, done.written
    if written is None:
        lines = [f"snapshot {name} is in {folder} already"]
        if done.refilled:
            lines.append(f"the store had lost its lists: those of {format_count(done.refilled)} users were put again")
    else:
        size = sum(entry["bytes"] for entry in written.files.values())
        counts = f"{format_count(written.n_users)} users, {format_count(written.n_items)} items, {size / 2**20:,.1f} MiB"
        lines = [f"snapshot {name}: {counts} in {time.monotonic() - began:.1f} s, in {folder / name}"]
    if done.activated:
        lines.append(f"{folder / repository.CURRENT_FILE} names {name} now")
    lines += [f"removed {snapshot_id}: online.keep = {online.keep}" for snapshot_id in done.removed]
    result = {"snapshot": name, "done": written is not None, "refilled": done.refilled, "folder": str(folder / name)}
    result |= {"current": repository.read_pointers(folder).current, "removed": done.removed}
    print_result(result, "\n".join(lines), as_json=as_json)


@dataclass(frozen=True)
class _RedisRecords:
    """Users' records in the store of RECSYS_BATCH_REDIS_URL, put there by executors."""

    config: Config

    def has_records(self, snapshot_id: str) -> bool:
        from recsys_batch.online.snapshot.redis_store import connect, has_records

        with closing(connect(_redis_url(), self.config.online.redis_cluster)) as client:
            return has_records(client, snapshot_id)

    def fill(self, run: PublishedRun) -> int:
        return _fill_redis(self.config, run)


def _redis_url() -> str:
    """Read the store's address. Raises UsageError: there is none."""
    from recsys_batch.online.settings import REDIS_URL

    url = os.environ.get(REDIS_URL)
    if not url:
        raise UsageError(f"online.store = redis needs the server in {REDIS_URL}, for example redis://127.0.0.1:6379/0")
    return url


def _fill_redis(config: Config, run: PublishedRun) -> int:
    """Put all users' records into the store of RECSYS_BATCH_REDIS_URL, each range of users by a task; returns how many there are.

    Raises:
        UsageError: no URL.
        RecsysBatchError: the store refused.
    """
    from recsys_batch.online.snapshot.redis_store import connect, mark_complete
    from recsys_batch.spark.executors.functions import sum_over_ranges
    from recsys_batch.spark.session import get_session
    from recsys_batch.storage.node_cache import NodeCache

    url = _redis_url()
    expire = int(config.online.redis_expire_hours * 3600)
    name, cache = run.run_id, NodeCache.from_paths(config.paths)
    put = functools.partial(_write_range, run.record_builder, run.catalogue_dir, cache, name, url, config.online.redis_cluster, expire)
    n_records = sum_over_ranges(get_session(config), put, run.record_builder.user_ranges)
    with closing(connect(url, config.online.redis_cluster)) as client:
        mark_complete(client, name, n_records, expire)
    return n_records


def _write_range(
    lists: RecordBuilder, catalogue_dir: str, cache: NodeCache, name: str, url: str, cluster: bool, expire: int, bounds: UserRange
) -> int:
    """Write a range of users in an executor; returns how many."""
    from recsys_batch.dataset.catalogue import open_catalogue
    from recsys_batch.online.snapshot.redis_store import connect, write_records

    with closing(connect(url, cluster)) as client:
        return write_records(client, name, lists.records(open_catalogue(str(cache.local_copy(catalogue_dir))), bounds), expire)


@click.command(
    "serve",
    help="Answer ranking requests from the current snapshot, and go over to others as they come. A request's bounds are online.max_k, "
    "max_ids, max_candidates and max_body_kb (--set).",
)
@click.option("--snapshots", type=click.Path(path_type=Path), help="Folder of snapshots.  [default: online.snapshots]")
@click.option("--host", help="Address.  [default: online.host]")
@click.option("--port", type=click.IntRange(1, 65535), help="[default: online.port]")
@click.option("--grpc-port", type=click.IntRange(1, 65535), help="Open Inference Protocol over gRPC.  [default: online.grpc_port]")
@click.option("--workers", type=click.IntRange(1, 256), help="Processes.  [default: online.workers, or one per core]")
@click.option("--exposures", type=click.Path(path_type=Path), help="Folder for the log of what was shown.  [default: online.exposures]")
@click.option("--tls-certificate", type=click.Path(path_type=Path), help="PEM file; HTTPS, and TLS for gRPC, with --tls-key.")
@click.option("--tls-key", type=click.Path(path_type=Path), help="PEM file, without a password.")
@click.option("--tls-client-ca", type=click.Path(path_type=Path), help="PEM file of who signs clients' certificates; only such clients.")
@with_config_if_any
def serve_command(config: Config, **options: Any) -> None:
    """Tokens come from RECSYS_BATCH_ADMIN_TOKEN and RECSYS_BATCH_CLIENT_TOKEN."""
    from recsys_batch.online.server.supervisor import run_server
    from recsys_batch.online.settings import ServerSettings

    try:
        state = tempfile.mkdtemp(prefix="recsys-batch-serve-")
    except OSError as error:
        raise UsageError(f"the server needs a temporary folder ({error}): set TMPDIR to a folder with room") from None
    run_server(ServerSettings.from_section(config.online, state, config.paths.warehouse, **options))
