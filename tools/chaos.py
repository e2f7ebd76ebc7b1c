"""A server under attack, with real clients that go on asking: slow senders, killed processes, a Redis that lost its data, a full disk,
snapshots of other times, two who activate at once. `make chaos SECONDS=180`

Two servers, one with users' lists in its snapshots and one with them in Redis. The attacks take turns until the time is over. Prints the
answers by status; a status that nobody provoked and no attack promised is a fault, and ends it with exit code 1.
"""

from __future__ import annotations

import argparse
import datetime as dt
import shutil
import signal
import sys
import tempfile
import time
from contextlib import ExitStack
from pathlib import Path

from chaos_attacks import ATTACKS, Chaos, kill_main
from chaos_load import Answers, clients
from chaos_servers import N_USERS, STORED, Store, make_snapshots, server, small_disk

from recsys_batch.online.snapshot.repository import set_current


def attack(chaos: Chaos, seconds: float, left_out: set[str]) -> None:
    """Run the attacks in turn until the time is over, each at least once; then kill the first server."""
    until, turns = time.monotonic() + seconds, 0
    with clients({"files": chaos.files.port, "redis": chaos.stored.port}, 4, N_USERS, chaos.answers):
        time.sleep(2)
        print_use("begins", chaos)
        while turns == 0 or time.monotonic() < until:
            for one in ATTACKS:
                if one.__name__ in left_out or (turns and time.monotonic() > until):
                    continue
                before, began = len(chaos.answers.faults), time.monotonic()
                one(chaos)
                time.sleep(1)
                faults = chaos.answers.faults[before:]
                print(f"{one.__name__:<18}{time.monotonic() - began:6.1f} s  {faults[0] if faults else 'held'}", flush=True)
            turns += 1
        print_use("ends", chaos)
    kill_main(chaos)
    for server_log in (chaos.files.log, chaos.stored.log):
        if "Traceback" in (text := server_log.read_text(errors="replace")):
            chaos.answers.fault(f"a stack trace in a server's log: {text[text.index('Traceback') :][:2000]}")


def print_use(when: str, chaos: Chaos) -> None:
    for name, one in (("files", chaos.files), ("redis", chaos.stored)):
        print(f"{when}: workers of {name} have {one.memory_mb()} MB and {one.n_descriptors()} descriptors", flush=True)


def print_answers(answers: Answers) -> None:
    statuses = sorted({status for _, status in answers.counts})
    print(f"\n{'answers':<34}" + "".join(f"{status:>8}" for status in statuses))
    for kind in sorted({kind for kind, _ in answers.counts}):
        print(f"{kind:<34}" + "".join(f"{answers.counts[kind, status] or '':>8}" for status in statuses))


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--seconds", type=float, default=180)
    arguments = parser.parse_args()
    signal.signal(signal.SIGTERM, lambda *_: sys.exit(1))
    folder, answers, left_out = Path(tempfile.mkdtemp(prefix="chaos-")), Answers(), set[str]()
    with ExitStack() as stack:
        stack.callback(shutil.rmtree, folder, ignore_errors=True)
        if not stack.enter_context(small_disk(folder / "log")):
            left_out.add("fill_disk")
            print("fill_disk         left out: it needs the right to mount a disk of its own")
        day, none = dt.timedelta(days=1), dt.timedelta()
        make_snapshots(folder / "files", {"lastyear": -365 * day, "tomorrow": day, "third": none, "second": none, "first": none})
        set_current(folder / "files", "first")
        store = Store()
        stack.callback(store.kill)
        make_snapshots(folder / "stored", {STORED: none}, put_records=store.put)
        set_current(folder / "stored", STORED)
        files = stack.enter_context(server(folder / "files", folder / "log", folder / "files.log"))
        stored = stack.enter_context(server(folder / "stored", folder / "log-2", folder / "stored.log", RECSYS_BATCH_REDIS_URL=store.url))
        attack(Chaos(files, stored, store, answers), arguments.seconds, left_out)
    print_answers(answers)
    for fault in list(dict.fromkeys(answers.faults))[:50]:
        print(f"fault: {fault}")
    print(f"chaos: {sum(answers.counts.values())} answers, {len(answers.faults)} faults")
    return 1 if answers.faults else 0


if __name__ == "__main__":
    sys.exit(main())
