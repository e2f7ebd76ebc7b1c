"""Counts of runs that include erased users: popularity, and how many users a night knew. Corrected before the rows go, each user once.

A pointer that names corrected counts also says by tombstones for whom they are: an erasure that was killed subtracts nobody twice.
"""

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any
from urllib.parse import unquote

import pyarrow as pa
import pyarrow.compute as pc

from recsys_batch.dataset.popularity import COUNTS_FILE_NAME, count_users, negate_counts, sum_counts
from recsys_batch.erasure.data_files import read_user_rows
from recsys_batch.erasure.erased_users import ErasedUsers
from recsys_batch.erasure.run_artefacts import RunArtefacts
from recsys_batch.registry.bundle import RANKER_FILE
from recsys_batch.schemas import IdTypes
from recsys_batch.storage.artifacts import get_pointer, has_pointer, set_pointer
from recsys_batch.storage.filesystems import file_sizes, join, read_bytes, read_parquet
from recsys_batch.tables.delta_log import open_delta_table
from recsys_batch.tables.run_manifest import Run
from recsys_batch.tables.tombstones import ERASED, Tombstones, read_erasure


@dataclass(frozen=True)
class HeldRows:
    """Files of tables that hold rows of erased users: paths by table, and the tables' folders."""

    folders: Mapping[str, str]
    paths: Mapping[str, Mapping[str, int]]

    def read(self, name: str, users: ErasedUsers, columns: list[str], version: int | None = None) -> pa.Table | None:
        """Read these users' rows of a table, newest or at a version; None where there are none.

        Raises FileNotFoundError where the version can no longer be read.
        """
        if name not in self.folders or not self.paths.get(name):
            return None
        root = self.folders[name]
        try:
            listed = pa.table(open_delta_table(root, version).get_add_actions())["path"].to_pylist()
        except Exception as error:  # deltalake has many for a log that no longer reaches back
            raise FileNotFoundError(f"{root} cannot be read at version {version}: {error}") from None
        known = [unquote(path) for path in listed]
        if len(file_sizes(root, known)) < len(known):
            raise FileNotFoundError(f"files of {root} at version {version} were vacuumed")
        tables = [read_user_rows(join(root, path), users, columns) for path in known if path in self.paths[name]]
        return pa.concat_tables(tables) if tables else None


@dataclass(frozen=True)
class RunCounts:
    """Corrects what runs count of erased users."""

    artefacts: RunArtefacts
    held: HeldRows
    tombstones: Tombstones
    min_weight: float

    def correct(self, states: Mapping[str, Run], users: ErasedUsers) -> None:
        """Correct every run that has pointers."""
        known_by_run = self._known_users(users)
        for run_id in self.artefacts.run_ids():
            known = known_by_run.get(run_id, [])
            if known:
                self._note(run_id, {"users": sorted(self.tombstones.hash(user).hex() for user in known)})
            if run_id in states and has_pointer(self.artefacts.root, run_id, "popularity"):
                self._correct_popularity(states[run_id], users)

    def _known_users(self, users: ErasedUsers) -> dict[str, list[Any]]:
        """Find the users whom each run has a row of candidates for: everybody whom it knew has one."""
        found: dict[str, list[Any]] = {}
        for path in self.held.paths.get("candidates", {}):
            run_id = next((part.removeprefix("run_id=") for part in path.split("/") if part.startswith("run_id=")), "")
            rows = read_user_rows(join(self.held.folders["candidates"], path), users, ["user_id"])
            found.setdefault(unquote(run_id), []).extend(rows["user_id"].to_pylist())
        return found

    def _note(self, run_id: str, noted: dict[str, Any]) -> None:
        root = self.artefacts.root
        before = read_erasure(root, run_id)
        after = before | noted | {"users": sorted({*before.get("users", []), *noted.get("users", [])})}
        if after != before:
            set_pointer(root, run_id, ERASED, after)

    def _correct_popularity(self, run: Run, users: ErasedUsers) -> None:
        root, run_id = self.artefacts.root, run.run_id
        pointer = get_pointer(root, run_id, "popularity")
        counted = set(pointer.get("erased", []))
        left = ErasedUsers(frozenset(text for text in users.ids if self.tombstones.hash(text).hex() not in counted))
        try:
            gone = self._count(run, left) if left.ids else None
        except FileNotFoundError:
            self._note(run_id, {"popularity": "could not be corrected"})
            return
        if gone is None or gone.num_rows == 0:
            return
        ids = IdTypes("STRING", "BIGINT" if pa.types.is_integer(gone["item_id"].type) else "STRING")  # counts have items alone
        counts = sum_counts([read_parquet(join(root, "popularity", pointer["folder"], COUNTS_FILE_NAME)), negate_counts(gone)], ids)
        folder = self.artefacts.put("popularity", COUNTS_FILE_NAME, counts)
        marks = sorted({*counted, *(self.tombstones.hash(text).hex() for text in left.ids)})
        set_pointer(root, run_id, "popularity", pointer | {"folder": folder, "erased": marks})
        if self._ranker_reads_popularity(run_id):
            self._note(run_id, {"popularity": "is read by its ranker"})

    def _count(self, run: Run, users: ErasedUsers) -> pa.Table | None:
        """Count what these users add to a run's counts."""
        versions = run.input_versions
        events = self.held.read("interactions", users, ["user_id", "item_id", "weight"], versions.get("interactions"))
        if events is None:
            return None
        positives = events.filter(pc.greater(events["weight"], self.min_weight)).sort_by("user_id")
        segments = self.held.read("users", users, ["user_id", "segment"], versions["users"]) if "users" in versions else None
        if segments is None and "users" in versions:
            segments = positives.slice(0, 0).select(["user_id"]).append_column("segment", pa.array([], pa.string()))
        return count_users(positives.select(["user_id", "item_id"]), segments, IdTypes.from_schema(positives.schema))

    def _ranker_reads_popularity(self, run_id: str) -> bool:
        """Say whether a run's model was brought, with a ranker to which popularity is tonight's, not that of its training."""
        root = self.artefacts.root
        folder = join(root, "bundles", str(get_pointer(root, run_id, "bundle")["folder"]))
        bundle = read_bytes(join(folder, "bundle.json")).decode()
        return '"embeddings"' in bundle and RANKER_FILE in bundle
