"""Candidates for a user of whom the snapshot has no embedding, but who has looked at items. Called by the ladder."""

import numpy as np

from recsys_batch.online.snapshot.reader import Snapshot
from recsys_batch.online.snapshot.user_record import UserRecord
from recsys_batch.online.snapshot.vector_search import l2_normalise, search_nearest

N_SESSION_CANDIDATES = 200


def candidates_from_session(snapshot: Snapshot, session: np.ndarray, excluded_codes: np.ndarray) -> UserRecord:
    """Retrieve candidates for a user without an embedding: the items nearest to the mean direction of the session's items, at users'
    typical length. The record has no published list.

    Args:
        session: int64, codes of the session's items, at least one. excluded_codes: int64, codes that must not come back.
    """
    catalogue, facts = snapshot.items.catalogue, snapshot.facts
    vector = l2_normalise(l2_normalise(catalogue.embeddings[session]).mean(axis=0)) * np.float32(facts.user_norm)
    wanted, norms = N_SESSION_CANDIDATES + len(excluded_codes), snapshot.items.norms if facts.metric == "cosine" else None
    codes, scores = search_nearest(vector, catalogue.embeddings, snapshot.default_eligible, snapshot.item_lists, wanted, norms)
    keep = np.isin(codes, excluded_codes, invert=True)
    codes, scores = codes[keep][:N_SESSION_CANDIDATES], scores[keep][:N_SESSION_CANDIDATES]
    return UserRecord(vector, len(session), None, codes, scores, top_places=np.zeros(0, np.int64), top_scores=np.zeros(0, np.float32))
