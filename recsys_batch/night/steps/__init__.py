"""The steps of a night in order. Each reads what earlier ones committed, writes its own slice, and can be done again.

- embed: popularity, the catalogue, item and user embeddings. build_index: the search index over items, tuned.
- candidates: every user's candidates. score: the ranker's top K of them.
- gather_events: what is known of users, brought together once by ranges of user_id.
- range_tasks: passes over users by ranges, shared by the steps.
"""

from collections.abc import Callable

from recsys_batch.night.run_context import RunContext, StepResult
from recsys_batch.night.steps.build_index import index_items
from recsys_batch.night.steps.candidates import retrieve_candidates
from recsys_batch.night.steps.embed import embed_users
from recsys_batch.night.steps.score import score_candidates

STEPS: dict[str, Callable[[RunContext], StepResult]] = {
    "embed": embed_users,
    "index": index_items,
    "candidates": retrieve_candidates,
    "score": score_candidates,
}
OUTPUTS = {"embed": "user_embeddings", "index": "index", "candidates": "shortfalls", "score": "topk"}
"""A step is done when the manifest has a version of the last thing that it writes."""
