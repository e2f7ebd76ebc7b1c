"""Read the published layouts of MovieLens, recognised by the files in the folder."""

from collections.abc import Callable
from pathlib import Path

from pyspark.sql import Column, DataFrame, SparkSession
from pyspark.sql import functions as F

from recsys_batch.errors import SourceError
from recsys_batch.spark.ingest.csv_source import read_csv
from recsys_batch.spark.ingest.raw_source import CORRUPT, RAW_ROW, RawSource, add_raw_row, build_attributes, quoted_column, resolve_columns

_LATIN_1 = "ISO-8859-1"
_GENRES_TO_HORROR = "unknown|Action|Adventure|Animation|Children's|Comedy|Crime|Documentary|Drama|Fantasy|Film-Noir|Horror"
_GENRES_100K = f"{_GENRES_TO_HORROR}|Musical|Mystery|Romance|Sci-Fi|Thriller|War|Western".split("|")
_PLACEHOLDER_GENRES = ("(no genres listed)", "unknown")
_YEAR = r"\s*\((\d{4})\)\s*$"
# ml-1m has bands instead of ages and names each by its youngest year (1, 18, 25, ...), which falls into the same band here.
_AGE_BANDS = ((55, "55+"), (45, "45-54"), (35, "35-44"), (25, "25-34"), (18, "18-24"), (0, "under 18"))
_ATOMIC_INTERACTIONS = ("user_id", "item_id", "rating", "timestamp")
_DEMOGRAPHICS = ("gender", "occupation", "zip_code")


def read_movielens(spark: SparkSession, folder: str) -> RawSource:
    """Read a MovieLens folder of any known layout. Raises SourceError where the folder does not exist or has no known layout."""
    if not Path(folder).is_dir():
        raise SourceError(f"{folder} is not a folder; --format movielens reads a folder such as data/ml-100k or ml-25m")
    for patterns, read in _LAYOUTS.items():
        matches = [sorted(Path(folder).glob(pattern)) for pattern in patterns]
        if all(matches):
            return read(spark, *(str(paths[0]) for paths in matches))
    looked_for = "; ".join(" + ".join(patterns) for patterns in _LAYOUTS)
    present = ", ".join(sorted(path.name for path in Path(folder).iterdir())[:10]) or "nothing"
    raise SourceError(f"{folder} is no MovieLens layout: looked for {looked_for}; found {present}")


def _read_atomic(spark: SparkSession, inter: str, item: str, user: str) -> RawSource:
    """Read atomic files: tab-separated with typed headers (user_id:token), a format of recommendation libraries."""
    events, items, users = (_strip_header_types(read_csv(spark, path, "\t", quoted=False)) for path in (inter, item, user))
    resolve_columns(events, inter, _ATOMIC_INTERACTIONS, _ATOMIC_INTERACTIONS)
    genres = "class" if "class" in items.columns else "genre"
    resolve_columns(items, item, ("item_id", "movie_title", genres), ("item_id", "movie_title", genres))
    resolve_columns(users, user, ("user_id", "age"), ("user_id", "age"))
    year = {"release_year": F.col("release_year")} if "release_year" in items.columns else {}
    return RawSource(
        _select_interactions(events, *_ATOMIC_INTERACTIONS),
        _select_items(items, "item_id", "movie_title", F.split(genres, " "), year),
        _select_users(users),
    )


def _read_ml_100k(spark: SparkSession, data: str, item: str, user: str) -> RawSource:
    events = read_csv(spark, data, "\t", names=_ATOMIC_INTERACTIONS, encoding=_LATIN_1, quoted=False)
    head = ["item_id", "title", "released", "video_released", "url"]
    items = read_csv(spark, item, "|", names=[*head, *_GENRES_100K], encoding=_LATIN_1, quoted=False)
    flags = F.array_compact(F.array(*(F.when(quoted_column(genre) == "1", F.lit(genre)) for genre in _GENRES_100K)))
    users = read_csv(spark, user, "|", names=["user_id", "age", *_DEMOGRAPHICS], encoding=_LATIN_1, quoted=False)
    return RawSource(
        _select_interactions(events, *_ATOMIC_INTERACTIONS), _select_items(items, "item_id", "title", flags), _select_users(users)
    )


def _read_ml_1m(spark: SparkSession, ratings: str, movies: str, users: str) -> RawSource:
    events = read_csv(spark, ratings, "::", names=_ATOMIC_INTERACTIONS, encoding=_LATIN_1, quoted=False)
    items = read_csv(spark, movies, "::", names=["item_id", "title", "genres"], encoding=_LATIN_1, quoted=False)
    raw_users = read_csv(spark, users, "::", names=["user_id", "gender", "age", "occupation", "zip_code"], encoding=_LATIN_1, quoted=False)
    return RawSource(
        _select_interactions(events, *_ATOMIC_INTERACTIONS),
        _select_items(items, "item_id", "title", F.split("genres", r"\|")),
        _select_users(raw_users),
    )


def _read_ml_csv(spark: SparkSession, ratings: str, movies: str) -> RawSource:
    """Read ml-latest-small, ml-20m, ml-25m or ml-32m."""
    events, items = read_csv(spark, ratings, ","), read_csv(spark, movies, ",")
    columns = ("userId", "movieId", "rating", "timestamp")
    resolve_columns(events, ratings, columns, columns)
    resolve_columns(items, movies, ("movieId", "title", "genres"), ("movieId", "title", "genres"))
    return RawSource(_select_interactions(events, *columns), _select_items(items, "movieId", "title", F.split("genres", r"\|")))


_LAYOUTS: dict[tuple[str, ...], Callable[..., RawSource]] = {
    ("*.inter", "*.item", "*.user"): _read_atomic,
    ("u.data", "u.item", "u.user"): _read_ml_100k,
    ("ratings.dat", "movies.dat", "users.dat"): _read_ml_1m,
    ("ratings.csv", "movies.csv"): _read_ml_csv,
}


def _select_interactions(df: DataFrame, user: str, item: str, rating: str, time: str) -> DataFrame:
    columns = {"user_id": F.col(user), "item_id": F.col(item), "event_ts": F.col(time), "weight": F.col(rating)}
    return _select(df, {**columns, "event_type": F.lit("rating")})


def _select_items(df: DataFrame, item_id: str, title: str, categories: Column, attributes: dict[str, Column] | None = None) -> DataFrame:
    """Select items; the year at the end of a title becomes the attribute release_year, placeholder genres are dropped."""
    year = {"release_year": F.regexp_extract(title, _YEAR, 1), **(attributes or {})}
    genres = F.filter(categories, lambda genre: ~genre.isin(*_PLACEHOLDER_GENRES))
    name = F.regexp_replace(title, _YEAR, "")
    return _select(df, {"item_id": F.col(item_id), "title": name, "categories": genres, "attributes": build_attributes(year)})


def _select_users(df: DataFrame) -> DataFrame:
    """Select users, with the age band as segment."""
    years = F.col("age").try_cast("int")
    band = F.coalesce(*(F.when(years >= low, F.lit(name)) for low, name in _AGE_BANDS))
    attributes = build_attributes({name: F.col(name) for name in _DEMOGRAPHICS if name in df.columns})
    return _select(df, {"user_id": F.col("user_id"), "segment": band, "attributes": attributes})


def _select(df: DataFrame, columns: dict[str, Column]) -> DataFrame:
    return add_raw_row(df).select(*(column.alias(name) for name, column in columns.items()), RAW_ROW, CORRUPT)


def _strip_header_types(df: DataFrame) -> DataFrame:
    return df.toDF(*(name.partition(":")[0] for name in df.columns))
