"""Entries of a Delta log rewritten for files that erased users are no longer in: paths, sizes, statistics, and notes on files."""

import json
from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any
from urllib.parse import quote, unquote

import pyarrow as pa
import pyarrow.compute as pc

from recsys_batch.erasure.data_files import Replacement, format_bound
from recsys_batch.erasure.erased_users import ErasedUsers


def names_user(action: Mapping[str, Any], users: ErasedUsers) -> bool:
    """Say whether an action names a user: in a file's bounds, a commit's condition, or its notes on files."""
    stats = [action[kind]["stats"] for kind in ("add", "remove") if kind in action and action[kind].get("stats")]
    info = action.get("commitInfo", {})
    described = [bound for one in _described_files(_parse_metadata(info)) for bound in (one.get("first"), one.get("last"))]
    return any(are_bounds_named(text, users) for text in stats) or any(map(users.is_one, described)) or _is_condition_on(info, users)


def are_bounds_named(stats: str, users: ErasedUsers) -> bool:
    """Say whether a file's statistics have a user as a bound, or a raw row about one."""
    parsed = json.loads(stats)
    bounds = [parsed.get(key) or {} for key in ("minValues", "maxValues")]
    return any(users.is_one(one.get("user_id")) or users.is_in_text(one.get("row") or "") for one in bounds)


def _is_condition_on(info: Mapping[str, Any], users: ErasedUsers) -> bool:
    condition = str((info.get("operationParameters") or {}).get("predicate", ""))
    return "user_id" in condition and users.is_in_text(condition)


def _parse_metadata(info: Mapping[str, Any]) -> Any:
    try:
        return json.loads(info.get("userMetadata") or "{}")
    except ValueError:  # others write what they like
        return {}


def _described_files(metadata: Any) -> list[dict[str, Any]]:
    files = metadata.get("files") if isinstance(metadata, dict) else None
    return [one for written in files.values() for one in written if isinstance(one, dict)] if isinstance(files, dict) else []


@dataclass(frozen=True)
class LogRewriter:
    """Rewrites actions: of files that are replaced, and bounds that name a user where the file itself is gone."""

    replacements: Mapping[str, Replacement]
    described: Mapping[str, Replacement]
    users: ErasedUsers
    removed: set[str] = field(default_factory=set)

    def rewrite(self, action: dict[str, Any]) -> list[dict[str, Any]]:
        """Give the actions that stand in the place of one."""
        if "add" in action:
            return self._rewrite_add(action)
        if "remove" in action:
            return self._rewrite_remove(action)
        if "commitInfo" in action:
            return [{"commitInfo": self._rewrite_info(action["commitInfo"])}]
        return [action]

    def _rewrite_add(self, action: dict[str, Any]) -> list[dict[str, Any]]:
        add = action["add"]
        new = self.replacements.get(unquote(add["path"]))
        if new is not None:
            if new.path is None:
                return []
            new_add = {"path": _encoded(add["path"], new.path), "size": new.n_bytes, "stats": new_stats(add.get("stats"), new)}
            return [{"add": add | new_add}]
        return [{"add": add | {"stats": self.without_names(add["stats"])}}] if add.get("stats") else [action]

    def _rewrite_remove(self, action: dict[str, Any]) -> list[dict[str, Any]]:
        remove_action = action["remove"]
        new = self.replacements.get(unquote(remove_action["path"]))
        plain = {key: value for key, value in remove_action.items() if key != "stats"}
        if new is None:
            stats = remove_action.get("stats")
            return [action if not stats or self.without_names(stats) == stats else {"remove": plain}]
        both = [{"remove": plain}]
        if new.path is not None and new.path not in self.removed:
            both.append({"remove": plain | {"path": _encoded(plain["path"], new.path), "size": new.n_bytes}})
        return both

    def without_names(self, stats: str) -> str:
        """Leave only the number of rows where the bounds of a file that is gone name a user."""
        return json.dumps({"numRecords": json.loads(stats).get("numRecords", 0)}) if are_bounds_named(stats, self.users) else stats

    def _rewrite_info(self, info: dict[str, Any]) -> dict[str, Any]:
        metadata = _parse_metadata(info)
        if not _described_files(metadata):
            is_named = _is_condition_on(info, self.users)
            return info | {"operationParameters": info["operationParameters"] | {"predicate": "erased"}} if is_named else info
        known, files = {**self.replacements, **self.described}, dict[str, list[dict[str, Any]]]()
        for name, written in metadata["files"].items():
            files[name] = [new for one in written if (new := describe_again(one, known, self.users)) is not None]
        return info | {"userMetadata": json.dumps(metadata | {"files": files}, sort_keys=True)}


