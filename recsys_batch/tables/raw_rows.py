"""Raw rows as ``rejected`` and ingest keep them: the values in one that may be a user's id."""

import json
import re
from collections.abc import Iterator
from typing import Any

_SEPARATORS = re.compile(r"[\s,;|\"']+|::")
_USER_KEY = "user_id"


def iterate_values(row: str) -> Iterator[str]:
    """Iterate over the values of a raw row that may be an id, as text: of JSON with a user_id that alone, else every value.

    Text that is no JSON, as a malformed line is, is split where CSV files have their delimiters.
    """
    yield row
    try:
        parsed = json.loads(row)
    except ValueError:
        yield from filter(None, _SEPARATORS.split(row))
        return
    yield from _iterate_json(parsed)


def _iterate_json(value: Any) -> Iterator[str]:
    if isinstance(value, dict):
        # An item may have the number of a user: where it is said which one is the user, the others are not.
        yield from _iterate_json(value[_USER_KEY] if value.get(_USER_KEY) is not None else list(value.values()))
    elif isinstance(value, list):
        for inner in value:
            yield from _iterate_json(inner)
    elif isinstance(value, str):
        yield value
        yield value.strip()
        if value.lstrip().startswith(("{", "[")) or _SEPARATORS.search(value):
            yield from iterate_values(value)
    elif value is not None and not isinstance(value, bool):
        yield str(value)
