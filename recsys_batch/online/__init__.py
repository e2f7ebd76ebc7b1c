"""The request side: snapshots of published runs, and the server that re-ranks their lists per request.

Nothing here loads pyspark, torch, faiss or mlflow, and importing this package loads none of its rooms. From the wire down:

    server        the server's processes
    live          lists that the stream refreshed, on their way to the server's workers
    export        a published run turned into a snapshot
    tfserving     TensorFlow Serving's REST API over the same models
    oip           the Open Inference Protocol, over HTTP and gRPC
    http          the HTTP endpoints, and the explorer page
    serving       the operations of a request, and which snapshots answer
    engine        the ranker on another team's model server
    metrics       what a server counts and measures
    api           request and answer messages, decoded and encoded
    ranking       one request against one snapshot: the ladder
    exposure_log  the log of what was shown and what came back
    snapshot      a snapshot written, verified, opened
    runtime       loops that survive, processes that end with their parent
    settings      the settings of a server
"""

from __future__ import annotations

from importlib import import_module
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from recsys_batch.online.ranking.ladder import rank
    from recsys_batch.online.ranking.rank_query import RankQuery
    from recsys_batch.online.server.supervisor import run_server as serve
    from recsys_batch.online.snapshot.reader import Snapshot, open_snapshot
    from recsys_batch.online.snapshot.writer import write_snapshot

__all__ = ["RankQuery", "Snapshot", "open_snapshot", "rank", "serve", "write_snapshot"]

_WHERE = {
    "RankQuery": ("ranking.rank_query", "RankQuery"),
    "Snapshot": ("snapshot.reader", "Snapshot"),
    "open_snapshot": ("snapshot.reader", "open_snapshot"),
    "rank": ("ranking.ladder", "rank"),
    "serve": ("server.supervisor", "run_server"),
    "write_snapshot": ("snapshot.writer", "write_snapshot"),
}


def __getattr__(name: str) -> Any:
    """Import a public name when it is first asked for (PEP 562)."""
    if name not in _WHERE:
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
    module, attribute = _WHERE[name]
    return getattr(import_module(f"{__name__}.{module}"), attribute)
