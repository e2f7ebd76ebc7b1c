"""The layouts that MovieLens comes in, told apart by the files in the folder."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

from pyspark.sql import Column, DataFrame, SparkSession
from pyspark.sql import functions as F

from recsys_batch.errors import SourceError
from recsys_batch.spark.sources import RawSource, attributes_of, read_csv, with_raw_row

_LATIN = "ISO-8859-1"
_GENRES_100K = (
    "unknown Action Adventure Animation Children's Comedy Crime Documentary Drama Fantasy Film-Noir Horror Musical Mystery "
    "Romance Sci-Fi Thriller War Western"
).split()
_YEAR = r"\s*\((\d{4})\)\s*$"
_AGE_BANDS = ((55, "55+"), (45, "45-54"), (35, "35-44"), (25, "25-34"), (18, "18-24"), (0, "under 18"))


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
    events, items, users = (_without_types(read_csv(spark, path, "\t")) for path in (inter, item, user))
    return RawSource(
        _interactions(events, "user_id", "item_id", "rating", "timestamp"),
        _items(items, F.col("item_id"), F.col("movie_title"), F.split("class", " "), {"release_year": F.col("release_year")}),
        _users(users, F.col("user_id"), F.col("age"), {name: F.col(name) for name in ("gender", "occupation", "zip_code")}),
    )


def _ml_100k(spark: SparkSession, data: str, item: str, user: str) -> RawSource:
    events = read_csv(spark, data, "\t", names=["user_id", "item_id", "rating", "timestamp"], encoding=_LATIN)
    head = ["item_id", "title", "released", "video", "url"]
    items = read_csv(spark, item, "|", names=[*head, *_GENRES_100K], encoding=_LATIN)
    flags = F.array_compact(F.array(*(F.when(F.col(f"`{genre}`") == "1", F.lit(genre)) for genre in _GENRES_100K)))
    users = read_csv(spark, user, "|", names=["user_id", "age", "gender", "occupation", "zip_code"], encoding=_LATIN)
    return RawSource(
        _interactions(events, "user_id", "item_id", "rating", "timestamp"),
        _items(items, F.col("item_id"), F.col("title"), flags, {}),
        _users(users, F.col("user_id"), F.col("age"), {name: F.col(name) for name in ("gender", "occupation", "zip_code")}),
    )


def _ml_1m(spark: SparkSession, ratings: str, movies: str, users: str) -> RawSource:
    events = read_csv(spark, ratings, "::", names=["user_id", "item_id", "rating", "timestamp"], encoding=_LATIN)
    items = read_csv(spark, movies, "::", names=["item_id", "title", "genres"], encoding=_LATIN)
    people = read_csv(spark, users, "::", names=["user_id", "gender", "age", "occupation", "zip_code"], encoding=_LATIN)
    return RawSource(
        _interactions(events, "user_id", "item_id", "rating", "timestamp"),
        _items(items, F.col("item_id"), F.col("title"), F.split("genres", r"\|"), {}),
        _users(people, F.col("user_id"), F.col("age"), {name: F.col(name) for name in ("gender", "occupation", "zip_code")}),
    )


def _csv(spark: SparkSession, ratings: str, movies: str) -> RawSource:
    """ml-latest-small, ml-20m, ml-25m, ml-32m."""
    items = read_csv(spark, movies, ",")
    genres = F.filter(F.split("genres", r"\|"), lambda genre: genre != "(no genres listed)")
    return RawSource(
        _interactions(read_csv(spark, ratings, ","), "userId", "movieId", "rating", "timestamp"),
        _items(items, F.col("movieId"), F.col("title"), genres, {}),
    )


_LAYOUTS: dict[tuple[str, ...], Callable[..., RawSource]] = {
    ("*.inter", "*.item", "*.user"): _atomic,
    ("u.data", "u.item", "u.user"): _ml_100k,
    ("ratings.dat", "movies.dat", "users.dat"): _ml_1m,
    ("ratings.csv", "movies.csv"): _csv,
}


def _interactions(df: DataFrame, user: str, item: str, rating: str, time: str) -> DataFrame:
    named = {"user_id": F.col(user), "item_id": F.col(item), "event_ts": F.col(time), "event_type": F.lit("rating"), "weight": F.col(rating)}
    return _select(df, named)


def _items(df: DataFrame, item_id: Column, title: Column, categories: Column, attributes: dict[str, Column]) -> DataFrame:
    """The year at a title's end moves to the attribute release_year."""
    year = F.nullif(F.regexp_extract(title, _YEAR, 1), F.lit(""))
    attributes = {"release_year": year, **attributes}
    name = F.regexp_replace(title, _YEAR, "")
    return _select(df, {"item_id": item_id, "title": name, "categories": categories, "attributes": attributes_of(attributes)})


def _users(df: DataFrame, user_id: Column, age: Column, attributes: dict[str, Column]) -> DataFrame:
    years = age.try_cast("int")
    band = F.coalesce(*(F.when(years >= low, F.lit(name)) for low, name in _AGE_BANDS))
    return _select(df, {"user_id": user_id, "segment": band, "attributes": attributes_of(attributes)})


def _select(df: DataFrame, named: dict[str, Column]) -> DataFrame:
    return with_raw_row(df).select(*(column.alias(name) for name, column in named.items()), "_row", "_corrupt")


def _without_types(df: DataFrame) -> DataFrame:
    return df.toDF(*(name.partition(":")[0] for name in df.columns))
