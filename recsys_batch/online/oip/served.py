"""The models of the snapshot in use: its ranker as such, and whole recommendations."""

from __future__ import annotations

from collections.abc import Mapping, Sequence

import numpy as np

from recsys_batch.online.latency import Latency
from recsys_batch.online.live import Live, Loaded
from recsys_batch.online.oip.models import InvalidRequest, Model, ModelUnknown, TensorSpec
from recsys_batch.online.query import Query
from recsys_batch.online.ranking import rank
from recsys_batch.online.records import decode
from recsys_batch.online.snapshot import Snapshot

RANKER, RECOMMEND = "ranker", "recommend"
_DEFAULT_K = 10


class RankerModel:
    """``ranker.onnx``: scores of candidates, as ``OnnxRanker`` takes them."""

    rows = True

    def __init__(self, snapshot: Snapshot) -> None:
        d, n_features = snapshot.manifest.embedding_dim, len(snapshot.manifest.features.names)
        assert snapshot.ranker is not None
        self._ranker = snapshot.ranker
        self.name, self.version = RANKER, snapshot.snapshot_id
        self.inputs: Sequence[TensorSpec] = (
            TensorSpec("user_embedding", "FP32", (-1, d)),
            TensorSpec("item_embedding", "FP32", (-1, -1, d)),
            TensorSpec("features", "FP32", (-1, -1, n_features)),
        )
        self.outputs: Sequence[TensorSpec] = (TensorSpec("score", "FP32", (-1, -1)),)

    def infer(self, inputs: Mapping[str, np.ndarray]) -> Mapping[str, np.ndarray]:
        users, items, features = (inputs[spec.name] for spec in self.inputs)
        if not (len(users) == len(items) == len(features) and items.shape[1] == features.shape[1]):
            found = f"user_embedding {list(users.shape)}, item_embedding {list(items.shape)}, features {list(features.shape)}"
            raise InvalidRequest(f"{found}: the first dimensions must agree, and the second of items and features")
        if 0 in items.shape:
            return {"score": np.zeros(items.shape[:2], np.float32)}
        return {"score": self._ranker.score(users, items, features)}


class RecommendModel:
    """Top k of users under the neutral context: item ids as text, short lists padded with "" and -inf."""

    rows = False

    def __init__(self, snapshot: Snapshot, max_k: int) -> None:
        self._snapshot, self._max_k = snapshot, max_k
        self.name, self.version = RECOMMEND, snapshot.snapshot_id
        self.inputs: Sequence[TensorSpec] = (
            TensorSpec("user_id", "INT64" if snapshot.manifest.facts.ids.user == "BIGINT" else "BYTES", (-1,)),
            TensorSpec("k", "INT32", (1,), optional=True),
        )
        self.outputs: Sequence[TensorSpec] = (TensorSpec("item_id", "BYTES", (-1, -1)), TensorSpec("score", "FP32", (-1, -1)))

    def infer(self, inputs: Mapping[str, np.ndarray]) -> Mapping[str, np.ndarray]:
        k = int(inputs["k"][0]) if "k" in inputs else min(_DEFAULT_K, self._max_k)
        if not 1 <= k <= self._max_k:
            raise InvalidRequest(f"k is {k}: expected 1 to {self._max_k}")
        n = len(inputs["user_id"])
        if n > 1000:
            raise InvalidRequest(f"user_id has {n} users: at most 1000 are answered at once")
        ids = np.full((n, k), b"", dtype=object)
        scores = np.full((n, k), -np.inf, np.float32)
        for row, user in enumerate(inputs["user_id"].tolist()):
            codes, values = self._list(_user(user), k)
            ids[row, : len(codes)] = [str(one).encode() for one in self._snapshot.items.item_ids(codes)]
            scores[row, : len(codes)] = values
        return {"item_id": ids, "score": scores}

    def _list(self, user: int | str, k: int) -> tuple[np.ndarray, np.ndarray]:
        store, key = self._snapshot.store, self._snapshot.key(user)
        if store is None:
            raise InvalidRequest("users' lists are in Redis, which this protocol's recommend does not read: ask POST /v1/rank")
        record = store.get(key) if key is not None else None
        ranked = rank(self._snapshot, Query(user, k), decode(record) if record is not None else None, Latency())
        return ranked.codes, ranked.scores


def _user(value: int | bytes) -> int | str:
    if isinstance(value, int):
        return value
    try:
        return value.decode()
    except UnicodeDecodeError:
        raise InvalidRequest(f"user_id {value[:20]!r} is not UTF-8") from None


class ServedModels:
    """Of the snapshot that is in use at the moment of asking."""

    def __init__(self, live: Live, max_k: int) -> None:
        self._live, self._max_k = live, max_k
        self._of: Loaded | None = None
        self._models: dict[str, Model] = {}

    def get(self, name: str, version: str | None) -> Model:
        self._look()
        model = self._models.get(name)
        if model is None:
            raise ModelUnknown(f"there is no model {name!r}; there are: {', '.join(self._models) or 'none yet'}")
        if version not in (None, "", model.version):
            raise ModelUnknown(f"model {name} has no version {version!r}; it has {model.version}, that of the snapshot in use")
        return model

    def names(self) -> list[str]:
        self._look()
        return list(self._models)

    def ready(self) -> bool:
        return self._live.current is not None

    def _look(self) -> None:
        current = self._live.current
        if current is None or current is self._of:  # not by name: one that came back was closed in between and opened anew
            return
        models: list[Model] = [RecommendModel(current.snapshot, self._max_k)]
        if current.snapshot.ranker is not None:
            models.insert(0, RankerModel(current.snapshot))
        self._of, self._models = current, {model.name: model for model in models}
