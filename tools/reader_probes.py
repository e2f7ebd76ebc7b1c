"""What a reader makes of the tables of reader_samples.py: python tools/reader_probes.py READER FOLDER prints a JSON object, label -> cell.

Runs in any environment that has the reader: nothing here imports the product. Every cell is what was seen, never what is expected.
"""

import datetime as dt
import json
import math
import os
import sys
from collections.abc import Callable, Sequence
from importlib.metadata import version
from pathlib import Path
from typing import Any, ClassVar

from opened_files import watch_opened_files

Condition = tuple[str, str, Any]
"""(column, operator, value); the operator is =, >, >=, in, or "or": equal to one of the values, written with OR."""

ZONE = "Asia/Tokyo"
"""The zone of every reader's session, so that text without a zone shows how it is read."""
OLDEST, NEWEST = "2026-03-01-r1", "2026-03-03-r1"
BIG = 2**63 - 1
ODD_USERS = ["0B5A6C1E-7F3D-4E2A-9C11-2D3E4F5A6B7C", "2026-01-31", "a", "b"]
MOMENT = dt.datetime(2026, 3, 1, 12, 34, 56, 123456, dt.UTC)
ODD_IDS = {
    "uuid": ["0B5A6C1E-7F3D-4E2A-9C11-2D3E4F5A6B7C", "1B5A6C1E-7F3D-4E2A-9C11-2D3E4F5A6B7C"],
    "date": ["2026-01-31", "2026-02-28"],
    "zeros": ["007", "042"],
    "hashed": ["13835058055282163712", "9223372036854775808"],
}
"""Text ids that look like something else; a digest of each kind."""
EVENTS = (6, 7, 8)
"""Rows of interactions in its versions, committed at 00:00 UTC on the first days of March 2026."""
NOT_OFFERED, NOT_ASKED = "not offered", "-"


class Reader:
    """A reader of Delta tables in a folder, asked in the way that its users ask."""

    title: ClassVar[str]
    packages: ClassVar[tuple[str, ...]]

    def __init__(self, folder: Path) -> None:
        self.folder = folder

    def read(self, table: str, columns: Sequence[str], where: Sequence[Condition] = ()) -> list[tuple[Any, ...]]:
        """The rows that fit all conditions, as Python values."""
        raise NotImplementedError

    def type_name(self, table: str, column: str) -> str:
        raise NotImplementedError

    def greatest(self, table: str, column: str) -> Any:
        raise NotImplementedError

    def join_newest(self) -> int:
        """Rows of topk of the newest run, found by a join with runs."""
        raise NotImplementedError

    def count_events_at(self, moment: int | str | dt.datetime) -> int | str:
        """Rows of interactions at a version, or at a time."""
        raise NotImplementedError

    def digest_ids(self, file: str) -> list[Any] | str:
        """user_id of a digest, read with no further word."""
        return NOT_ASKED


def _sql_value(value: Any) -> str:
    return str(value) if isinstance(value, int | float) else f"'{value}'"


def _sql_where(where: Sequence[Condition]) -> str:
    texts = []
    for column, operator, value in where:
        if operator == "in":
            texts.append(f"{column} IN ({', '.join(map(_sql_value, value))})")
        elif operator == "or":
            texts.append("(" + " OR ".join(f"{column} = {_sql_value(each)}" for each in value) + ")")
        else:
            texts.append(f"{column} {operator} {_sql_value(value)}")
    return f" WHERE {' AND '.join(texts)}" if texts else ""


class SqlReader(Reader):
    """One that is asked in SQL."""

    def table(self, name: str) -> str:
        raise NotImplementedError

    def rows(self, query: str) -> list[tuple[Any, ...]]:
        raise NotImplementedError

    def read(self, table: str, columns: Sequence[str], where: Sequence[Condition] = ()) -> list[tuple[Any, ...]]:
        return self.rows(f"SELECT {', '.join(columns)} FROM {self.table(table)}{_sql_where(where)}")

    def greatest(self, table: str, column: str) -> Any:
        return self.rows(f"SELECT max({column}) FROM {self.table(table)}")[0][0]

    def join_newest(self) -> int:
        run = f"SELECT run_id FROM {self.table('runs')} WHERE status = 'PUBLISHED' ORDER BY published_at DESC LIMIT 1"
        return len(self.rows(f"WITH run AS ({run}) SELECT t.user_id FROM {self.table('topk')} t JOIN run ON t.run_id = run.run_id"))


