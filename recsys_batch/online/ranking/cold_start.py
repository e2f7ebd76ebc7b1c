"""Candidates for a user of whom the snapshot has no embedding, but who has looked at items. Called by the ladder."""

import numpy as np

from recsys_batch.online.snapshot.reader import Snapshot
from recsys_batch.online.snapshot.user_record import UserRecord
from recsys_batch.online.snapshot.vector_search import search_nearest
from recsys_batch.ranking.vector_lengths import normalise_rows

N_SESSION_CANDIDATES = 200


def embed_session(snapshot: Snapshot, session: np.ndarray) -> np.ndarray:
    """Embed a session in place of a user, float32 [d]: the mean direction of its items, at users' typical length.

    Args:
        session: int64, codes of the session's items, at least one.
    """
    vectors = normalise_rows(snapshot.items.catalogue.embeddings[session])
    return np.asarray(normalise_rows(vectors.mean(axis=0)) * np.float32(snapshot.facts.user_norm))


def record_of_session(snapshot: Snapshot, session: np.ndarray) -> UserRecord:
    """Make the record of a user of whom only the session is known, without candidates."""
    nothing = np.zeros(0, np.float32)
    return UserRecord(embed_session(snapshot, session), len(session), None, np.zeros(0, np.int32), nothing, np.zeros(0, np.int64), nothing)


def candidates_from_session(snapshot: Snapshot, session: np.ndarray, excluded_codes: np.ndarray) -> UserRecord:
    """Retrieve candidates for a user without an embedding: the items nearest to the session. The record has no published list.

    Args:
        session: int64, codes of the session's items, at least one. excluded_codes: int64, codes that must not come back.
    """
    catalogue, facts = snapshot.items.catalogue, snapshot.facts
    vector = embed_session(snapshot, session)
    wanted, norms = N_SESSION_CANDIDATES + len(excluded_codes), snapshot.items.norms if facts.metric == "cosine" else None
    codes, scores = search_nearest(vector, catalogue.embeddings, snapshot.default_eligible, snapshot.item_lists, wanted, norms)
    keep = np.isin(codes, excluded_codes, invert=True)
    codes, scores = codes[keep][:N_SESSION_CANDIDATES], scores[keep][:N_SESSION_CANDIDATES]
    return UserRecord(vector, len(session), None, codes, scores, top_places=np.zeros(0, np.int64), top_scores=np.zeros(0, np.float32))
