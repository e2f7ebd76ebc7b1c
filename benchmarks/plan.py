"""Plans against what happens: nights at two sizes that the unit costs were not fitted on, and requests per second of a worker.

Nights of the first and the third size are run, and `plan --night` with what their manifests say is held against nights of the second and
the fourth, run as well. Sizes are a sixth, a third, a half and the whole of USERS.

    make bench-plan USERS=240000
"""

import argparse
import sys
import tempfile
from pathlib import Path
from typing import Any

import online_servers as servers
from measuring import ROOT, report
from night_process import RUN_DATE, Warehouse, trained_bundle
from online_runs import closed

from recsys_batch.model.onnx_export import export_ranker_onnx
from recsys_batch.model.ranker import RankerParameters
from recsys_batch.online.export.synthetic_snapshot import make_snapshot
from recsys_batch.online.snapshot.repository import set_current
from recsys_batch.plan import trial
from recsys_batch.plan.capacity import night_core_seconds
from recsys_batch.plan.installation import NightSample, costs_of_nights, night_samples
from recsys_batch.plan.trial import measure_unit_costs
from recsys_batch.plan.unit_costs import UnitCosts
from recsys_batch.ranking.features import FeatureSpec
from recsys_batch.read import run_rows
from recsys_batch.registry.bundle import select_ranker_weights
from recsys_batch.tables.run_manifest import latest_state_by_run

sys.path.insert(0, str(ROOT / "tools"))
from model_servers import free_ports


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--users", type=int, default=240_000)
    parser.add_argument("--items", type=int, default=50_000)
    parser.add_argument("--events-per-user", type=int, default=20)
    parser.add_argument("--train-seconds", type=float, default=30)
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--set", action="append", default=["model.embedding_dim=64"], metavar="SECTION.KEY=VALUE")
    arguments = parser.parse_args()
    sizes = [arguments.users // part for part in (6, 3, 2, 1)]
    with tempfile.TemporaryDirectory(prefix="bench-plan-") as name:
        folder = Path(name)
        trained_bundle(min(10_000, arguments.users), arguments.items, arguments, folder / "bundle")
        run_night(sizes[0], arguments, folder / "bundle")  # the session is warm for all
        samples = [run_night(size, arguments, folder / "bundle") for size in sizes]
        costs = measure_unit_costs(print)
        fitted = costs_of_nights([samples[0], samples[2]], costs)
        details: dict[str, Any] = {"nights": {}, "steps": {}}
        for sample in samples:
            seconds = {
                "predicted": night_seconds(sample, fitted),
                "real": sum(sample.core_seconds.values()),
                "by_the_trial_alone": night_seconds(sample, costs),
            }
            details["nights"][sample.users] = {name: round(value, 1) for name, value in seconds.items()}
            details["steps"][sample.users] = {step: round(seconds, 1) for step, seconds in sample.core_seconds.items()}
            print(sample.users, details["nights"][sample.users], flush=True)
        qps = measure_qps(folder)
    result: dict[str, Any] = {
        f"night_error_{number}": round(error(night_seconds(sample, fitted), sum(sample.core_seconds.values())), 3)
        for number, sample in enumerate((samples[1], samples[3]), 1)
    }
    result |= {"qps_error": round(error(1 / costs.rank, qps), 3), "qps_predicted": round(1 / costs.rank), "qps_real": round(qps)}
    report("plan", {**vars(arguments), "sizes": sizes}, details, result)


def run_night(n_users: int, arguments: argparse.Namespace, bundle: Path) -> NightSample:
    """Run a night of a size; what its manifest says."""
    warehouse = Warehouse(n_users, arguments.items, arguments.events_per_user, arguments.seed, arguments.set, bundle)
    try:
        warehouse.command("nightly", "--run-date", RUN_DATE)
        (sample,) = night_samples(latest_state_by_run(run_rows(str(warehouse.folder / "warehouse"))).values())
        return sample
    finally:
        warehouse.remove()


def night_seconds(sample: NightSample, units: UnitCosts) -> float:
    """Compute the core-seconds that a plan gives a night, without its snapshot."""
    return sum(night_core_seconds(sample.users, sample.items, trial.DIM, units, trial.DIM).values())


def error(predicted: float, real: float) -> float:
    return predicted / real - 1


def measure_qps(folder: Path) -> float:
    """Measure the requests per second of a worker that has no more work than it can do, by wrk."""
    arrays = RankerParameters.initialize(trial.DIM, len(FeatureSpec.default().names), 0).to_arrays()
    sizes = {"users": trial.N_USERS, "items": trial.N_ITEMS, "dim": trial.DIM, "candidates": trial.N_CANDIDATES}
    make_snapshot(folder / "snapshots", ranker=export_ranker_onnx(arrays), ranker_weights=select_ranker_weights(arrays), **sizes)
    set_current(folder / "snapshots", "made-up")
    with servers.ours(folder / "snapshots", folder, free_ports(), workers=1) as server:
        closed(server, 8, 3.0, trial.N_USERS)
        return closed(server, 8, 8.0, trial.N_USERS)["qps"]


if __name__ == "__main__":
    main()
