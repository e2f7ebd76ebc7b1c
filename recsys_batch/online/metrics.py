"""Prometheus metrics of a server, over all its workers. Import it only where PROMETHEUS_MULTIPROC_DIR is set already."""

import time
from bisect import bisect_left
from collections.abc import Iterator, Mapping
from typing import get_args

from prometheus_client import CollectorRegistry, Counter, Gauge, Histogram, Metric, generate_latest, multiprocess
from prometheus_client.exposition import CONTENT_TYPE_LATEST

from recsys_batch.online.api.messages import Lists
from recsys_batch.online.exposure_log.buffered_log import LogStats
from recsys_batch.online.ranking.rank_result import ANSWER_SOURCES, LISTED_SOURCES, RANKER_FAILED, REASONS, REMOTE_REASONS
from recsys_batch.online.runtime.loop_monitor import LoopMonitor, failed_rounds

BUCKETS = (0.0005, 0.001, 0.002, 0.003, 0.005, 0.0075, 0.01, 0.015, 0.02, 0.03, 0.05, 0.075, 0.1)
"""Seconds: 0.5 to 100 ms."""
STAGE_SAMPLE_EVERY = 8
"""One ranking in so many has its stages measured, every one its total."""
STAGES = ("wait", "lookup", "features", "model", "select", "total")

_STAGE = Histogram("recsys_rank_stage_seconds", "time of a ranking (total), and of one in eight its stages", ["stage"], buckets=BUCKETS)
_ANSWERS = Counter("recsys_rank_answers", "ranked answers by source", ["source"])
_REQUEST_LISTS = Counter("recsys_rank_request_lists", "ranked answers whose candidates the request brought, by source", ["source"])
_LISTS = Counter("recsys_rank_lists", "ranked answers by the lists that they are from", ["lists"])
_DEGRADED = Counter("recsys_rank_degraded", "answers that are not all that they could be, by reason", ["reason"])
REQUESTS = Counter("recsys_http_requests", "HTTP requests by route and status", ["route", "status"])
GRPC_REQUESTS = Counter("recsys_grpc_requests", "gRPC calls by method and status code", ["method", "code"])
BY_SNAPSHOT = Counter("recsys_rank_by_snapshot", "ranked answers by the snapshot's part", ["part"])
SHED = Counter("recsys_shed", "requests refused because too many waited")
SHADOW = Counter("recsys_shadow", "requests scored by the shadow as well, and those left out", ["outcome"])
SHADOW_OVERLAP = Histogram(
    "recsys_shadow_overlap", "share of the shown items that the shadow shows", buckets=tuple(n / 10 for n in range(11))
)
SWAPS = Counter("recsys_snapshot_swaps", "times that a worker went over to another snapshot")
REFUSED_SNAPSHOTS = Counter("recsys_snapshot_refused", "times that a worker refused a snapshot")
FALLBACK = Gauge(
    "recsys_snapshot_fallback",
    "workers that answer from another snapshot than CURRENT names, as that is refused",
    multiprocess_mode="livesum",
)
LOGGED = Counter("recsys_log_rows", "rows of the logs of exposures and feedback, by what became of them", ["log", "outcome"])
# Not livesum: of a worker that was killed its last count stays, so that rows add up, and as many are in doubt.
LOG_WAITING = Gauge("recsys_log_waiting_rows", "rows that were taken and are not written yet", ["log"], multiprocess_mode="sum")
LOG_EVENTS = Counter("recsys_log_events", "old files that were removed, and times that the disk refused", ["log", "event"])
WAITING = Gauge("recsys_waiting", "requests that wait or are worked on", multiprocess_mode="livesum")
GRPC_WAITING = Gauge("recsys_grpc_waiting", "gRPC requests for inference that wait or are worked on", multiprocess_mode="livesum")
LIVE_BATCHES = Counter("recsys_live_batches", "micro-batches of the stream that the follower has handled")
LIVE_USERS = Gauge("recsys_live_users", "users with a live list of the snapshot in use", multiprocess_mode="livemax")
LIVE_LAG = Gauge(
    "recsys_live_lag_seconds", "time since the follower last had all live lists; 0 where online.live is off", multiprocess_mode="livemax"
)
_ENGINE_CALLS = Counter("recsys_engine_calls", "calls of a model server, by what became of them", ["outcome"])
ENGINE_SECONDS = Histogram("recsys_engine_seconds", "time of a call of a model server", buckets=BUCKETS)
ENGINE_BREAKER = Gauge(
    "recsys_engine_breaker", "whether a model server is left alone: 0 closed, 1 half open, 2 open", multiprocess_mode="livemax"
)
_LOOP_FAILURES = Counter("recsys_loop_failures", "rounds of the loops beside requests that failed, and were done again", ["loop"])
_LAST_LOOK = Gauge(
    "recsys_follower_last_look_seconds",
    "time since a process last looked for snapshots or live lists: of each kind of process the one that has not looked for longest",
    ["process"],
    multiprocess_mode="livemin",
)
AGE = Gauge("recsys_snapshot_age_seconds", "time since the night of the snapshot in use began", multiprocess_mode="livemax")

