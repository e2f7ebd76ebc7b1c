"""Layouts of MovieLens, recognised by the files in a folder, as source formats with a transform of their rows."""

import re
from collections.abc import Callable, Mapping, Sequence
from dataclasses import replace

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc

from recsys_batch.errors import SourceError
from recsys_batch.sources.raw_rows import RawRows
from recsys_batch.sources.source_format import SourceFormat
from recsys_batch.sources.values import parse_decimals

_LATIN_1 = "iso-8859-1"
_GENRES_TO_HORROR = "unknown|Action|Adventure|Animation|Children's|Comedy|Crime|Documentary|Drama|Fantasy|Film-Noir|Horror"
_GENRES_100K = f"{_GENRES_TO_HORROR}|Musical|Mystery|Romance|Sci-Fi|Thriller|War|Western".split("|")
_PLACEHOLDER_GENRES = ("(no genres listed)", "unknown")
_YEAR = r"\s*\((?P<year>\d{4})\)\s*$"
# ml-1m has bands instead of ages and names each by its youngest year (1, 18, 25, ...), which falls into the same band here.
_AGE_BANDS = ((55, "55+"), (45, "45-54"), (35, "35-44"), (25, "25-34"), (18, "18-24"), (0, "under 18"))
_RATINGS = {"user_id": "user_id", "item_id": "item_id", "weight": "rating", "event_ts": "timestamp"}
_CSV_RATINGS = {"user_id": "userId", "item_id": "movieId", "weight": "rating", "event_ts": "timestamp"}
_EVENT_TYPE = "event_type"


def recognise_layout(names: Sequence[str]) -> dict[str, tuple[str, SourceFormat]] | None:
    """Recognise a MovieLens folder by the names of its files: kind -> (name, format); None where it is no known layout."""
    for patterns, formats in _LAYOUTS.items():
        matches = [sorted(name for name in names if re.fullmatch(pattern, name)) for pattern in patterns]
        if all(matches):
            kinds = ("interactions", "items", "users")
            return {kind: (found[0], how) for kind, found, how in zip(kinds, matches, formats, strict=False)}
    return None


def unknown_layout(folder: str, names: Sequence[str]) -> SourceError:
    """Make the error for a folder that is no known layout."""
    looked_for = "; ".join(" + ".join(_shown(pattern) for pattern in patterns) for patterns in _LAYOUTS)
    return SourceError(f"{folder} is no MovieLens layout: looked for {looked_for}; found {', '.join(names[:10]) or 'nothing'}")


def _rate(raw: RawRows) -> RawRows:
    """Name the type of every event."""
    return replace(raw, columns={**raw.columns, _EVENT_TYPE: pa.repeat("rating", len(raw))})


def _strip_header_types(raw: RawRows) -> RawRows:
    return replace(raw, columns={name.partition(":")[0]: column for name, column in raw.columns.items()})


def _items(title: str, genres: str, separator: str) -> Callable[[RawRows], RawRows]:
    def transform(raw: RawRows) -> RawRows:
        raw = _strip_header_types(raw)
        item_id = raw.columns.get("item_id", raw.columns.get("movieId"))
        if item_id is None or title not in raw.columns or _genres_name(raw, genres) not in raw.columns:
            return raw
        extra = {"release_year": raw.columns["release_year"]} if "release_year" in raw.columns else {}
        lists = pc.split_pattern(raw.columns[_genres_name(raw, genres)], separator)
        return _movies(raw, item_id, raw.columns[title], lists, extra)

    return transform


def _genres_name(raw: RawRows, name: str) -> str:
    """Name the column of genres: some atomic files call it class."""
    return "class" if name == "genre" and "class" in raw.columns else name


