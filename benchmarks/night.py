"""A whole night, embed to publish: beside the build of another commit, against MLlib's recommendForAllUsers, and its growth with users.

Each build runs its nights in processes of its own, in turns, on the same machine and settings: a night of 2,000 users, which is what any
night costs (fixed_seconds), and one of 100,000, which is compared with the other build's; then, of this build alone, those of 300,000 and
of USERS, where that is more. The reference model is trained once, on 10,000 users, and carried to every size and build: item features are
the same for all. MLlib gets factors of the same numbers and ranks 20,000 users, with Java's vector module or the machine's native BLAS
(Debian: libopenblas0-pthread), whichever is there.

    make bench-night USERS=1000000 ITEMS=100000 BEFORE=COMMIT
    python benchmarks/night.py --growth 10000,30000,100000,300000
"""

import argparse
import itertools
import json
import os
import statistics
import subprocess
import sys
from contextlib import ExitStack
from pathlib import Path
from typing import Any

import numpy as np
from measuring import ROOT, checked_out, python_path, report, scratch_folder
from mllib import measure_mllib

from recsys_batch.tables.run_manifest import STEP_NAMES

COMPARED, MIDDLE = 100_000, 300_000
"""Users of the nights that two builds are compared by, and of the one that the largest is compared with."""


def run_nights(code: Path, n_users: list[int], arguments: argparse.Namespace, folder: Path) -> list[dict[str, Any]]:
    """Run nights of a build in a process of its own; the first one returned has 2,000 users."""
    output = folder / "nights.json"
    command = [
        sys.executable,
        str(ROOT / "benchmarks" / "night_process.py"),
        "--users",
        *map(str, n_users),
        "--items",
        str(arguments.items),
    ]
    command += ["--events-per-user", str(arguments.events_per_user), "--train-seconds", str(arguments.train_seconds)]
    command += ["--seed", str(arguments.seed), "--bundle", str(folder / "bundle"), "--item-embeddings", str(folder / "items.npy")]
    command += [*(f"--set={setting}" for setting in arguments.set), "--output", str(output)]
    # Spark's workers import from the working folder first: a build has to be run from its own.
    subprocess.run(command, env={**os.environ, "PYTHONPATH": python_path(code)}, cwd=code, check=True)
    nights: list[dict[str, Any]] = json.loads(output.read_text())
    for night in nights:
        print(code.name if code != ROOT else "this build", json.dumps(night), flush=True)
    return nights


def compare(arguments: argparse.Namespace, folder: Path) -> dict[str, list[list[dict[str, Any]]]]:
    """Run this build's nights of 2,000 and 100,000 users, and the other's, in turns; and this build's larger ones in its last turn."""
    with ExitStack() as stack:
        codes = {"ours": ROOT}
        if arguments.before:
            codes["before"] = stack.enter_context(checked_out(arguments.before, folder))
        runs: dict[str, list[list[dict[str, Any]]]] = {name: [] for name in codes}
        for number in range(arguments.rounds):
            for name in list(codes)[:: 1 if number % 2 else -1]:
                is_last = name == "ours" and number == arguments.rounds - 1
                larger = [MIDDLE, arguments.users] if is_last and arguments.users > MIDDLE else []
                runs[name].append(run_nights(codes[name], [min(COMPARED, arguments.users), *larger], arguments, folder))
    return runs


def chart(runs: list[dict[str, Any]], path: Path) -> None:
    """Milliseconds per user over users, a band per step."""
    from matplotlib.figure import Figure

    figure = Figure(figsize=(8, 5), layout="constrained")
    axes = figure.add_subplot(xscale="log", xlabel="users", ylabel="ms per user", title="Cost of a whole night")
    users = [one["users"] for one in runs]
    axes.stackplot(users, [[one["steps"][step] / one["users"] * 1000 for one in runs] for step in STEP_NAMES], labels=STEP_NAMES, alpha=0.8)
    axes.plot(users, [one["seconds"] / one["users"] * 1000 for one in runs], color="black", marker="o", label="command")
    middles, marginal = further_users(runs)
    axes.plot(middles, marginal, color="black", marker="s", linestyle="--", label="each further user")
    axes.set_xticks(users, [f"{n:,}" for n in users])
    axes.set_ylim(bottom=0)
    axes.legend()
    figure.savefig(path, dpi=120)


