"""Lines of JSON: nested values by paths, a row per event where events are listed, and what is no object kept as a malformed line."""

from __future__ import annotations

import json
from collections.abc import Callable
from typing import Any

import pytest

from recsys_batch.sources.file_tasks import FileTask
from recsys_batch.sources.json_rows import read_json_rows
from recsys_batch.sources.reading import read_rows
from recsys_batch.sources.source_format import SourceFormat

Rows = Callable[..., list[dict[str, Any]]]
Task = Callable[..., FileTask]


def reading(**columns: str) -> SourceFormat:
    return SourceFormat(kind="jsonl", columns=columns)


def test_nested_values_are_named_by_paths(task: Task, rows: Rows) -> None:
    lines = '{"user": {"id": 7}, "a.b": "x", "when": null}\n{"user": {}, "a.b": 5.0}\n'
    assert rows(task(lines), reading(user_id="user.id", item_id="a.b", event_ts="when")) == [
        {"user.id": "7", "a.b": "x"},
        {"a.b": "5.0"},
    ]


def test_a_path_through_a_list_gives_a_row_per_element(task: Task, rows: Rows) -> None:
    sessions = ['{"session": 1, "events": [{"aid": 5, "ts": 10}, {"aid": 6, "ts": 11}]}', '{"session": 2, "events": []}']
    lines = "\n".join([*sessions, '{"session": 3, "events": [{"aid": 7}]}'])
    assert rows(task(lines), reading(user_id="session", item_id="events.aid", event_ts="events.ts")) == [
        {"session": "1", "events.aid": "5", "events.ts": "10"},
        {"session": "1", "events.aid": "6", "events.ts": "11"},
        {"session": "3", "events.aid": "7"},
    ]
    parallel = '{"u": "a", "items": [1, 2], "times": [8, 9]}\n{"u": "b", "items": [1, 2], "times": [8]}\n'
    assert rows(task(parallel), reading(user_id="u", item_id="items", event_ts="times")) == [
        {"u": "a", "items": "1", "times": "8"},
        {"u": "a", "items": "2", "times": "9"},
        {"_line": '{"u": "b", "items": [1, 2], "times": [8]}'},
    ]


def test_python_dicts_are_read_and_anything_else_is_malformed(task: Task, rows: Rows) -> None:
    lines = ["{u'user_id': u'x', 'item_id': True}", "[1]", "{broken", '{"user_id": "\\ud800", "item_id": "y"}', '{"user_id": "\\u00e9"}']
    assert rows(task("\n".join(lines)), reading()) == [
        {"user_id": "x", "item_id": "true"},
        {"_line": "[1]"},
        {"_line": "{broken"},
        {"_line": lines[3]},
        {"user_id": "é"},
    ]


def test_lists_of_items_are_values_and_other_keys_their_attributes(task: Task, rows: Rows) -> None:
    line = '{"asin": "B0", "categories": ["a", "b"], "details": {"x": 1}, "store": {"name": "S"}}'
    (row,) = rows(task(line), reading(item_id="asin", title="store.name"), "items")
    assert row == {"asin": "B0", "categories": '["a", "b"]', "store.name": "S", "details": '{"x": 1}'}


def test_rows_of_one_line_have_places_of_their_own_and_spell_what_they_are(task: Task) -> None:
    line = '{"u":1,"e":[{"i":5},{"i":6}]}'
    how = reading(user_id="u", item_id="e.i")
    (raw,) = read_rows(task(f'{line}\n{line}\n{{"u":2,"i":3}}\n'), "interactions", how)
    assert len(set(raw.positions.tolist())) == len(raw) == 5
    assert [json.loads(text) for text in raw.to_json().to_pylist()][:2] == [{"u": "1", "e.i": "5"}, {"u": "1", "e.i": "6"}]
    assert json.loads(raw.to_json()[4].as_py()) == {"u": 2, "i": 3}


@pytest.mark.parametrize("line", ["{" * 5000, '{"a":' * 3000 + "1" + "}" * 3000])
def test_deep_nesting_is_a_malformed_line(task: Task, line: str) -> None:
    (raw,) = read_json_rows(task(line), SourceFormat(kind="jsonl"), ["a"], explode=True)
    assert raw.malformed.to_pylist() in ([line], [None])