def _items_100k(raw: RawRows) -> RawRows:
    flags = np.column_stack([np.asarray(pc.fill_null(pc.equal(raw.columns[genre], "1"), False)) for genre in _GENRES_100K])
    genres = np.nonzero(flags)[1]
    offsets = pa.array(np.concatenate([[0], np.cumsum(flags.sum(axis=1))]).astype(np.int32))
    lists = pa.ListArray.from_arrays(offsets, pa.array(_GENRES_100K).take(pa.array(genres)))
    return _movies(raw, raw.columns["item_id"], raw.columns["title"], lists, {})


def _movies(raw: RawRows, item_id: pa.Array, title: pa.Array, genres: pa.Array, extra: Mapping[str, pa.Array]) -> RawRows:
    """Make items; the year at the end of a title becomes the attribute release_year, placeholder genres are dropped."""
    year = pc.struct_field(pc.extract_regex(title, f"^.*{_YEAR}"), "year")
    names = pc.replace_substring_regex(title, r"\s*\(\d{4}\)\s*$", "")
    kept = [
        None if genre_list is None else [genre for genre in genre_list if genre not in _PLACEHOLDER_GENRES]
        for genre_list in genres.to_pylist()
    ]
    columns = {"item_id": item_id, "title": names, "categories": pa.array(kept, pa.list_(pa.string())), "release_year": year, **extra}
    return replace(raw, columns=columns)


def _users(raw: RawRows) -> RawRows:
    """Make users, with the age band as segment."""
    raw = _strip_header_types(raw)
    if "age" not in raw.columns:
        return raw
    years = np.asarray(pc.fill_null(parse_decimals(raw.columns["age"]), -1.0))
    bands = [next((name for low, name in _AGE_BANDS if year >= low), None) for year in years.tolist()]
    others = {name: raw.columns[name] for name in ("gender", "occupation", "zip_code") if name in raw.columns}
    return replace(raw, columns={"user_id": raw.columns["user_id"], "segment": pa.array(bands, pa.string()), **others})


TRANSFORMS: Mapping[str, Callable[[RawRows], RawRows]] = {
    "ratings": _rate,
    "atomic ratings": lambda raw: _rate(_strip_header_types(raw)),
    "movies by |": _items("title", "genres", "|"),
    "atomic movies": _items("movie_title", "genre", " "),
    "movies of ml-100k": _items_100k,
    "users": _users,
}
"""Transforms of rows by the name that a source format has for it."""

_100K = SourceFormat(quote="", encoding=_LATIN_1, header=False)
_HEAD_100K = ("item_id", "title", "released", "video_released", "url")
_LAYOUTS: dict[tuple[str, ...], tuple[SourceFormat, ...]] = {
    (r".*\.inter", r".*\.item", r".*\.user"): (
        SourceFormat(delimiter="\t", quote="", columns=_RATINGS, transform="atomic ratings"),
        SourceFormat(delimiter="\t", quote="", transform="atomic movies"),
        SourceFormat(delimiter="\t", quote="", transform="users"),
    ),
    (r"u\.data", r"u\.item", r"u\.user"): (
        replace(_100K, delimiter="\t", names=("user_id", "item_id", "rating", "timestamp"), columns=_RATINGS, transform="ratings"),
        replace(_100K, delimiter="|", names=(*_HEAD_100K, *_GENRES_100K), transform="movies of ml-100k"),
        replace(_100K, delimiter="|", names=("user_id", "age", "gender", "occupation", "zip_code"), transform="users"),
    ),
    (r"ratings\.dat", r"movies\.dat", r"users\.dat"): (
        replace(_100K, delimiter="::", names=("user_id", "item_id", "rating", "timestamp"), columns=_RATINGS, transform="ratings"),
        replace(_100K, delimiter="::", names=("item_id", "title", "genres"), transform="movies by |"),
        replace(_100K, delimiter="::", names=("user_id", "gender", "age", "occupation", "zip_code"), transform="users"),
    ),
    (r"ratings\.csv", r"movies\.csv"): (
        SourceFormat(columns=_CSV_RATINGS, transform="ratings"),
        SourceFormat(transform="movies by |"),
    ),
}


def _shown(pattern: str) -> str:
    return pattern.replace("\\", "").replace(".*", "*")
