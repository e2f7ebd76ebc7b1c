"""The models of the snapshot in use: its ranker as such, and whole recommendations.

Made by server/worker.py and grpc_server.py; no wire is known here.
"""

import datetime as dt
from collections.abc import Awaitable, Callable, Hashable, Mapping, Sequence
from contextlib import AbstractContextManager, nullcontext
from itertools import islice

import numpy as np

from recsys_batch.errors import quote
from recsys_batch.online.oip.model_api import InvalidRequest, ModelUnknown, OipModel, Tensors, TensorSpec, split_rows
from recsys_batch.online.ranking.ladder import MAX_RANK_BATCH, RankInput, rank_many
from recsys_batch.online.ranking.latency import LatencyTracker
from recsys_batch.online.ranking.rank_query import RankQuery
from recsys_batch.online.ranking.rank_result import RankResult
from recsys_batch.online.serving.freshness import FreshnessPolicy
from recsys_batch.online.serving.loaded_snapshot import FoundRecord, LoadedSnapshot
from recsys_batch.online.serving.snapshot_manager import SnapshotManager
from recsys_batch.online.snapshot.reader import Snapshot
from recsys_batch.online.snapshot.user_record import UserRecord

Id = int | str
RANKER, RECOMMEND = "ranker", "recommend"
STABLE, CANARY = "stable", "canary"
_DEFAULT_K = 10
_MAX_USERS = 1000
_RECORDS = "records"  # an input that clients do not send: what ``prepare`` found in Redis, object array of FoundRecord
_MAX_RUN_PAIRS = 12_800
"""Candidates that the ranker scores in 4 ms; others are answered before the next ones."""


