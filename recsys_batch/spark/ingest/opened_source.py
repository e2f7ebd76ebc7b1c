"""A source of one kind that was opened: its files as tasks for executors, or a table that Spark reads; surveyed, parsed, spelt as JSON."""

import json
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from zipfile import BadZipFile

import numpy as np
import pyarrow as pa
from delta.tables import DeltaTable
from pyspark.sql import DataFrame, SparkSession
from pyspark.sql import functions as F

from recsys_batch.errors import SourceError
from recsys_batch.schemas import spark_ddl
from recsys_batch.sources.column_mapping import check_columns
from recsys_batch.sources.file_tasks import SourceFile, list_members, split_tasks
from recsys_batch.sources.source_format import SourceFormat
from recsys_batch.sources.survey import Survey, resolve_types
from recsys_batch.sources.typed_rows import FILE, POSITION, ROW, ParseSettings
from recsys_batch.spark.executors import source_tasks
from recsys_batch.spark.executors.functions import BatchFunction
from recsys_batch.spark.ingest.source_files import group_tasks, is_readable, list_files, read_groups, translate_spark_errors
from recsys_batch.spark.tables import parse_identifier

_DRIVER_BYTES = 32 * 2**20
_OPTIONS = {"interactions": "--columns", "items": "--item-columns", "users": "--user-columns"}


@dataclass
class OpenedSource:
    """Files, or rows, of one kind.

    Attributes:
        first_number: number of its first file: files of one kind are numbered in the order of their sources.
        frame: rows with ``_row`` and ``_position`` that Spark reads; None where executors read ``files``.
        survey, clocks: found by ``take_survey``.
    """

    spark: SparkSession
    kind: str
    path: str
    how: SourceFormat
    first_number: int
    files: Sequence[SourceFile] = ()
    frame: DataFrame | None = None
    survey: Survey = field(default_factory=Survey)
    clocks: dict[str, str] = field(default_factory=dict)

    @property
    def n_files(self) -> int:
        """Number of its files; a table counts as one."""
        return len(self.files) if self.frame is None else 1

    @property
    def file_names(self) -> dict[int, str]:
        """Names of its files by their numbers."""
        names = [file.name for file in self.files] if self.frame is None else [self.path]
        return {self.first_number + i: name for i, name in enumerate(names)}

    def take_survey(self) -> None:
        """Read all files once for their columns, id types and clocks.

        Raises SourceError where a file cannot be read, has no rows, lacks a column, or differs from others in a type.
        """
        with translate_spark_errors(self.spark, self.path):
            if self.frame is not None:
                function = source_tasks.make_frame_surveyor(self.kind, self.how)
                parts = self.frame.drop(ROW, POSITION).mapInArrow(function, spark_ddl(source_tasks.SURVEY_SCHEMA)).toArrow()
            else:
                groups = self._groups()
                parts = self._run(groups, source_tasks.make_surveyor(groups, self.kind, self.how), source_tasks.SURVEY_SCHEMA)
        rows = parts.to_pylist()
        errors = sorted((row[FILE] or 0, row["error"]) for row in rows if row["error"] is not None)
        if errors:
            raise SourceError(errors[0][1] if self.path.endswith(errors[0][1].split()[0]) else f"{self.path}: {errors[0][1]}")
        for row in rows:
            self.survey.add(Survey.from_json(json.loads(row["survey"])))
        columns = self.survey.columns
        if not columns and self.frame is not None:
            columns = [name for name in self.frame.columns if name not in (ROW, POSITION)]
        if not columns:
            raise SourceError(f"{self.path} is empty: expected a header line with column names, found no line at all")
        check_columns(columns, self.path, self.kind, self.how.columns, _OPTIONS[self.kind])
        resolve_types(self.survey, self.file_names)
        if self.survey.n_rows == 0:
            raise SourceError(f"{self.path} has no rows: expected at least one below the header")
        self.clocks = self.survey.choose_clocks(self.how)

    def parse(self, settings: ParseSettings) -> DataFrame:
        """Parse all rows, a job that runs when its rows are asked for; the columns are those of ``located_schema``."""
        ddl = spark_ddl(source_tasks.located_schema(self.kind, settings.ids))
        if self.frame is not None:
            return self.frame.mapInArrow(source_tasks.make_frame_parser(settings, self.first_number), ddl)
        groups = self._groups()
        return read_groups(self.spark, groups).mapInArrow(self._make_parser(groups, settings), ddl)

    def parse_on_driver(self, settings: ParseSettings) -> pa.Table:
        """Parse all rows of a small source."""
        groups = self._groups()
        return self._run(groups, self._make_parser(groups, settings), source_tasks.located_schema(self.kind, settings.ids))

    def spell_rows(self, numbers: Sequence[int], wanted: Mapping[int, np.ndarray] | None) -> DataFrame | None:
        """Read rows of the files with these numbers again, as JSON: ``_file``, ``_position``, ``_row``; None where it has none of them.

        Args:
            wanted: number of a file -> positions of its rows; None: all of them.
        """
        groups = self._groups(set(numbers))
        if self.frame is not None or not groups.groups:
            return None
        function: BatchFunction = source_tasks.make_text_reader(groups, self.kind, self.how, wanted)
        return read_groups(self.spark, groups).mapInArrow(function, spark_ddl(source_tasks.TEXT_SCHEMA))

    def _groups(self, numbers: set[int] | None = None) -> source_tasks.TaskGroups:
        splittable = self.how.is_text and not self.how.multiline and not self.how.encoding.lower().startswith(("utf-16", "utf-32", "utf16"))
        tasks = [
            task
            for i, file in enumerate(self.files, start=self.first_number)
            if numbers is None or i in numbers
            for task in split_tasks(i, file, self.path, splittable=splittable)
        ]
        return group_tasks(self.spark, tasks)

    @property
    def is_small(self) -> bool:
        """Whether the driver reads the files faster than executors begin to; compressed ones hold some eight times their bytes."""
        n_bytes = sum(file.n_bytes * (8 if file.compression else 1) for file in self.files)
        return self.frame is None and is_readable(self.files[0].location) and n_bytes <= _DRIVER_BYTES

    def _make_parser(self, groups: source_tasks.TaskGroups, settings: ParseSettings) -> BatchFunction:
        return source_tasks.make_parser(groups, settings, tuple(self.survey.columns) if self.how.kind == "jsonl" else None)

    def _run(self, groups: source_tasks.TaskGroups, function: BatchFunction, schema: pa.Schema) -> pa.Table:
        """Apply a function to all tasks, on the driver or on executors, and collect what it yields."""
        if not self.is_small:
            return read_groups(self.spark, groups).mapInArrow(function, spark_ddl(schema)).toArrow()
        numbers = pa.record_batch([pa.array(range(len(groups.groups)))], names=["id"])
        return pa.Table.from_batches(function(iter([numbers])), schema=schema)