def further_users(runs: list[dict[str, Any]]) -> tuple[list[float], list[float]]:
    """Between neighbouring sizes: (their geometric mean, milliseconds that each further user took)."""
    pairs = list(itertools.pairwise(runs))
    middles = [(one["users"] * more["users"]) ** 0.5 for one, more in pairs]
    return middles, [1000 * (more["seconds"] - one["seconds"]) / (more["users"] - one["users"]) for one, more in pairs]


def growth(runs: list[dict[str, Any]]) -> dict[str, Any]:
    """Cost per user, and of each further user: a night has a fixed part, so the first falls and the second is what has to stay flat."""
    per_user, (_, marginal) = [1000 * one["seconds"] / one["users"] for one in runs], further_users(runs)
    return {
        "users": [one["users"] for one in runs],
        "ms_per_user": [round(each, 4) for each in per_user],
        "ms_per_further_user": [round(each, 4) for each in marginal],
        "further_user_spread": round(max(marginal) / min(marginal) - 1, 3) if marginal else None,
        "largest_vs_flat": round(per_user[-1] / min(per_user), 3),
    }


def summarize(runs: dict[str, list[list[dict[str, Any]]]]) -> dict[str, Any]:
    """Compute the figures of a comparison: a ratio is the median over rounds of that of a round."""
    ours = runs["ours"]
    largest = ours[-1][-1]
    result = {
        "night_users_per_s": round(largest["users"] / largest["seconds"], 1),
        "fixed_seconds": round(statistics.median(nights[0]["seconds"] for nights in ours), 2),
        "steps": {step: round(value, 2) for step, value in largest["steps"].items()},
    }
    if "before" in runs:
        pairs = list(zip(ours, runs["before"], strict=True))
        result["night_vs_before"] = round(statistics.median(before[1]["seconds"] / now[1]["seconds"] for now, before in pairs), 2)
        result["fixed_vs_before"] = round(statistics.median(now[0]["seconds"] / before[0]["seconds"] for now, before in pairs), 2)
    if len(ours[-1]) == 4:
        middle = ours[-1][2]
        result["per_user_growth"] = round(largest["seconds"] / largest["users"] / (middle["seconds"] / middle["users"]), 3)
    return result


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--users", type=int, default=100_000)
    parser.add_argument("--items", type=int, default=50_000)
    parser.add_argument("--k", type=int, default=200, help="MLlib's list length; the night's candidates")
    parser.add_argument("--before", help="commit whose build is measured beside this one")
    parser.add_argument("--rounds", type=int, default=2)
    parser.add_argument("--events-per-user", type=int, default=20)
    parser.add_argument("--mllib-users", type=int, default=20_000)
    parser.add_argument("--train-seconds", type=float, default=60)
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--growth", help="comma-separated numbers of users: a chart instead of the comparison")
    parser.add_argument("--set", action="append", default=["model.embedding_dim=64"], metavar="SECTION.KEY=VALUE")
    arguments = parser.parse_args()
    arguments.set.append(f"retrieval.n_candidates={arguments.k}")
    settings = {key: value for key, value in vars(arguments).items() if key != "growth"}
    with scratch_folder("bench-night-") as folder:
        if arguments.growth:
            _, *nights = run_nights(ROOT, [int(part) for part in arguments.growth.split(",")], arguments, folder)
            chart(nights, ROOT / "benchmarks" / "results" / "night_growth.png")
            report("night_growth", settings, {"runs": nights}, growth(nights))
            return
        runs = compare(arguments, folder)
        items = np.load(folder / "items.npy")
        users = np.random.default_rng(arguments.seed).normal(size=(arguments.mllib_users, items.shape[1])).astype(np.float32)
        mllib = measure_mllib(users, items, arguments.k, arguments.set)
    result = summarize(runs)
    result |= {"mllib_users_per_s": round(mllib.users_per_s, 1), "mllib_blas": mllib.blas}
    result["night_vs_mllib"] = round(result["night_users_per_s"] / mllib.users_per_s, 2)
    report("night", settings, {"runs": runs}, result)


if __name__ == "__main__":
    main()
