"""TorchServe's handler: a batch of requests, the reference ranker in torch, top ten of each as JSON."""

import json
import os
from typing import Any

import numpy as np
import torch
from lookup import Lookup
from ts.torch_handler.base_handler import BaseHandler


class Handler(BaseHandler):  # type: ignore[misc]
    def initialize(self, context: Any) -> None:
        torch.set_num_threads(1)
        self._lookup = Lookup(os.environ["PEER_SNAPSHOT"])
        weights = np.load(os.environ["PEER_WEIGHTS"])
        self._w = {name: torch.from_numpy(weights[name]) for name in weights.files}
        self.initialized = True

    def handle(self, data: list[dict[str, Any]], context: Any) -> list[str]:
        asked = [self._user(row) for row in data]
        users, codes, items, features = zip(*(self._lookup.get(user) for user in asked), strict=True)
        with torch.inference_mode():
            u, x, f = (torch.from_numpy(np.stack(part)) for part in (users, items, features))
            w = self._w
            hidden = (u @ w["user"] + w["bias"])[:, None] + torch.bmm(x, w["item"] + u[:, :, None] * w["product"]) + f @ w["features"]
            scores = (f[..., 0] + (torch.relu(hidden) @ w["output"])[..., 0]).numpy()
        answers = []
        for row, mine in zip(scores, codes, strict=True):
            best, values = self._lookup.best(row, mine)
            answers.append(json.dumps({"items": best.tolist(), "scores": values.tolist()}))
        return answers

    @staticmethod
    def _user(row: dict[str, Any]) -> int:
        given = row.get("body") or row.get("data")
        return int((given if isinstance(given, dict) else json.loads(given))["user_id"])