def open_files(spark: SparkSession, kind: str, path: str, how: SourceFormat, first_number: int) -> OpenedSource:
    """Open the files of a path. Raises SourceError where there are none, or Parquet files belong to a Delta table."""
    if how.kind == "delta":
        return _open_delta(spark, kind, path, how, first_number)
    files = list_files(spark, path)
    if how.kind == "parquet" and DeltaTable.isDeltaTable(spark, path):
        # The folder of a Delta table also has files of deleted or replaced rows.
        raise SourceError(f"{path} is a Delta table: pass --format delta")
    try:
        members = [member for file in files for member in list_members(file)]
    except (BadZipFile, OSError) as error:
        raise SourceError(f"{path} holds a .zip that cannot be read: {error}") from None
    return OpenedSource(spark, kind, path, how, first_number, members)


def open_frame(spark: SparkSession, kind: str, path: str, how: SourceFormat, first_number: int, df: DataFrame) -> OpenedSource:
    """Open rows that Spark reads."""
    row = F.to_json(F.struct(*(F.col("`" + name.replace("`", "``") + "`") for name in df.columns)))
    frame = df.withColumn(ROW, row).withColumn(POSITION, F.monotonically_increasing_id())
    return OpenedSource(spark, kind, path, how, first_number, frame=frame)


def _open_delta(spark: SparkSession, kind: str, path: str, how: SourceFormat, first_number: int) -> OpenedSource:
    if "/" in path and not DeltaTable.isDeltaTable(spark, path):
        list_files(spark, path)
        raise SourceError(f"{path} is not a Delta table, it has no _delta_log: pass the --format that its files have")
    return open_frame(spark, kind, path, how, first_number, parse_identifier(spark, path))
