"""Measure what the exposure log costs the event loop that records into it: nanoseconds per record, rows that its thread writes per second
and per second of CPU, bytes of a row, and how late a ticker of 1 ms comes with and without it, on an idle machine and on one whose cores
are all taken.

    python benchmarks/exposures.py [--seconds 10] [--repeats 3]
"""

import argparse
import asyncio
import datetime as dt
import multiprocessing
import statistics
import sys
import tempfile
import time
from pathlib import Path
from typing import Any

from measuring import report

from recsys_batch.dataset.log_rows import Exposure
from recsys_batch.online.exposure_log.buffered_log import BufferedLog

_TICK_SECONDS = 0.001
_PER_SECOND, _ITEMS = 1_000, 10


def exposure(number: int) -> Exposure:
    """An answer with 10 items and a full context."""
    now = dt.datetime.now(dt.UTC)
    return Exposure(
        request_id=f"{number:032x}",
        shown_at=now,
        user_id=number % 100_000,
        snapshot_id="2026-11-24-r1",
        model_version="7",
        source="ranker",
        degraded=None,
        item_ids=[f"item-{number * 7919 % 50_000 + place}" for place in range(_ITEMS)],
        scores=[1.0 / (place + 1 + number % 13) for place in range(_ITEMS)],
        batch_scores=[0.5 / (place + 1) for place in range(_ITEMS)],
        candidate_ranks=list(range(1, _ITEMS + 1)),
        context_ts=now,
        device="ios",
        session_item_ids=[f"item-{number % 50_000}", "item-1"],
        attributes={"query": "lamp"},
    )


def open_log(folder: str) -> BufferedLog:
    return BufferedLog(Path(folder), max_mb=2_048, queue_rows=1_000_000)


def close_log(log: BufferedLog, n_rows: int) -> None:
    """Have all rows written; a benchmark that lost some measured nothing."""
    closed, stats = log.close(120), log.stats()["exposures"]
    if not closed or stats.written != n_rows:
        raise SystemExit(f"{stats.written} of {n_rows} rows were written: {stats}")


def record_cost(n_rows: int) -> dict[str, float]:
    """Measure nanoseconds that a record takes on the caller's thread, the rows per second, from the first record to whole files, and per
    second of CPU of the thread that writes, which is what the process used beyond the recording itself.
    """
    rows = [exposure(number) for number in range(n_rows)]
    with tempfile.TemporaryDirectory() as folder:
        cpu_before, opened = time.process_time(), time.perf_counter()
        log = open_log(folder)
        recording = recording_cpu = 0.0
        for first in range(0, n_rows, 100):
            begun, cpu_begun = time.perf_counter(), time.thread_time()
            for row in rows[first : first + 100]:
                log.log_exposure(row)
            recording += time.perf_counter() - begun
            recording_cpu += time.thread_time() - cpu_begun
        close_log(log, n_rows)
        wall, cpu = time.perf_counter() - opened, time.process_time() - cpu_before - recording_cpu
        n_bytes = sum(path.stat().st_size for path in Path(folder).iterdir())
    return {
        "ns_per_record": round(recording / n_rows * 1e9),
        "rows_per_s": round(n_rows / wall),
        "rows_per_cpu_s": round(n_rows / cpu),
        "bytes_per_row": round(n_bytes / n_rows),
    }


async def lateness(log: BufferedLog | None, seconds: float) -> list[float]:
    """Milliseconds by which each tick came after its time; one record a tick, made in either case, logged where there is a log."""
    late, due, end, number = [], time.perf_counter(), time.perf_counter() + seconds, 0
    while due < end:
        due += _TICK_SECONDS
        await asyncio.sleep(max(0.0, due - time.perf_counter()))
        late.append(1000 * (time.perf_counter() - due))
        for _ in range(round(_PER_SECOND * _TICK_SECONDS)):
            row, number = exposure(number), number + 1
            if log is not None:
                log.log_exposure(row)
        due = max(due, time.perf_counter() - _TICK_SECONDS)  # a late tick is counted once
    return late


def ticker(seconds: float, *, logged: bool) -> dict[str, float]:
    with tempfile.TemporaryDirectory() as folder:
        log = open_log(folder) if logged else None
        late = sorted(asyncio.run(lateness(log, seconds)))
        if log is not None:
            close_log(log, len(late))
    return {"p50_ms": late[len(late) // 2], "p99_ms": late[int(len(late) * 0.99)], "max_ms": late[-1], "ticks": len(late)}


def burn() -> None:
    while True:
        pass


def compared(seconds: float, repeats: int, n_busy: int) -> dict[str, Any]:
    """Medians of the lateness with and without the log, in turn, beside ``n_busy`` processes that never rest."""
    others = [multiprocessing.Process(target=burn, daemon=True) for _ in range(n_busy)]
    for other in others:
        other.start()
    runs: dict[str, list[dict[str, float]]] = {"without": [], "with": []}
    try:
        for _ in range(repeats):
            for name, found in runs.items():
                found.append(ticker(seconds, logged=name == "with"))
                print(f"  busy {n_busy} {name:<8}" + " ".join(f"{key} {value:.3f}" for key, value in found[-1].items()), flush=True)
    finally:
        for other in others:
            other.terminate()
            other.join()
    return {name: {key: round(statistics.median(run[key] for run in found), 3) for key in found[0]} for name, found in runs.items()}


def main(arguments: list[str]) -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--seconds", type=float, default=10.0)
    parser.add_argument("--repeats", type=int, default=3)
    parser.add_argument("--rows", type=int, default=50_000)
    parser.add_argument("--output", type=Path)
    options = parser.parse_args(arguments)
    record_cost(1_000)  # warm
    costs = [record_cost(options.rows) for _ in range(options.repeats)]
    print(*costs, sep="\n", flush=True)
    cores = multiprocessing.cpu_count()
    idle, busy = (compared(options.seconds, options.repeats, n) for n in (0, cores))
    result = {
        **{name: statistics.median(cost[name] for cost in costs) for name in costs[0]},
        "late_p99_ms": idle["with"]["p99_ms"],
        "late_p99_ms_without": idle["without"]["p99_ms"],
        "busy_late_p99_ms": busy["with"]["p99_ms"],
        "busy_late_p99_ms_without": busy["without"]["p99_ms"],
    }
    settings = {"records_per_s": _PER_SECOND, "items": _ITEMS, "rows": options.rows, "seconds": options.seconds, "busy_processes": cores}
    report("exposures", settings, {"idle": idle, "busy": busy}, result, options.output)


if __name__ == "__main__":
    main(sys.argv[1:])
