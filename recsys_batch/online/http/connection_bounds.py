"""Bounds that the connections of a worker share: on their number, and on how long each takes. Used by connection.py and listener.py."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, field
from typing import TYPE_CHECKING

from recsys_batch.online.serving.unfinished_reads import UnfinishedReads

if TYPE_CHECKING:
    from recsys_batch.online.http.connection import HttpConnection

MAX_UNFINISHED, MAX_UNFINISHED_BYTES = 1024, 64 * 2**20
"""Bodies of one worker that are being read; one counts with the length that it announces, or else with what has come."""


@dataclass(slots=True, eq=False)
class ConnectionBounds:
    """Bounds that the connections of one worker share.

    Attributes:
        seconds: that a head may take, an idle connection's next one too; that a body may, from its request's arrival; and that a client
            may read nothing of an answer.
        is_ending: whether each connection is closed after the answer that it waits for.
    """

    seconds: float
    max_connections: int
    connections: set[HttpConnection] = field(default_factory=set)
    is_ending: bool = False
    heads: UnfinishedReads = field(init=False)
    bodies: UnfinishedReads = field(init=False)
    departures: UnfinishedReads = field(init=False)

    def __post_init__(self) -> None:
        everybody = self.max_connections + MAX_UNFINISHED
        self.heads = UnfinishedReads("head", self.seconds, everybody, 1)
        self.bodies = UnfinishedReads("body", self.seconds, MAX_UNFINISHED, MAX_UNFINISHED_BYTES)
        self.departures = UnfinishedReads("end of the connection", self.seconds, everybody, 1)


@dataclass(slots=True)
class OnRefusal:
    """Calls back where ``UnfinishedReads`` refuses something."""

    cancel: Callable[[], None]
