"""Open the sources of an ingest request, kind by kind."""

from collections.abc import Sequence
from dataclasses import dataclass, field, replace

from pyspark.sql import DataFrame, SparkSession

from recsys_batch.errors import SourceError
from recsys_batch.sources.movielens import recognise_layout, unknown_layout
from recsys_batch.sources.source_format import SourceFormat
from recsys_batch.spark.ingest.exposure_source import read_exposure_files
from recsys_batch.spark.ingest.opened_source import OpenedSource, open_files, open_frame
from recsys_batch.spark.ingest.source_files import list_files


@dataclass(frozen=True)
class IngestRequest:
    """Source files of an ingest and how to read them.

    Attributes:
        sources: interactions: files, folders of files (daily ones, say) or globs, in their order.
        items, users: paths as ``sources``; later files win over earlier ones.
        holdout: share of the positives that goes to the holdout table; split: how they are chosen, see ``holdout``.
        max_rejected_share: of a kind's rows; more end the ingest before anything is written.
    """

    sources: tuple[str, ...] = ()
    format: SourceFormat = field(default_factory=SourceFormat)
    items: tuple[str, ...] = ()
    item_format: SourceFormat = field(default_factory=SourceFormat)
    users: tuple[str, ...] = ()
    user_format: SourceFormat = field(default_factory=SourceFormat)
    holdout: float = 0.0
    split: str = "auto"
    max_rejected_share: float = 0.5


@dataclass(frozen=True)
class OpenedSources:
    """Sources of a request by kind, surveyed; what the online side showed, and sentences about the files of its log."""

    by_kind: dict[str, list[OpenedSource]]
    exposures: DataFrame | None = None
    notes: Sequence[str] = ()


def open_sources(spark: SparkSession, request: IngestRequest) -> OpenedSources:
    """Open and survey all sources of a request.

    Raises SourceError where a path is missing, empty, of another format, or lacks a required column.
    """
    if request.format.kind == "movielens":
        folder = _require_folder(request, "finds items, users and columns in the folder itself")
        return _surveyed(OpenedSources(_open_movielens(spark, folder)))
    if request.format.kind == "exposures":
        if request.holdout:
            raise SourceError("--format exposures does not go with --holdout: feedback answers what was shown, keep it together")
        folder = _require_folder(request, "reads what the online side logs, whose columns are known")
        logged = read_exposure_files(spark, folder)
        how = replace(request.format, kind="delta")
        kinds = {} if logged.feedback is None else {"interactions": [open_frame(spark, "interactions", folder, how, 0, logged.feedback)]}
        return _surveyed(OpenedSources(kinds, logged.exposures, logged.notes))
    requested = {
        "interactions": (request.sources, request.format),
        "items": (request.items, request.item_format),
        "users": (request.users, request.user_format),
    }
    return _surveyed(OpenedSources({kind: _open_paths(spark, kind, paths, how) for kind, (paths, how) in requested.items() if paths}))


def _surveyed(opened: OpenedSources) -> OpenedSources:
    for sources in opened.by_kind.values():
        for source in sources:
            source.take_survey()
    return opened


def _open_paths(spark: SparkSession, kind: str, paths: Sequence[str], how: SourceFormat) -> list[OpenedSource]:
    opened: list[OpenedSource] = []
    for path in paths:
        opened.append(open_files(spark, kind, path, how, sum(source.n_files for source in opened)))
    return opened


def _open_movielens(spark: SparkSession, folder: str) -> dict[str, list[OpenedSource]]:
    by_name = {file.name: file for file in list_files(spark, folder)}
    layout = recognise_layout(sorted(by_name))
    if layout is None:
        raise unknown_layout(folder, sorted(by_name))
    return {kind: [OpenedSource(spark, kind, by_name[name].location, how, 0, [by_name[name]])] for kind, (name, how) in layout.items()}


def _require_folder(request: IngestRequest, why: str) -> str:
    """Check the request of a format that reads a whole folder; return the folder."""
    kind = request.format.kind
    if len(request.sources) != 1:
        raise SourceError(f"--format {kind} reads a folder: pass it as --source, once")
    if request.items or request.users or any(how.columns for how in (request.format, request.item_format, request.user_format)):
        raise SourceError(
            f"--format {kind} {why}: drop --items, --users and the column options, or read the files with --format csv or parquet"
        )
    return request.sources[0]