class Spark(SqlReader):
    title, packages = "Spark", ("pyspark", "delta-spark")

    def __init__(self, folder: Path, session: Any) -> None:
        super().__init__(folder)
        self.session = session

    def table(self, name: str) -> str:
        return f"delta.`{self.folder / name}`"

    def rows(self, query: str) -> list[tuple[Any, ...]]:
        return [tuple(row) for row in self.session.sql(query).collect()]

    def type_name(self, table: str, column: str) -> str:
        return str(self.session.sql(f"SELECT {column} FROM {self.table(table)}").schema[0].dataType.simpleString())

    def count_events_at(self, moment: int | str | dt.datetime) -> int | str:
        if isinstance(moment, dt.datetime):
            return NOT_OFFERED
        clause = f"VERSION AS OF {moment}" if isinstance(moment, int) else f"TIMESTAMP AS OF '{moment}'"
        return len(self.rows(f"SELECT item_id FROM {self.table('interactions')} {clause}"))

    def digest_ids(self, file: str) -> list[Any] | str:
        frame = self.session.read.format("parquet" if file.endswith(".parquet") else "json").load(str(self.folder / file))
        return [row["user_id"] for row in frame.orderBy("user_id").collect()]


class DuckDb(SqlReader):
    title, packages = "DuckDB", ("duckdb", "duckdb-ext-delta")

    def __init__(self, folder: Path) -> None:
        from importlib.metadata import distribution

        import duckdb

        super().__init__(folder)
        self.connection = duckdb.connect()
        (file,) = [file for file in distribution("duckdb-ext-delta").files or [] if file.name == "delta.duckdb_extension"]
        self.connection.execute(f"LOAD '{file.locate()}'")
        self.connection.execute(f"SET TimeZone = '{ZONE}'")
        self.connection.execute("SET enable_external_file_cache = false")  # files of an earlier query would not be opened again

    def table(self, name: str) -> str:
        return f"delta_scan('{self.folder / name}')"

    def rows(self, query: str) -> list[tuple[Any, ...]]:
        return self.connection.execute(query).fetchall()

    def type_name(self, table: str, column: str) -> str:
        return str(self.connection.execute(f"DESCRIBE SELECT {column} FROM {self.table(table)}").fetchall()[0][1])

    def count_events_at(self, moment: int | str | dt.datetime) -> int | str:
        if isinstance(moment, dt.datetime):
            return NOT_OFFERED
        self.connection.execute(f"ATTACH IF NOT EXISTS '{self.folder / 'interactions'}' AS interactions (TYPE delta)")
        unit = f"VERSION => {moment}" if isinstance(moment, int) else f"TIMESTAMP => TIMESTAMPTZ '{moment}'"
        return len(self.rows(f"SELECT item_id FROM interactions AT ({unit})"))

    def digest_ids(self, file: str) -> list[Any] | str:
        call = "read_parquet" if file.endswith(".parquet") else "read_json"
        return [row[0] for row in self.rows(f"SELECT user_id FROM {call}('{self.folder / file}')")]


class QueryBuilder(SqlReader):
    title, packages = "deltalake, QueryBuilder", ("deltalake",)

    def table(self, name: str) -> str:
        return name

    def rows(self, query: str) -> list[tuple[Any, ...]]:
        return [tuple(row.values()) for row in self._execute(query).to_pylist()]

    def type_name(self, table: str, column: str) -> str:
        return str(self._execute(f"SELECT {column} FROM {table}").schema.field(0).type)

    def count_events_at(self, moment: int | str | dt.datetime) -> int | str:
        return len(self._execute("SELECT item_id FROM interactions", moment))

    def _execute(self, query: str, moment: Any = None) -> Any:
        import deltalake
        import pyarrow as pa

        builder = deltalake.QueryBuilder()
        for name in ("topk", "runs", "interactions", "items", "candidates", "user_embeddings", "exposures", "old_events"):
            table = deltalake.DeltaTable(str(self.folder / name))
            if moment is not None and name == "interactions":
                table.load_as_version(moment)
            builder.register(name, table)
        return pa.table(builder.execute(query).read_all())