class RankerModel(OipModel):
    """Scores candidates by ``ranker.onnx``; inputs are as ``OnnxRanker`` takes them."""

    rows_are_independent = True

    def __init__(self, snapshot: Snapshot) -> None:
        d, n_features = snapshot.manifest.embedding_dim, len(snapshot.features.names)
        assert snapshot.ranker is not None
        self._ranker = snapshot.ranker
        self.name, self.version, self.version_number = RANKER, snapshot.snapshot_id, version_number(snapshot.generated_at)
        self.inputs: Sequence[TensorSpec] = (
            TensorSpec("user_embedding", "FP32", (-1, d)),
            TensorSpec("item_embedding", "FP32", (-1, -1, d)),
            TensorSpec("features", "FP32", (-1, -1, n_features)),
        )
        self.outputs: Sequence[TensorSpec] = (TensorSpec("score", "FP32", (-1, -1)),)

    def split(self, inputs: Mapping[str, np.ndarray]) -> list[Mapping[str, np.ndarray]]:
        if len({len(array) for array in inputs.values()}) > 1:
            return [inputs]  # infer says what does not fit
        return split_rows(inputs, list(inputs), max(_MAX_RUN_PAIRS // max(inputs["item_embedding"].shape[1], 1), 1))

    def infer(self, inputs: Mapping[str, np.ndarray]) -> Mapping[str, np.ndarray]:
        users, items, features = (inputs[spec.name] for spec in self.inputs)
        if not (len(users) == len(items) == len(features) and items.shape[1] == features.shape[1]):
            shapes = f"user_embedding {list(users.shape)}, item_embedding {list(items.shape)}, features {list(features.shape)}"
            raise InvalidRequest(f"{shapes}: the first dimensions must agree, and the second of items and features")
        if 0 in items.shape:
            return {"score": np.zeros(items.shape[:2], np.float32)}
        return {"score": self._ranker.score(users, items, features)}


class RecommendModel(OipModel):
    """Ranks users' candidates under the neutral context: top k item ids as text, short lists padded with "" and -inf.

    Args:
        lookup: reads a user's record in the snapshot's own store. fetch: reads users' records over the network, before a request is run;
            None where nothing is asked there.
    """

    rows_are_independent = False

    def __init__(
        self,
        snapshot: Snapshot,
        max_k: int,
        lease: Callable[[], AbstractContextManager[object]] = nullcontext,
        lookup: Callable[[Id], UserRecord | None] | None = None,
        fetch: Callable[[Sequence[Id]], Awaitable[Sequence[FoundRecord]]] | None = None,
    ) -> None:
        self._snapshot, self._max_k, self._lease, self._lookup, self._fetch = snapshot, max_k, lease, lookup or snapshot.lookup, fetch
        self.name, self.version, self.version_number = RECOMMEND, snapshot.snapshot_id, version_number(snapshot.generated_at)
        self.inputs: Sequence[TensorSpec] = (
            TensorSpec("user_id", "INT64" if snapshot.ids.user == "BIGINT" else "BYTES", (-1,), max_rows=_MAX_USERS),
            TensorSpec("k", "INT32", (1,), optional=True),
        )
        self.outputs: Sequence[TensorSpec] = (TensorSpec("item_id", "BYTES", (-1, -1)), TensorSpec("score", "FP32", (-1, -1)))

    async def prepare(self, inputs: Mapping[str, np.ndarray]) -> Mapping[str, np.ndarray]:
        self._read_k(inputs)  # here, so that what cannot be answered does not spoil a joint run
        user_ids = [_user_id(value) for value in inputs["user_id"].tolist()]
        if self._fetch is None:
            return inputs
        records = np.empty(len(user_ids), dtype=object)
        with self._lease():
            for row, found in enumerate(await self._fetch(user_ids)):
                records[row] = found
        return {**inputs, _RECORDS: records}

    def split(self, inputs: Mapping[str, np.ndarray]) -> list[Mapping[str, np.ndarray]]:
        return split_rows(inputs, [name for name in ("user_id", _RECORDS) if name in inputs], MAX_RANK_BATCH)

    def lease(self) -> AbstractContextManager[object]:
        return self._lease()

    def joint_key(self, inputs: Tensors) -> Hashable:
        return RECOMMEND  # whatever the length of the lists, and whoever names it

    def infer(self, inputs: Tensors) -> Tensors:
        return self.infer_many([inputs])[0]

    def infer_many(self, requests: Sequence[Tensors]) -> list[Tensors]:
        queries: list[RankInput] = []
        lengths = []
        for inputs in requests:
            k = self._read_k(inputs)
            user_ids = [_user_id(value) for value in inputs["user_id"].tolist()]
            found = inputs[_RECORDS] if _RECORDS in inputs else [FoundRecord(self._lookup(user_id)) for user_id in user_ids]
            queries += [RankInput(RankQuery(user_id, k), *one) for user_id, one in zip(user_ids, found, strict=True)]
            lengths.append((len(user_ids), k))
        results = iter(rank_many(self._snapshot, queries, LatencyTracker()))
        return [self._collect(list(islice(results, n_users)), k) for n_users, k in lengths]

    def _read_k(self, inputs: Tensors) -> int:
        k = int(inputs["k"][0]) if "k" in inputs else min(_DEFAULT_K, self._max_k)
        if not 1 <= k <= self._max_k:
            raise InvalidRequest(f"k is {k}: expected 1 to {self._max_k}")
        return k

    def _collect(self, results: Sequence[RankResult], k: int) -> Tensors:
        """Put a request's lists into tensors of k columns."""
        ids = np.full((len(results), k), b"", dtype=object)
        scores = np.full((len(results), k), -np.inf, np.float32)
        for row, result in enumerate(results):
            ids[row, : len(result.codes)] = [str(item).encode() for item in self._snapshot.items.item_ids(result.codes)]
            scores[row, : len(result.codes)] = result.scores
        return {"item_id": ids, "score": scores}


def _user_id(value: int | bytes) -> int | str:
    if isinstance(value, int):
        return value
    try:
        return value.decode()
    except UnicodeDecodeError:
        raise InvalidRequest(f"user_id {quote(value)} is not UTF-8") from None


def version_number(generated_at: dt.datetime) -> int:
    """Make the number that grows with the time at which a night began: YYYYMMDDhhmmssmmm, UTC."""
    at = generated_at.astimezone(dt.UTC)
    return int(f"{at:%Y%m%d%H%M%S}{at.microsecond // 1000:03}")


class SnapshotModels:
    """Serves the models of the snapshot that is in use at the moment of asking, and those of the canary to who names it."""

    def __init__(self, manager: SnapshotManager, max_k: int, freshness: FreshnessPolicy) -> None:
        self._manager, self._max_k, self._freshness = manager, max_k, freshness
        self._loaded: dict[str, LoadedSnapshot] = {}
        self._models: dict[str, dict[str, OipModel]] = {}

    def get(self, name: str, version: str | None) -> OipModel:
        labelled = self.labelled(name)
        if not version and STABLE in labelled:
            return labelled[STABLE]
        for model in labelled.values():
            if version in (model.version, str(model.version_number)):
                return model
        known = ", ".join(f"{model.version} ({label})" for label, model in labelled.items())
        raise ModelUnknown(f"model {name} has no version {quote(version or STABLE)}; it has {known}")

    def labelled(self, name: str) -> Mapping[str, OipModel]:
        self._follow()
        found = {label: models[name] for label, models in self._models.items() if name in models}
        if not found:
            names = sorted({name for models in self._models.values() for name in models})
            raise ModelUnknown(f"there is no model {quote(name)}; there are: {', '.join(names) or 'none yet'}")
        return found

    def ready(self) -> bool:
        """Tell, as /readyz does, whether a snapshot is in use that is not too old, whose lists are there, and others are looked for."""
        current = self._manager.current
        if current is None or current.store_status == "lost" or self._manager.stall is not None:
            return False
        return self._freshness.status(current.snapshot.generated_at) != "too_old"

    def _follow(self) -> None:
        """Make the models anew where other snapshots are in use."""
        roles = {STABLE: self._manager.current, CANARY: self._manager.canary}
        loaded = {label: one for label, one in roles.items() if one is not None}
        if loaded != self._loaded:  # not by name: one that came back was closed in between and opened anew
            self._loaded, self._models = loaded, {label: self._make_models(one) for label, one in loaded.items()}

    def _make_models(self, loaded: LoadedSnapshot) -> dict[str, OipModel]:
        fetch = loaded.lookup_many if loaded.asks_network else None
        models: list[OipModel] = [RecommendModel(loaded.snapshot, self._max_k, loaded.lease, loaded.lookup_here, fetch)]
        if loaded.snapshot.ranker is not None:
            models.insert(0, RankerModel(loaded.snapshot))
        return {model.name: model for model in models}
