"""stream: the lists of users who did something, between two nights."""

import re
import signal
import threading
from dataclasses import asdict

import click

from recsys_batch.commands.options import ParsedType, json_option, with_config
from recsys_batch.commands.output import format_count, print_result
from recsys_batch.config import Config

_UNITS = {"ms": 0.001, "s": 1.0, "m": 60.0, "h": 3600.0}


def _parse_duration(text: str) -> float:
    match = re.fullmatch(r"(\d+(?:\.\d+)?)(ms|s|m|h)", text.strip())
    if match is None:
        raise ValueError(text)
    return float(match[1]) * _UNITS[match[2]]


_DURATION = ParsedType("TIME", _parse_duration, "a length of time like 500ms, 1s, 5m or 1h")


@click.command("stream", help="Refresh the lists of users who did something since the published night, until it is ended.")
@click.option("--available-now", is_flag=True, help="Handle what is there and end: the hourly refresh.")
@click.option("--trigger", type=_DURATION, default="1s", show_default=True, help="Time between the beginnings of two micro-batches.")
@json_option
@with_config
def stream_command(config: Config, available_now: bool, trigger: float, as_json: bool) -> None:
    from recsys_batch.night.run_locks import user_rows_lock
    from recsys_batch.spark.session import get_session
    from recsys_batch.stream.runner import run_stream

    stop, session = threading.Event(), get_session(config)
    # After the session, which has handlers of its own: the batch at work is finished.
    for number in (signal.SIGTERM, signal.SIGINT):
        signal.signal(number, lambda *_: stop.set())
    with user_rows_lock(config):
        done = run_stream(session, config, available_now=available_now, trigger_seconds=trigger, stop=stop)
    counts = f"{format_count(done.events)} events, {format_count(done.users)} users refreshed, {format_count(done.rows)} rows"
    print_result(asdict(done), f"{format_count(done.batches)} micro-batches: {counts}", as_json=as_json)