class Arrow(Reader):
    title, packages = "deltalake, Arrow", ("deltalake", "pyarrow")

    def read(self, table: str, columns: Sequence[str], where: Sequence[Condition] = ()) -> list[tuple[Any, ...]]:
        return [tuple(row.values()) for row in self._table(table, columns, where).to_pylist()]

    def type_name(self, table: str, column: str) -> str:
        return str(self._table(table, [column]).schema.field(0).type)

    def greatest(self, table: str, column: str) -> Any:
        import pyarrow.compute as pc

        return pc.max(self._table(table, [column])[column]).as_py()

    def join_newest(self) -> int:
        runs = self._table("runs", ["run_id", "published_at"]).sort_by([("published_at", "descending")]).slice(0, 1)
        return len(self._table("topk", ["run_id", "user_id"]).join(runs, "run_id", join_type="inner"))

    def count_events_at(self, moment: int | str | dt.datetime) -> int | str:
        import deltalake

        table = deltalake.DeltaTable(str(self.folder / "interactions"))
        table.load_as_version(moment)
        return len(table.to_pyarrow_table())

    def _table(self, name: str, columns: Sequence[str], where: Sequence[Condition] = ()) -> Any:
        import deltalake
        import pyarrow.compute as pc

        dataset, condition = deltalake.DeltaTable(str(self.folder / name)).to_pyarrow_dataset(), None
        for column, operator, value in where:
            field = pc.field(column)
            if operator == "or":
                one = field == value[0]
                for each in value[1:]:
                    one = one | (field == each)
            else:
                one = {"=": field.__eq__, ">": field.__gt__, ">=": field.__ge__, "in": field.isin}[operator](value)
            condition = one if condition is None else condition & one
        return dataset.to_table(columns=list(columns), filter=condition)


class Pandas(Reader):
    """``DeltaTable.to_pandas``: conditions on partitions and keys as ``filters``, those on values in pandas."""

    title, packages = "pandas", ("pandas", "deltalake")

    def read(self, table: str, columns: Sequence[str], where: Sequence[Condition] = ()) -> list[tuple[Any, ...]]:
        pushed = [condition for condition in where if isinstance(condition[2], str | list) and condition[0] in ("run_id", "user_id")]
        filters: list[Any] = [(column, operator, value) for column, operator, value in pushed if operator != "or"]
        for column, operator, value in pushed:
            if operator == "or":
                filters = [[*filters, (column, "=", each)] for each in value]
        frame = self._frame(table, filters or None)
        for column, operator, value in where:
            if (column, operator, value) not in pushed:
                frame = frame[{"=": frame[column].eq, ">": frame[column].gt, ">=": frame[column].ge}[operator](value)]
        return list(frame[list(columns)].astype(object).itertuples(index=False, name=None))

    def type_name(self, table: str, column: str) -> str:
        series = self._frame(table)[column]
        if series.dtype != object:
            return str(series.dtype)
        value = series.dropna().iloc[0]
        inner = f" of {type(value[0]).__name__}" if hasattr(value, "__len__") and not isinstance(value, str) else ""
        return f"object: {type(value).__name__}{inner}"

    def greatest(self, table: str, column: str) -> Any:
        return self._frame(table)[column].max()

    def join_newest(self) -> int:
        run = self._frame("runs").sort_values("published_at").tail(1)[["run_id"]]
        return len(self._frame("topk").merge(run, on="run_id"))

    def count_events_at(self, moment: int | str | dt.datetime) -> int | str:
        import deltalake

        table = deltalake.DeltaTable(str(self.folder / "interactions"))
        table.load_as_version(moment)
        return len(table.to_pandas())

    def digest_ids(self, file: str) -> list[Any] | str:
        import pandas as pd  # type: ignore[import-untyped]

        path = self.folder / file
        frame = pd.read_parquet(path) if file.endswith(".parquet") else pd.read_json(path, lines=True)
        return list(frame["user_id"].tolist())

    def _frame(self, name: str, filters: Any = None) -> Any:
        import deltalake

        return deltalake.DeltaTable(str(self.folder / name)).to_pandas(filters=filters)