def describe_again(described: dict[str, Any], replacements: Mapping[str, Replacement], users: ErasedUsers) -> dict[str, Any] | None:
    """Describe the file that stands in the place of one, with the fields of ``DataFile``; None where no row is left."""
    new = replacements.get(str(described["path"]))
    if new is None:
        # The file is gone, or was replaced by an erasure that was killed: who reads it takes bounds for what they are.
        return None if any(users.is_one(described.get(bound)) for bound in ("first", "last")) else described
    if new.path is None:
        return None
    bounds = {"first": new.minima.get("user_id"), "last": new.maxima.get("user_id")}
    return described | {"path": new.path, "n_bytes": new.n_bytes, "n_rows": new.n_rows} | bounds


def new_stats(old: str | None, new: Replacement) -> str:
    """Write a new file's statistics, of the columns of which the old one's had some."""
    before: dict[str, Any] = json.loads(old) if old else {}
    stats = {key: value for key, value in before.items() if key not in ("minValues", "maxValues", "nullCount")} | {"numRecords": new.n_rows}
    for key, bounds, is_greatest in (("minValues", new.minima, False), ("maxValues", new.maxima, True)):
        if key in before:
            stats[key] = {name: format_bound(bounds[name], is_greatest=is_greatest) for name in before[key] if name in bounds}
    if "nullCount" in before:
        stats["nullCount"] = {name: n if isinstance(n, dict) else new.nulls.get(name, n) for name, n in before["nullCount"].items()}
    return json.dumps(stats)


def _encoded(old: str, new: str) -> str:
    """Write a path as the log does, in the folder of the old one."""
    folder, slash, _ = old.rpartition("/")
    return f"{folder}{slash}{quote(new.rpartition('/')[2])}"


def rewrite_checkpoint(table: pa.Table, rewriter: LogRewriter) -> pa.Table:
    """Give a checkpoint's rows with new paths, sizes and statistics; rows that add nothing any more are left out."""
    table = table.combine_chunks()
    for kind in ("add", "remove"):
        if kind not in table.schema.names:
            continue
        column = table[kind].combine_chunks()
        names = [column.type.field(number).name for number in range(column.type.num_fields)]
        values = {name: column.field(name).to_pylist() for name in ("path", "size", "stats") if name in names}
        is_there = column.is_valid().to_pylist()
        kept, changed = [True] * len(column), set[int]()
        for row in (row for row, there in enumerate(is_there) if there):
            before = {name: values[name][row] for name in values}
            after = rewriter.rewrite({kind: before})
            if not after:
                kept[row] = False
            elif (first := {"stats": None} | after[0][kind]) != {"stats": None} | before:
                changed.add(row)
                for name in values:
                    values[name][row] = first.get(name)
        if changed:
            arrays = [_new_child(column, name, values, changed) for name in names]
            fields = [column.type.field(number) for number in range(column.type.num_fields)]
            new = pa.StructArray.from_arrays(arrays, fields=fields, mask=column.is_null())
            table = table.set_column(table.schema.get_field_index(kind), table.schema.field(kind), new)
        if not all(kept):
            table = table.filter(pa.array(kept)).combine_chunks()
    return table


def _new_child(column: pa.Array, name: str, values: Mapping[str, list[Any]], changed: set[int]) -> pa.Array:
    child = column.field(name)
    if name in values:
        return pa.array(values[name], child.type)
    if name == "stats_parsed":  # bounds a second time: who finds none reads the others
        keep = pa.array([row not in changed for row in range(len(column))])
        return pc.if_else(keep, child, pa.scalar(None, child.type))
    return child
