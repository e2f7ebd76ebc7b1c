"""Segment files of the online side's log, opened: read by executors, their torn ends counted."""

from dataclasses import dataclass

from pyspark.sql import DataFrame, SparkSession

from recsys_batch.dataset.log_segments import SUFFIX
from recsys_batch.schemas import spark_ddl
from recsys_batch.sources.file_tasks import FileTask, SourceFile
from recsys_batch.spark.executors import segment_tasks
from recsys_batch.spark.executors.source_tasks import TaskGroups
from recsys_batch.spark.ingest.source_files import group_tasks, read_groups, translate_spark_errors


@dataclass(frozen=True)
class OpenedSegments:
    """Segment files of one kind of rows."""

    spark: SparkSession
    path: str
    kind: str
    tasks: TaskGroups

    def read(self) -> DataFrame:
        """Read all rows, a job that runs when they are asked for."""
        schema = segment_tasks.segment_schema(self.kind)
        return read_groups(self.spark, self.tasks).mapInArrow(segment_tasks.make_segment_reader(self.tasks, self.kind), spark_ddl(schema))

    def describe_torn(self) -> list[str]:
        """Say how many files end in a torn frame. Raises SourceError where one of the files is no segment."""
        with translate_spark_errors(self.spark, self.path):
            counter = segment_tasks.make_torn_counter(self.tasks)
            torn = (
                read_groups(self.spark, self.tasks)
                .mapInArrow(counter, spark_ddl(segment_tasks.TORN_SCHEMA))
                .toArrow()["torn_bytes"]
                .to_pylist()
            )
        if not torn:
            return []
        ends = f"{len(torn):,} files of {self.kind} end in rows that were not finished ({sum(torn):,} bytes)"
        return [f"{ends}: a server was killed, or is writing them"]


def open_segments(spark: SparkSession, path: str, files: list[SourceFile], kind: str) -> OpenedSegments | None:
    """Open the segments of a kind among files; None where there are none."""
    tasks = [FileTask(i, file, path) for i, file in enumerate(files) if file.name.startswith(f"{kind}-") and file.name.endswith(SUFFIX)]
    if not tasks:
        return None
    return OpenedSegments(spark, path, kind, group_tasks(spark, tasks))