class Polars(Reader):
    title, packages = "Polars", ("polars", "deltalake")

    def read(self, table: str, columns: Sequence[str], where: Sequence[Condition] = ()) -> list[tuple[Any, ...]]:
        import polars as pl

        frame = self._scan(table)
        for column, operator, value in where:
            field = pl.col(column)
            if operator == "or":
                frame = frame.filter(pl.any_horizontal([field == each for each in value]))
            else:
                frame = frame.filter({"=": field.eq, ">": field.gt, ">=": field.ge, "in": field.is_in}[operator](value))
        return list(frame.select(columns).collect().rows())

    def type_name(self, table: str, column: str) -> str:
        return str(self._scan(table).select(column).collect().schema[column])

    def greatest(self, table: str, column: str) -> Any:
        import polars as pl

        return self._scan(table).select(pl.col(column).max()).collect().item()

    def join_newest(self) -> int:
        import polars as pl

        run = self._scan("runs").filter(pl.col("status") == "PUBLISHED").sort("published_at").last().select("run_id")
        return len(self._scan("topk").select("run_id", "user_id").join(run, on="run_id").collect())

    def count_events_at(self, moment: int | str | dt.datetime) -> int | str:
        import polars as pl

        return len(pl.scan_delta(str(self.folder / "interactions"), version=moment).collect())

    def digest_ids(self, file: str) -> list[Any] | str:
        import polars as pl

        path = self.folder / file
        return list((pl.read_parquet(path) if file.endswith(".parquet") else pl.read_ndjson(path))["user_id"].to_list())

    def _scan(self, name: str) -> Any:
        import polars as pl

        return pl.scan_delta(str(self.folder / name))


def probe(reader: Reader) -> dict[str, str]:
    """Fill a reader's column of the table: label -> what was seen."""
    return {label: _seen(cell, reader) for cells in SECTIONS.values() for label, cell in cells.items()}


def _seen(cell: Callable[[Reader], str], reader: Reader) -> str:
    try:
        return cell(reader)
    except Exception as error:  # whatever a reader raises is what the table is to say
        return f"error: {type(error).__name__}"


def _column(table: str, column: str, expected: list[Any], note: Callable[[Any], Any] = lambda value: value) -> Callable[[Reader], str]:
    """The type, and whether the distinct values are those that were written."""

    def cell(reader: Reader) -> str:
        values = {repr(note(value)) for (value,) in reader.read(table, [column])}
        exact = values == {repr(value) for value in expected}
        return f"{reader.type_name(table, column)}" + ("" if exact else f"; gives {', '.join(sorted(values))}")

    return cell


def _utc(value: Any) -> Any:
    """An instant, or None: Spark's Python gives the machine's wall clock, pandas NaT."""
    if not isinstance(value, dt.datetime) or value != value:
        return None
    return dt.datetime.fromtimestamp(value.timestamp(), dt.UTC).replace(microsecond=value.microsecond)


def _plain(value: Any) -> Any:
    """A nested value as lists and dicts of Python."""
    if hasattr(value, "asDict"):
        return {name: _plain(each) for name, each in value.asDict().items()}
    if isinstance(value, dict):
        return {name: _plain(each) for name, each in value.items()}
    if isinstance(value, tuple):
        return tuple(_plain(each) for each in value)
    if hasattr(value, "__len__") and not isinstance(value, str):
        return [_plain(each) for each in value]
    return value.item() if hasattr(value, "item") else value


def _pairs(value: Any) -> Any:
    """A map as a list of (key, value), however the reader spells it."""
    value = _plain(value)
    items = value.items() if isinstance(value, dict) else [each.values() if isinstance(each, dict) else each for each in value]
    return [tuple(item) for item in items]


def _old_timestamps(reader: Reader) -> str:
    """Spark's own default, which has no zone."""
    ((value,),) = reader.read("old_events", ["event_ts"])
    hours = (_utc(value) - MOMENT) / dt.timedelta(hours=1)
    return "right" if hours == 0 else f"wrong by {hours:+g} hours in a session of {ZONE}"