_STAGE_HISTOGRAMS = {name: _STAGE.labels(name) for name in STAGES}
for _counter, _names in (
    (_ANSWERS, ANSWER_SOURCES),
    (_LISTS, get_args(Lists)),
    (_REQUEST_LISTS, ("ranker", *LISTED_SOURCES)),
    (_DEGRADED, REASONS),
    (BY_SNAPSHOT, ("current", "canary")),
    (SHADOW, ("scored", "dropped", "failed")),
    (_ENGINE_CALLS, ("scored", "refused", RANKER_FAILED, *REMOTE_REASONS)),
):
    for _name in _names:
        _counter.labels(_name)  # so that they are on the page from the start, at 0


class Tally:
    """Counts of one worker that are added to the shared counters now and then: an addition there asks the system for the process id and
    writes to a mapped file, 2 us that a request would pay several times.
    """

    def __init__(self) -> None:
        self._counts: dict[tuple[str, ...], int] = {}
        self._durations: dict[tuple[str, int], tuple[int, float]] = {}

    def add(self, *key: str) -> None:
        """Count one more of (counter, label, ...)."""
        self._counts[key] = self._counts.get(key, 0) + 1

    def observe(self, stage: str, seconds: float) -> None:
        """Count a duration of a stage in its bucket."""
        key = stage, bisect_left(BUCKETS, seconds)
        n, total = self._durations.get(key, (0, 0.0))
        self._durations[key] = n + 1, total + seconds

    def flush(self) -> None:
        """Add the counts to the counters and histograms that /metrics shows."""
        counts, self._counts = self._counts, {}
        for (name, *labels), n in counts.items():
            _COUNTERS[name].labels(*labels).inc(n)
        durations, self._durations = self._durations, {}
        for (stage, bucket), (n, total) in durations.items():
            histogram = _STAGE_HISTOGRAMS[stage]
            histogram._buckets[bucket].inc(n)  # the library has no public way to add several at once
            histogram._sum.inc(total)


tally = Tally()
_COUNTERS = {
    "answers": _ANSWERS,
    "lists": _LISTS,
    "request_lists": _REQUEST_LISTS,
    "degraded": _DEGRADED,
    "requests": REQUESTS,
    "grpc_requests": GRPC_REQUESTS,
    "by_snapshot": BY_SNAPSHOT,
    "shadow": SHADOW,
    "engine_calls": _ENGINE_CALLS,
}


_counted: dict[tuple[str, str], int] = {}


def count_logs(stats: Mapping[str, LogStats]) -> None:
    """Bring the counters up to what the logs of this worker count."""
    for log, rows in stats.items():
        for outcome in ("recorded", "written", "full", "invalid", "lost"):
            LOGGED.labels(log, outcome).inc(_gained(log, outcome, getattr(rows, outcome)))
        for event in ("removed_files", "write_errors"):
            LOG_EVENTS.labels(log, event).inc(_gained(log, event, getattr(rows, event)))
        LOG_WAITING.labels(log).set(rows.waiting)


def _gained(log: str, name: str, count: int) -> int:
    before, _counted[log, name] = _counted.get((log, name), 0), count
    return count - before


def count_failed_rounds() -> None:
    """Bring the counter up to the rounds that failed in the loops of this process."""
    for loop in list(failed_rounds):
        _LOOP_FAILURES.labels(loop).inc(failed_rounds.pop(loop, 0))


def show_last_look(process: str, looks: LoopMonitor) -> None:
    """Show when this process last looked.

    What is written is the time of the look, and whoever renders the page compares: a loop that stands still cannot hide it.

    Args:
        process: kind of it: worker, grpc, live.
    """
    _LAST_LOOK.labels(process).set(looks.looked_at)


class _AgeCollector:
    """The metrics of all processes, with ages for times of looks; time.monotonic() is one clock for all processes of a host."""

    def collect(self) -> Iterator[Metric]:
        for family in multiprocess.MultiProcessCollector(None).collect():  # type: ignore[no-untyped-call]
            if family.name == "recsys_follower_last_look_seconds":
                now = time.monotonic()
                family.samples = [sample._replace(value=max(0.0, now - sample.value)) for sample in family.samples]
            yield family


def render_metrics() -> tuple[bytes, str]:
    """Render (text, content type) of all processes' metrics."""
    count_failed_rounds()
    registry = CollectorRegistry()
    registry.register(_AgeCollector())
    return generate_latest(registry), CONTENT_TYPE_LATEST
