"""Events since the published night by user, and what they changed of popularity: a cache on this machine's disk, in SQLite.

What it holds follows from interactions alone. A file that is lost, or of another machine, costs the time to fill it again.
"""

import sqlite3
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import pyarrow as pa

from recsys_batch.dataset.popularity import counts_schema
from recsys_batch.dataset.user_events import EVENTS
from recsys_batch.schemas import IdTypes

_TABLES = """
CREATE TABLE IF NOT EXISTS event
    (user_id {user} NOT NULL, item_id {item} NOT NULL, event_us INTEGER, weight REAL, version INTEGER NOT NULL);
CREATE INDEX IF NOT EXISTS event_of_user ON event (user_id);
CREATE TABLE IF NOT EXISTS popularity (segment TEXT, item_id {item} NOT NULL, n INTEGER NOT NULL, version INTEGER NOT NULL);
CREATE TABLE IF NOT EXISTS unknown_user (user_id {user} PRIMARY KEY, version INTEGER NOT NULL) WITHOUT ROWID;
CREATE INDEX IF NOT EXISTS event_of_version ON event (version);
CREATE INDEX IF NOT EXISTS popularity_of_version ON popularity (version);
CREATE INDEX IF NOT EXISTS unknown_user_of_version ON unknown_user (version);
CREATE TABLE IF NOT EXISTS progress (version INTEGER NOT NULL, prepared INTEGER NOT NULL);
CREATE TEMP TABLE wanted (user_id {user} PRIMARY KEY) WITHOUT ROWID;
"""
_SQL_TYPES = {"BIGINT": "INTEGER", "STRING": "TEXT"}