def _floats(reader: Reader) -> str:
    values = [value for (value,) in reader.read("interactions", ["weight"])]
    missing = sum(value is None for value in values)
    nan = sum(value is not None and math.isnan(value) for value in values)
    minus_zero = any(value == 0 and math.copysign(1, value) < 0 for value in values if value is not None)
    infinite = sum(value is not None and math.isinf(value) for value in values)
    notes = [] if (missing, nan) == (1, 1) else [f"null and NaN are the same ({missing} null, {nan} NaN)"]
    notes += ([] if minus_zero else ["no -0.0"]) + ([] if infinite == 2 else ["no infinity"])
    return "; ".join([reader.type_name("interactions", "weight"), *notes])


def _weights(operator: str) -> Callable[[Reader], str]:
    def cell(reader: Reader) -> str:
        values = [value for (value,) in reader.read("interactions", ["weight"], [("weight", operator, 0)])]
        return ", ".join(sorted("NaN" if math.isnan(value) else str(float(value)) for value in values)) or "no rows"

    return cell


def _greatest_weight(reader: Reader) -> str:
    return "NaN" if math.isnan(value := reader.greatest("interactions", "weight")) else str(value)


def _naive_filter(reader: Reader) -> str:
    """How a time without a zone is read in a condition; SQL and pandas get text, Arrow and Polars a datetime."""
    local = MOMENT.astimezone(dt.timezone(dt.timedelta(hours=9)))
    for name, moment in (("UTC", MOMENT), ("the session's zone", local)):
        wall = moment.replace(tzinfo=None)
        value = wall if isinstance(reader, Arrow | Polars) else wall.isoformat(" ")
        if len(reader.read("interactions", ["item_id"], [("event_ts", "=", value)])) == EVENTS[-1]:
            return f"read in {name}"
    return "no rows"


def _opened(work: Callable[[Reader], Any]) -> Callable[[Reader], str]:
    def cell(reader: Reader) -> str:
        folder = reader.folder / "topk"
        with watch_opened_files(folder) as opened:
            work(reader)
        return f"{len(opened)} of {len(list(folder.rglob('*.parquet')))}"

    return cell


def _opened_where(*where: Condition) -> Callable[[Reader], str]:
    return _opened(lambda reader: reader.read("topk", ["user_id", "rank"], where))


def _travel(moment: int | str | dt.datetime, names: dict[int, str]) -> Callable[[Reader], str]:
    """Read as of a version or a time; ``names`` says what each number of rows means."""

    def cell(reader: Reader) -> str:
        try:
            n = reader.count_events_at(moment)
        except Exception as error:
            return NOT_OFFERED if "only support at_clause with unit 'version'" in str(error) else f"error: {type(error).__name__}"
        return n if isinstance(n, str) else names.get(n, f"{n} rows")

    return cell


def _digest(kind: str, form: str) -> Callable[[Reader], str]:
    def cell(reader: Reader) -> str:
        ids = reader.digest_ids(f"digest-{kind}.{form}")
        if isinstance(ids, str):
            return ids
        if sorted(map(str, ids)) == sorted(ODD_IDS[kind]) and all(isinstance(each, str) for each in ids):
            return "as they are"
        return f"{type(ids[0]).__name__} {ids[0]}"

    return cell


def _digests_in_parquet(reader: Reader) -> str:
    return "; ".join(sorted({_digest(kind, "parquet")(reader) for kind in ODD_IDS}))


