"""Run a night again with every task profiled, and open its slowest step: `make profile`, RUN_DATE=YYYY-MM-DD.

The date is computed again as a new run, which is published as any other. Profiles of all steps stay in --out, for pstats or any
viewer of its files.
"""

import argparse
import cProfile
import datetime as dt
import pstats
import shutil
from pathlib import Path

from recsys_batch.commands.night import print_night
from recsys_batch.config import load_config
from recsys_batch.night.runner import run_night
from recsys_batch.spark.executors.functions import PROFILE_FOLDER
from recsys_batch.spark.session import get_session
from recsys_batch.tables.run_manifest import STEP_NAMES

_TABLES = {"embed": "user_embeddings", "candidates": "candidates", "score": "topk", "audit": "audit"}
"""What each step's main pass writes, by which its tasks name their profiles."""
_SHOWN = 15


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--conf", default="conf/local.toml")
    parser.add_argument("--set", action="append", default=[], metavar="SECTION.KEY=VALUE")
    parser.add_argument("--run-date", type=dt.date.fromisoformat, required=True)
    parser.add_argument("--incremental", action="store_true")
    parser.add_argument("--step", choices=STEP_NAMES, help="open this one instead of the slowest")
    parser.add_argument("--out", type=Path, default=Path("data/profile"))
    arguments = parser.parse_args()
    folder = arguments.out.absolute()
    shutil.rmtree(folder, ignore_errors=True)
    folder.mkdir(parents=True)
    config = load_config(arguments.conf, arguments.set)
    config.spark.conf[f"spark.executorEnv.{PROFILE_FOLDER}"] = str(folder)
    driver = {step: cProfile.Profile() for step in STEP_NAMES}

    def progress(step: str, event: str, metrics: dict[str, float]) -> None:
        if event == "start":
            driver[step].enable()
        elif event == "done":
            driver[step].disable()
            driver[step].dump_stats(folder / f"driver-{step}.prof")

    run = run_night(get_session(config), config, arguments.run_date, force=True, incremental=arguments.incremental, progress=progress)
    print_night(run)
    slow = arguments.step or max(STEP_NAMES, key=lambda step: run.metrics.get(f"{step}.seconds", 0.0))
    print(f"\nslowest step: {slow}, {run.metrics[f'{slow}.seconds']:.1f} s" if not arguments.step else f"\nstep {slow}")
    tasks = sorted(folder.glob(f"{_TABLES.get(slow, slow)}-*.prof"))
    if tasks:
        print(f"in the Python of its {len(tasks)} tasks ({_TABLES[slow]}), by time in the function itself:")
        _show(pstats.Stats(*map(str, tasks)), "tottime", folder / f"{slow}.prof")
    print("on the driver, by time in the function and what it calls:")
    _show(pstats.Stats(str(folder / f"driver-{slow}.prof")), "cumulative", None)
    print(f"all profiles: {folder}")


def _show(stats: pstats.Stats, order: str, merged: Path | None) -> None:
    if merged is not None:
        stats.dump_stats(merged)
    stats.files = []  # type: ignore[attr-defined]  # a name per task says nothing
    stats.sort_stats(order).print_stats("^(?!.*importlib)" if merged is not None else "recsys_batch", _SHOWN)


if __name__ == "__main__":
    main()
