"""Artefacts of runs that hold users beside the tables: gathered events, changed users, counts, registered vectors, live records.

Every part can be killed and done again: a pointer is replaced whole, after the file that it names and before the old one goes.
"""

import json
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from typing import Any

import pyarrow as pa
import pyarrow.compute as pc
import pyarrow.parquet as pq

from recsys_batch.erasure.data_files import (
    Replacement,
    find_rows,
    list_parquet,
    name_replacement,
    replace_in_place,
    write_without,
)
from recsys_batch.erasure.erased_users import ErasedUsers
from recsys_batch.erasure.log_rewriter import describe_again
from recsys_batch.storage.artifacts import get_pointer, has_pointer, put_folder, remove_folder, run_folder, set_pointer
from recsys_batch.storage.filesystems import join, list_entries, read_bytes, read_parquet, remove

USER_FILES = ("gathered", "changed", "embeddings", "live")
"""Kinds of artefacts with a user_id in their Parquet files."""
_CHANGED_FILE = "changed.parquet"


@dataclass(frozen=True)
class RunArtefacts:
    """The artefact folder of a warehouse.

    Attributes:
        scratch: a local folder for what goes into a store.
    """

    root: str
    scratch: str

    def run_ids(self) -> list[str]:
        """List the runs that have pointers."""
        return [entry.name for entry in list_entries(join(self.root, "runs")) if entry.is_folder]

    def find(self, users: ErasedUsers) -> dict[str, int]:
        """Count rows of these users, by kind of artefact, and pointers that name one."""
        folders = {kind: join(self.root, kind) for kind in USER_FILES}
        found = {kind: sum(find_rows(folder, list_parquet(folder), users).values()) for kind, folder in folders.items()}
        found["pointers"] = sum(self._is_named(location, users) for location in self._pointer_locations())
        return found

    def erase_gathered(self, users: ErasedUsers) -> None:
        """Remove users from what runs gathered, and from the pointers that say where it is."""
        for run_id in {*self.run_ids(), *(entry.name for entry in list_entries(join(self.root, "gathered")))}:
            held, replacements = dict[str, int](), dict[str, Replacement]()
            for entry in list_entries(join(self.root, "gathered", run_id)):
                rows = find_rows(entry.location, list_parquet(entry.location), users)
                held |= {join(entry.location, path): n for path, n in rows.items()}
                replacements |= {path: write_without(entry.location, path, users, name_replacement(path, users)) for path in rows}
            if has_pointer(self.root, run_id, "gathered"):
                pointer = get_pointer(self.root, run_id, "gathered")
                rewritten = {name: _describe_all(value, replacements, users) for name, value in pointer.items() if name != "cuts"}
                rewritten["cuts"] = [cut for cut in pointer["cuts"] if not users.is_one(cut)]
                if rewritten != pointer:
                    set_pointer(self.root, run_id, "gathered", rewritten)
            for location in held:
                remove(location)

    def erase_changed(self, users: ErasedUsers) -> None:
        """Remove users from the lists of those whom incremental runs computed again."""
        folder = join(self.root, "changed")
        old = {path.partition("/")[0] for path in find_rows(folder, list_parquet(folder), users)}
        for run_id in self.run_ids() if old else ():
            pointer = get_pointer(self.root, run_id, "base") if has_pointer(self.root, run_id, "base") else {}
            if pointer.get("changed") in old:
                rows = read_parquet(join(folder, pointer["changed"], _CHANGED_FILE))
                rows = rows.filter(pc.invert(users.mark_rows(rows)))
                name = self.put("changed", _CHANGED_FILE, rows)
                set_pointer(self.root, run_id, "base", pointer | {"changed": name})
        for name in old:
            remove_folder(join(folder, name))

    def erase_vectors(self, users: ErasedUsers) -> None:
        """Remove users from embeddings that were registered."""
        folder = join(self.root, "embeddings")
        for path in find_rows(folder, list_parquet(folder), users):
            replace_in_place(folder, path, users)

    def replace_live_records(self, users: ErasedUsers) -> tuple[dict[str, Replacement], list[str]]:
        """Write the files of the stream's records again; (what stands in the place of each, by name; the old ones' locations)."""
        replacements, old = dict[str, Replacement](), []
        for run in list_entries(join(self.root, "live")):
            for table in list_entries(run.location):
                for path in find_rows(table.location, list_parquet(table.location), users):
                    replacements[path] = write_without(table.location, path, users, name_replacement(path, users))
                    old.append(join(table.location, path))
        return replacements, old

    def put(self, kind: str, file_name: str, rows: pa.Table) -> str:
        """Write a table as an artefact of one file; its folder's name."""
        return put_folder(self.root, kind, lambda target: pq.write_table(rows, target / file_name), self.scratch).rpartition("/")[2]

    def _pointer_locations(self) -> Iterator[str]:
        for run_id in self.run_ids():
            yield from (entry.location for entry in list_entries(run_folder(self.root, run_id)) if entry.name.endswith(".json"))

    @staticmethod
    def _is_named(location: str, users: ErasedUsers) -> bool:
        if not location.endswith("/gathered.json"):
            return False
        pointer = json.loads(read_bytes(location))
        files = [one for name, value in pointer.items() if name != "cuts" for one in value or ()]
        return any(map(users.is_one, pointer["cuts"])) or any(users.is_one(one.get(bound)) for one in files for bound in ("first", "last"))


def _describe_all(
    files: list[dict[str, Any]] | None, replacements: Mapping[str, Replacement], users: ErasedUsers
) -> list[dict[str, Any]] | None:
    if files is None:
        return None
    return [new for one in files if (new := describe_again(one, replacements, users)) is not None]