_TOKYO, _WALL, _LATER = "2026-03-02T06:00:00+09:00", "2026-03-02T06:00:00", "2026-03-09T00:00:00+00:00"
_RIGHT = {EVENTS[0]: "right"}
_GUESSED = {EVENTS[0]: "read in the session's zone", EVENTS[1]: "read in UTC"}
SECTIONS: dict[str, dict[str, Callable[[Reader], str]]] = {
    "Types": {
        "id, BIGINT (to 2^63 - 1)": _column("topk", "item_id", [BIG - 1, BIG - 2]),
        "id, STRING (like a UUID, a date)": _column("topk", "user_id", ODD_USERS),
        "TIMESTAMP (UTC, microseconds)": _column("interactions", "event_ts", [MOMENT], _utc),
        "TIMESTAMP as INT96 (Spark's own default)": _old_timestamps,
        "TIMESTAMP with nulls": _column("items", "first_seen_ts", [MOMENT, None], _utc),
        "DATE": _column("interactions", "event_date", [MOMENT.date()]),
        "FLOAT (NaN, infinity, -0.0, null)": _floats,
        "INT with nulls": _column("exposures", "ranker_position", [3, None]),
        "BIGINT with nulls (2^53 + 1)": _column("runs", "n_users", [2**53 + 1, None]),
        "BOOLEAN": _column("items", "is_available", [True]),
        "ARRAY<STRING>": _column("items", "categories", [["x", "y"]], _plain),
        "ARRAY<FLOAT>": _column("user_embeddings", "embedding", [[0.5, 0.25]], _plain),
        "ARRAY<STRUCT>": _column("candidates", "items", [[{"item_id": BIG, "score": 0.5}]], _plain),
        "MAP<STRING,STRING>": _column("items", "attributes", [[("year", "1994")]], _pairs),
        "partition column, DATE": _column("topk", "run_date", [dt.date(2026, 3, day) for day in (1, 2, 3)]),
        "partition column, STRING": _column("topk", "run_id", [f"2026-03-0{day}-r1" for day in (1, 2, 3)]),
        "a column that older files lack": _column("exposures", "candidates", ["retrieved", None]),
    },
    "Conditions and aggregates": {
        "weight > 0": _weights(">"),
        "weight >= 0": _weights(">="),
        "weight = 0": _weights("="),
        "greatest weight": _greatest_weight,
        "event_ts = a time without a zone": _naive_filter,
    },
    "Files of topk that a query opens": {
        "run_id = X": _opened_where(("run_id", "=", NEWEST)),
        "run_id IN (X, Y)": _opened_where(("run_id", "in", [OLDEST, NEWEST])),
        "run_id = X OR run_id = Y": _opened_where(("run_id", "or", [OLDEST, NEWEST])),
        "join with the newest run": _opened(lambda reader: reader.join_newest()),
        "run_id = X, user_id = U": _opened_where(("run_id", "=", NEWEST), ("user_id", "=", "a")),
        "run_id = X, user_id IN (U, V)": _opened_where(("run_id", "=", NEWEST), ("user_id", "in", ["a", "b"])),
    },
    "Time travel": {
        "as of a version": _travel(0, _RIGHT),
        "as of a time with a zone, as text": _travel(_TOKYO, _RIGHT),
        "as of a time with a zone, as datetime": _travel(dt.datetime.fromisoformat(_TOKYO), _RIGHT),
        "as of a time without a zone, as text": _travel(_WALL, _GUESSED),
        "as of a time without a zone, as datetime": _travel(dt.datetime.fromisoformat(_WALL), _GUESSED),
        "as of a time after the newest version": _travel(_LATER, {EVENTS[-1]: "the newest version"}),
    },
    "Digests": {
        "Parquet: the ids below": _digests_in_parquet,
        "JSON lines: `0B5A6C1E-7F3D-...`": _digest("uuid", "jsonl"),
        "JSON lines: `2026-01-31`": _digest("date", "jsonl"),
        "JSON lines: `007`": _digest("zeros", "jsonl"),
        "JSON lines: `13835058055282163712`": _digest("hashed", "jsonl"),
    },
}
"""The tables of the page, and their rows in order."""

READERS: dict[str, type[Reader]] = {"duckdb": DuckDb, "polars": Polars, "pandas": Pandas, "arrow": Arrow, "querybuilder": QueryBuilder}


def main(arguments: list[str]) -> int:
    if len(arguments) != 2 or arguments[0] not in READERS:
        print(f"error: usage: reader_probes.py {'|'.join(READERS)} FOLDER", file=sys.stderr)
        return 2
    reader = READERS[arguments[0]](Path(arguments[1]))
    print(json.dumps({"versions": versions_of(reader), "cells": probe(reader)}), flush=True)
    os._exit(0)  # threads of Arrow that deltalake's file system called back from may outlive the interpreter, which aborts (decision 0007)


def versions_of(reader: Reader) -> str:
    """The versions of the packages that a column was seen with."""
    return ", ".join(f"{name} {version(name)}" for name in reader.packages)


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
