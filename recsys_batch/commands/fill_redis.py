"""Users' lists into Redis, from Spark's executors."""

from __future__ import annotations

import functools
import os
from typing import TYPE_CHECKING

from recsys_batch.config import Config
from recsys_batch.errors import UsageError
from recsys_batch.tables.user_ranges import UserRange

if TYPE_CHECKING:
    from recsys_batch.online.export.published_run import PublishedRun
    from recsys_batch.online.export.record_builder import RecordBuilder
    from recsys_batch.storage.node_cache import NodeCache


def fill_redis(config: Config, run: PublishedRun) -> int:
    """Put all users' records into the store of RECSYS_BATCH_REDIS_URL, each range of users by a task; returns how many there are.

    Raises:
        UsageError: no URL.
        RecsysBatchError: the store refused.
    """
    from recsys_batch.online.settings import REDIS_URL
    from recsys_batch.online.snapshot.redis_store import connect, mark_complete
    from recsys_batch.spark.executors.functions import sum_over_ranges
    from recsys_batch.spark.session import get_session
    from recsys_batch.storage.node_cache import NodeCache

    url = os.environ.get(REDIS_URL)
    if not url:
        raise UsageError(f"online.store = redis needs the server in {REDIS_URL}, for example redis://127.0.0.1:6379/0")
    expire = int(config.online.redis_expire_hours * 3600)
    name, cache = run.run_id, NodeCache.from_paths(config.paths)
    put = functools.partial(_write_range, run.record_builder, run.catalogue_dir, cache, name, url, config.online.redis_cluster, expire)
    n_records = sum_over_ranges(get_session(config), put, run.record_builder.user_ranges)
    client = connect(url, config.online.redis_cluster)
    try:
        mark_complete(client, name, n_records, expire)
    finally:
        client.close()
    return n_records


def _write_range(
    lists: RecordBuilder, catalogue_dir: str, cache: NodeCache, name: str, url: str, cluster: bool, expire: int, bounds: UserRange
) -> int:
    """Write a range of users in an executor; returns how many."""
    from recsys_batch.dataset.catalogue import open_catalogue
    from recsys_batch.online.snapshot.redis_store import connect, write_records

    client = connect(url, cluster)
    try:
        return write_records(client, name, lists.records(open_catalogue(str(cache.local_copy(catalogue_dir))), bounds), expire)
    finally:
        client.close()
