"""The layouts that MovieLens comes in, told apart by the files in the folder."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

from pyspark.sql import Column, DataFrame, SparkSession
from pyspark.sql import functions as F

from recsys_batch.errors import SourceError
from recsys_batch.spark.ingest.csv_source import read_csv
from recsys_batch.spark.ingest.raw_source import CORRUPT, RAW_ROW, RawSource, attributes_of, column_named, resolve_columns, with_raw_row

_LATIN = "ISO-8859-1"
_GENRES_100K = [
    "unknown",
    "Action",
    "Adventure",
    "Animation",
    "Children's",
    "Comedy",
    "Crime",
    "Documentary",
    "Drama",
    "Fantasy",
    "Film-Noir",
    "Horror",
    "Musical",
    "Mystery",
    "Romance",
    "Sci-Fi",
    "Thriller",
    "War",
    "Western",
]
_NO_GENRES = ("(no genres listed)", "unknown")
_YEAR = r"\s*\((\d{4})\)\s*$"
# ml-1m has bands instead of ages and names each by its youngest year (1, 18, 25, ...), which falls into the same band here.
_AGE_BANDS = ((55, "55+"), (45, "45-54"), (35, "35-44"), (25, "25-34"), (18, "18-24"), (0, "under 18"))
_ATOMIC_INTERACTIONS = ("user_id", "item_id", "rating", "timestamp")
_DEMOGRAPHICS = ("gender", "occupation", "zip_code")


def read_movielens(spark: SparkSession, folder: str) -> RawSource:
    """Read whichever layout the folder holds.

    Raises:
        SourceError: no such folder, or no layout that is known.
    """
    if not Path(folder).is_dir():
        raise SourceError(f"{folder} is not a folder; --format movielens reads a folder such as data/ml-100k or ml-25m")
    for files, read in _LAYOUTS.items():
        found = [sorted(Path(folder).glob(pattern)) for pattern in files]
        if all(found):
            return read(spark, *(str(paths[0]) for paths in found))
    looked_for = "; ".join(" + ".join(files) for files in _LAYOUTS)
    there = ", ".join(sorted(path.name for path in Path(folder).iterdir())[:10]) or "nothing"
    raise SourceError(f"{folder} is no MovieLens layout: looked for {looked_for}; found {there}")


def _atomic(spark: SparkSession, inter: str, item: str, user: str) -> RawSource:
    """Tab-separated with typed headers (user_id:token), as recommendation libraries exchange data sets."""
    events, items, users = (_without_types(read_csv(spark, path, "\t", quoted=False)) for path in (inter, item, user))
    resolve_columns(events, inter, _ATOMIC_INTERACTIONS, _ATOMIC_INTERACTIONS)
    genres = "class" if "class" in items.columns else "genre"
    resolve_columns(items, item, ("item_id", "movie_title", genres), ("item_id", "movie_title", genres))
    resolve_columns(users, user, ("user_id", "age"), ("user_id", "age"))
    year = {"release_year": F.col("release_year")} if "release_year" in items.columns else {}
    return RawSource(
        _interactions(events, *_ATOMIC_INTERACTIONS),
        _items(items, "item_id", "movie_title", F.split(genres, " "), year),
        _users(users),
    )


def _ml_100k(spark: SparkSession, data: str, item: str, user: str) -> RawSource:
    events = read_csv(spark, data, "\t", names=_ATOMIC_INTERACTIONS, encoding=_LATIN, quoted=False)
    head = ["item_id", "title", "released", "video_released", "url"]
    items = read_csv(spark, item, "|", names=[*head, *_GENRES_100K], encoding=_LATIN, quoted=False)
    flags = F.array_compact(F.array(*(F.when(column_named(genre) == "1", F.lit(genre)) for genre in _GENRES_100K)))
    users = read_csv(spark, user, "|", names=["user_id", "age", *_DEMOGRAPHICS], encoding=_LATIN, quoted=False)
    return RawSource(_interactions(events, *_ATOMIC_INTERACTIONS), _items(items, "item_id", "title", flags), _users(users))


def _ml_1m(spark: SparkSession, ratings: str, movies: str, users: str) -> RawSource:
    events = read_csv(spark, ratings, "::", names=_ATOMIC_INTERACTIONS, encoding=_LATIN, quoted=False)
    items = read_csv(spark, movies, "::", names=["item_id", "title", "genres"], encoding=_LATIN, quoted=False)
    people = read_csv(spark, users, "::", names=["user_id", "gender", "age", "occupation", "zip_code"], encoding=_LATIN, quoted=False)
    return RawSource(
        _interactions(events, *_ATOMIC_INTERACTIONS), _items(items, "item_id", "title", F.split("genres", r"\|")), _users(people)
    )


def _csv(spark: SparkSession, ratings: str, movies: str) -> RawSource:
    """ml-latest-small, ml-20m, ml-25m, ml-32m."""
    events, items = read_csv(spark, ratings, ","), read_csv(spark, movies, ",")
    columns = ("userId", "movieId", "rating", "timestamp")
    resolve_columns(events, ratings, columns, columns)
    resolve_columns(items, movies, ("movieId", "title", "genres"), ("movieId", "title", "genres"))
    return RawSource(_interactions(events, *columns), _items(items, "movieId", "title", F.split("genres", r"\|")))


_LAYOUTS: dict[tuple[str, ...], Callable[..., RawSource]] = {
    ("*.inter", "*.item", "*.user"): _atomic,
    ("u.data", "u.item", "u.user"): _ml_100k,
    ("ratings.dat", "movies.dat", "users.dat"): _ml_1m,
    ("ratings.csv", "movies.csv"): _csv,
}


def _interactions(df: DataFrame, user: str, item: str, rating: str, time: str) -> DataFrame:
    named = {
        "user_id": F.col(user),
        "item_id": F.col(item),
        "event_ts": F.col(time),
        "event_type": F.lit("rating"),
        "weight": F.col(rating),
    }
    return _select(df, named)


def _items(df: DataFrame, item_id: str, title: str, categories: Column, attributes: dict[str, Column] | None = None) -> DataFrame:
    """The year at a title's end moves to the attribute release_year; genres that say there are none leave no category."""
    year = {"release_year": F.regexp_extract(title, _YEAR, 1), **(attributes or {})}
    genres = F.filter(categories, lambda genre: ~genre.isin(*_NO_GENRES))
    name = F.regexp_replace(title, _YEAR, "")
    return _select(df, {"item_id": F.col(item_id), "title": name, "categories": genres, "attributes": attributes_of(year)})


def _users(df: DataFrame) -> DataFrame:
    """segment is the age band."""
    years = F.col("age").try_cast("int")
    band = F.coalesce(*(F.when(years >= low, F.lit(name)) for low, name in _AGE_BANDS))
    attributes = attributes_of({name: F.col(name) for name in _DEMOGRAPHICS if name in df.columns})
    return _select(df, {"user_id": F.col("user_id"), "segment": band, "attributes": attributes})


def _select(df: DataFrame, named: dict[str, Column]) -> DataFrame:
    return with_raw_row(df).select(*(column.alias(name) for name, column in named.items()), RAW_ROW, CORRUPT)


def _without_types(df: DataFrame) -> DataFrame:
    return df.toDF(*(name.partition(":")[0] for name in df.columns))