class EventStore:
    """Events that interactions got since a run read it. Used by one thread of one process at a time.

    A batch is prepared before topk_live gets it and confirmed after: what a process that died between had prepared is confirmed or dropped
    by the next, as topk_live says.
    """

    def __init__(self, path: Path, ids: IdTypes, first_version: int) -> None:
        """Open the file, or make it, with nothing in it yet.

        Args:
            first_version: of interactions, that the run has read.
        """
        path.parent.mkdir(parents=True, exist_ok=True)
        self._ids = ids
        self._database = sqlite3.connect(path, isolation_level=None, check_same_thread=False)
        # It can be filled again: what the system had not written when the machine stopped may be lost, but not half of it.
        self._database.executescript("PRAGMA journal_mode = WAL; PRAGMA synchronous = NORMAL; PRAGMA temp_store = MEMORY;")
        self._database.executescript(_TABLES.format(user=_SQL_TYPES[ids.user], item=_SQL_TYPES[ids.item]))
        if self._database.execute("SELECT count(*) FROM progress").fetchone()[0] == 0:
            self._database.execute("INSERT INTO progress VALUES (?, ?)", (first_version, first_version))

    @property
    def version(self) -> int:
        """The version of interactions up to which events are confirmed."""
        return int(self._database.execute("SELECT version FROM progress").fetchone()[0])

    @property
    def prepared(self) -> int:
        """The version of interactions up to which everything is here, confirmed or not."""
        return int(self._database.execute("SELECT prepared FROM progress").fetchone()[0])

    def add_events(self, events: pa.Table, version: int) -> None:
        """Add the rows of EVENTS that came up to a version, which is prepared with them: the last that a batch adds."""
        columns = [events[name].to_pylist() for name in ("user_id", "item_id", "event_us", "weight")]
        with self._transaction():
            self._database.executemany(f"INSERT INTO event VALUES (?, ?, ?, ?, {version})", zip(*columns, strict=True))
            self._database.execute("UPDATE progress SET prepared = ?", (version,))

    def prepare(self, popularity: pa.Table, users: pa.Array, unknown_users: pa.Array, version: int, listed: int | None = None) -> None:
        """Add what a batch changed, before topk_live gets its rows.

        Args:
            popularity: changes of counts, in ``counts_schema``.
            users: who is refreshed. unknown_users: those of them without an embedding.
            listed: version up to which these users' popular lists go; that of the batch where it is not given.
        """
        with self._transaction():
            counts = zip(*(popularity[name].to_pylist() for name in ("segment", "item_id", "n")), strict=True)
            self._database.executemany(f"INSERT INTO popularity VALUES (?, ?, ?, {version})", counts)
            self._database.executemany("DELETE FROM unknown_user WHERE user_id = ?", ((user,) for user in users.to_pylist()))
            unknown = ((user,) for user in unknown_users.to_pylist())
            self._database.executemany(f"INSERT INTO unknown_user VALUES (?, {version if listed is None else listed})", unknown)

    def mark_listed(self, users: pa.Array, version: int) -> None:
        """Note that popular lists of users without an embedding go up to a version now."""
        with self._transaction():
            self._database.executemany(f"UPDATE unknown_user SET version = {version} WHERE user_id = ?", zip(users.to_pylist()))

    def confirm(self, version: int) -> None:
        """Confirm what was prepared up to a version: topk_live has it. What goes beyond is dropped."""
        with self._transaction():
            for table in ("event", "popularity", "unknown_user"):
                self._database.execute(f"DELETE FROM {table} WHERE version > ?", (version,))
            self._database.execute("UPDATE progress SET version = ?, prepared = ?", (version, version))

    def clear(self, version: int) -> None:
        """Forget everything; ``version`` is confirmed."""
        with self._transaction():
            for table in ("event", "popularity", "unknown_user"):
                self._database.execute(f"DELETE FROM {table}")
            self._database.execute("UPDATE progress SET version = ?, prepared = ?", (version, version))

    def read_events(self, users: pa.Array, *, before: bool = True) -> pa.Table:
        """Read the confirmed events of users: rows of EVENTS, in order of user_id.

        Args:
            before: whether popularity counts them already.
        """
        with self._transaction():
            self._database.execute("DELETE FROM wanted")
            self._database.executemany("INSERT INTO wanted VALUES (?)", ((user,) for user in users.to_pylist()))
            rows = self._database.execute("SELECT user_id, item_id, event_us, weight FROM wanted JOIN event USING (user_id)").fetchall()
        return _to_events(rows, before, self._ids)

    def users(self) -> pa.Array:
        """List everybody who has events here, ascending."""
        rows = self._database.execute("SELECT DISTINCT user_id FROM event").fetchall()
        return pa.array([user for (user,) in rows], self._ids.user_arrow).sort()

    def read_popularity(self) -> pa.Table:
        """Sum the changes of counts since the night, in ``counts_schema``."""
        rows = self._database.execute("SELECT segment, item_id, sum(n) FROM popularity GROUP BY segment, item_id").fetchall()
        schema = counts_schema(self._ids)
        columns = list(zip(*rows, strict=True)) or [()] * len(schema)
        return pa.table([pa.array(column, field.type) for column, field in zip(columns, schema, strict=True)], schema=schema)

    def outdated_unknown_users(self) -> pa.Array:
        """List refreshed users without an embedding whose popular list is older than the newest count, ascending."""
        newest = "(SELECT coalesce(max(version), -1) FROM popularity)"
        rows = self._database.execute(f"SELECT user_id FROM unknown_user WHERE version < {newest}").fetchall()
        return pa.array([user for (user,) in rows], self._ids.user_arrow).sort()

    def close(self) -> None:
        self._database.close()

    @contextmanager
    def _transaction(self) -> Iterator[None]:
        self._database.execute("BEGIN")
        try:
            yield
        except BaseException:
            self._database.execute("ROLLBACK")
            raise
        self._database.execute("COMMIT")


def _to_events(rows: list[tuple[object, ...]], before: bool, ids: IdTypes) -> pa.Table:
    schema = EVENTS.arrow_schema(ids)
    columns = list(zip(*rows, strict=True)) or [()] * 4
    arrays = [pa.array(column, field.type) for column, field in zip(columns, schema, strict=False)]
    return pa.table([*arrays, pa.repeat(before, len(rows))], schema=schema).sort_by("user_id")
