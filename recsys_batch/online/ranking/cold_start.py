"""Somebody of whom the snapshot has no embedding, but who has looked at items: lists made from the session."""

from __future__ import annotations

import numpy as np

from recsys_batch.online.snapshot.reader import Snapshot
from recsys_batch.online.snapshot.user_record import UserLists
from recsys_batch.online.snapshot.vector_search import near, unit

N_CANDIDATES = 200


def from_session(snapshot: Snapshot, session: np.ndarray, gone: np.ndarray) -> UserLists:
    """Items nearest to the session, for a user vector that is the mean direction of its items, at users' typical length.

    Args:
        session: int64, codes of the session's items, at least one. gone: int64, codes that must not come back.
    """
    catalogue, facts = snapshot.items.catalogue, snapshot.manifest.facts
    vector = unit(unit(catalogue.embeddings[session]).mean(axis=0)) * np.float32(facts.user_norm)
    allowed = snapshot.open_to_strangers
    wanted = N_CANDIDATES + len(gone)
    codes, scores = near(vector, catalogue.embeddings, allowed, snapshot.lists, wanted, cosine=facts.metric == "cosine")
    keep = np.isin(codes, gone, invert=True)
    codes, scores = codes[keep][:N_CANDIDATES], scores[keep][:N_CANDIDATES]
    nothing = np.zeros(0, np.int64)
    return UserLists(vector, len(session), None, codes, scores, nothing, np.zeros(0, np.float32))
