"""Benchmark the quality of the reference model: popularity, EASE, the towers alone and both stages on the same splits.

MovieLens-100K with a random and a temporal fifth of every user's events as the test, and made-up sparse events without times. EASE
(Steck 2019) is plain numpy; its lambda is chosen on a validation part of the training events, as the model's own settings are.

    python benchmarks/model_quality.py [--only random,temporal,sparse] [--max-seconds 600]
"""

import argparse
import datetime as dt
import json
import os
import platform
import subprocess
import tempfile
import time
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa

from recsys_batch.config import Config, load_config
from recsys_batch.dataset import synthetic
from recsys_batch.evaluation.metrics import evaluate_lists
from recsys_batch.model.ranker import Ranker
from recsys_batch.model.towers import Towers
from recsys_batch.model.training import train_bundle
from recsys_batch.model.training_data import Positives, prepare_training_data
from recsys_batch.model.validation_split import split_positives
from recsys_batch.ranking.features import FeatureSpec, compute_pair_features
from recsys_batch.ranking.top_k import select_top_k_per_row
from recsys_batch.registry.bundle import Bundle

ROOT = Path(__file__).parent.parent
SEED = 0
LAMBDAS = (50.0, 100.0, 200.0, 400.0, 800.0, 1600.0)
N_CANDIDATES = 200
METRICS = ("recall_at_20", "ndcg_at_20", "recall_at_10", "ndcg_at_10", "coverage_at_20")
Scorer = Callable[[np.ndarray], np.ndarray]


@dataclass(frozen=True)
class Problem:
    """Training tables, and each user's test items as codes of ``items``; -1 for items without training events."""

    name: str
    interactions: pa.Table
    items: pa.Table
    test_users: np.ndarray
    test_items: np.ndarray


def movielens(folder: Path, kind: str) -> Problem:
    """Split MovieLens: every rating is positive, a fifth of each user's ratings is the test."""
    rows = np.array([[int(part) for part in line.split("\t")] for line in (folder / "ml-100k.inter").read_text().splitlines()[1:]])
    users, items, seconds = rows[:, 0], rows[:, 1], rows[:, 3]
    return _problem(f"ml-100k {kind}", users, items, seconds if kind == "temporal" else None, _a_fifth(users, seconds, kind))


def sparse(n_users: int, n_items: int, n_events: int) -> Problem:
    """Generate events without times: about n_events / n_users for each user, by a power law."""
    world = synthetic.World(n_users, n_items, n_events, SEED)
    table = synthetic.make_interactions(world, np.arange(1, n_users + 1))
    pairs = np.unique(np.stack([table["user_id"].to_numpy(), table["item_id"].to_numpy()]), axis=1)
    return _problem(f"sparse {n_users}x{n_items}", pairs[0], pairs[1], None, _a_fifth(pairs[0], pairs[1], "random"))


def _a_fifth(users: np.ndarray, seconds: np.ndarray, kind: str) -> np.ndarray:
    """Select the newest (or random) fifth of each user's rows, bool per row."""
    key = np.random.default_rng(SEED).random(len(users)) if kind == "random" else -seconds
    order = np.lexsort((key, users))
    counts = np.unique(users[order], return_counts=True)[1]
    positions = np.arange(len(users)) - np.repeat(np.cumsum(counts) - counts, counts)
    test = np.zeros(len(users), dtype=bool)
    test[order] = positions < np.repeat(counts // 5, counts)
    return test


def _problem(name: str, users: np.ndarray, items: np.ndarray, seconds: np.ndarray | None, test: np.ndarray) -> Problem:
    kept = ~test
    stamps = pa.nulls(int(kept.sum()), pa.int64()) if seconds is None else pa.array(seconds[kept] * 1_000_000)
    columns = {"user_id": users[kept], "item_id": items[kept], "event_ts": stamps.cast(pa.timestamp("us", "UTC"))}
    interactions = pa.table({**columns, "weight": np.ones(kept.sum(), dtype=np.float32)})
    ids = np.unique(items[kept])
    nothing = {
        "categories": pa.array([[]] * len(ids), pa.list_(pa.string())),
        "attributes": pa.array([[]] * len(ids), pa.map_(pa.string(), pa.string())),
    }
    user_ids = np.unique(users[kept])
    known = np.isin(users, user_ids) & test
    code = np.searchsorted(ids, items[known]).clip(max=len(ids) - 1)
    codes = np.where(ids[code] == items[known], code, -1)
    return Problem(name, interactions, pa.table({"item_id": ids, **nothing}), np.searchsorted(user_ids, users[known]), codes)


def quality(problem: Problem, seen: Positives, scorer: Scorer) -> dict[str, float]:
    """Average metrics over users with a test item; items without training events count as missed."""
    n = len(problem.items)
    lists = []
    for at in range(0, seen.n_users, 500):
        part = np.arange(at, min(at + 500, seen.n_users))
        scores = scorer(part)
        histories = seen.select_users(part)
        scores[histories.rows, histories.codes] = -np.inf
        lists.append(select_top_k_per_row(scores.astype(np.float32), 20)[1])
    order = np.argsort(problem.test_users, kind="stable")
    offsets = np.searchsorted(problem.test_users[order], np.arange(seen.n_users + 1))
    missed = problem.test_items[order] < 0
    codes = np.where(missed, n + np.cumsum(missed), problem.test_items[order])
    counts = np.concatenate([seen.item_counts, np.zeros(int(missed.sum()) + 1, dtype=np.int64)])
    result = evaluate_lists(np.concatenate(lists), offsets, codes, counts, (10, 20))
    return {name: round(result[name], 4) for name in METRICS}


def ease(problem: Problem, seen: Positives) -> tuple[Scorer, float]:
    """Fit EASE; return its scorer and lambda."""
    train_part, held, _ = split_positives(seen, 0.1)
    check = Problem("", problem.interactions, problem.items, held.rows, held.codes)
    ndcg_by_ridge = {ridge: quality(check, train_part, _ease(train_part, ridge))["ndcg_at_20"] for ridge in LAMBDAS}
    best = max(ndcg_by_ridge, key=lambda ridge: ndcg_by_ridge[ridge])
    return _ease(seen, best), best


def _ease(seen: Positives, ridge: float) -> Scorer:
    gram = np.zeros((seen.n_items, seen.n_items), dtype=np.float32)
    for at in range(0, seen.n_users, 2_000):
        X = _dense(seen, np.arange(at, min(at + 2_000, seen.n_users)))
        gram += X.T @ X
    P = np.linalg.inv(gram + ridge * np.eye(seen.n_items, dtype=np.float32))
    B = P / -np.diag(P)
    np.fill_diagonal(B, 0.0)
    return lambda part: _dense(seen, part) @ B


def _dense(seen: Positives, part: np.ndarray) -> np.ndarray:
    histories = seen.select_users(part)
    X = np.zeros((len(part), seen.n_items), dtype=np.float32)
    X[histories.rows, histories.codes] = 1.0
    return X


def stages(bundle: Bundle, problem: Problem, seen: Positives, has_time: bool) -> tuple[Scorer, Scorer]:
    """Evaluate the towers alone, and with the ranker over their best unseen N_CANDIDATES; histories are cut as in a night."""
    towers, ranker, spec = Towers.from_bundle(bundle), Ranker.from_bundle(bundle), FeatureSpec.from_dict(bundle.manifest["features"])
    vectors = towers.encode_items(problem.items)

    def users(part: np.ndarray) -> np.ndarray:
        histories = seen.select_users(part)
        newest = histories.where(histories.positions < towers.history_length)
        nothing: list[Any] = [None] * len(part)
        stamps = newest.event_us if has_time else None
        return towers.encode_users(
            newest.codes, newest.offsets, stamps, np.ones(len(newest.codes), np.float32), nothing, nothing, vectors.history
        )

    def alone(part: np.ndarray) -> np.ndarray:
        return np.asarray(users(part) @ vectors.embeddings.T)

    def both(part: np.ndarray) -> np.ndarray:
        embeddings, histories = users(part), seen.select_users(part)
        scores = embeddings @ vectors.embeddings.T
        scores[histories.rows, histories.codes] = -np.inf
        best, codes = select_top_k_per_row(scores, N_CANDIDATES)
        popularity = vectors.log_popularity[codes]
        retrieval = np.where(np.isfinite(best), best, 0.0).astype(np.float32)
        features = compute_pair_features(spec, retrieval_score=retrieval, log_popularity=popularity, n_events=histories.counts)
        ranked = ranker.score(embeddings, vectors.embeddings[codes], features)
        result = np.full(scores.shape, -np.inf, dtype=np.float32)
        np.put_along_axis(result, codes, ranked, axis=1)
        return result

    return alone, both


def measure(problem: Problem, config: Config) -> dict[str, Any]:
    data = prepare_training_data(problem.interactions, problem.items, None, config)
    seen, counts = data.positives, data.positives.item_counts.astype(np.float32)
    began = time.perf_counter()
    with tempfile.TemporaryDirectory() as folder:
        bundle = train_bundle(problem.interactions, problem.items, None, config, Path(folder), lambda *_: None)
        seconds = time.perf_counter() - began
        alone, both = stages(bundle, problem, seen, data.has_time)
        result: dict[str, Any] = {"towers": quality(problem, seen, alone), "two_stage": quality(problem, seen, both)}
    began = time.perf_counter()
    best, ridge = ease(problem, seen)
    result |= {"ease": quality(problem, seen, best), "popularity": quality(problem, seen, lambda part: np.tile(counts, (len(part), 1)))}
    sizes = {"users": seen.n_users, "items": seen.n_items, "train": len(seen.codes), "test": len(problem.test_items)}
    model = {**bundle.manifest["model"], "train_seconds": round(seconds, 1), "validation": bundle.manifest["metrics"]}
    return {**result, "sizes": sizes, "model": model, "ease_lambda": ridge, "ease_seconds": round(time.perf_counter() - began, 1)}


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--data", type=Path, default=ROOT / "data" / "ml-100k", help="folder with ml-100k.inter")
    parser.add_argument("--only", default="random,temporal,sparse")
    parser.add_argument("--sparse", type=int, nargs=3, default=(8_000, 5_000, 200_000), metavar=("USERS", "ITEMS", "EVENTS"))
    parser.add_argument("--set", action="append", default=[], metavar="SECTION.KEY=VALUE")
    parser.add_argument("--output", type=Path, default=ROOT / "benchmarks" / "results" / "model_quality.json")
    arguments = parser.parse_args()
    config = load_config(None, arguments.set)
    results = {}
    for name in arguments.only.split(","):
        problem = sparse(*arguments.sparse) if name == "sparse" else movielens(arguments.data, name)
        results[problem.name] = measure(problem, config)
        for who in ("popularity", "ease", "towers", "two_stage"):
            print(f"{problem.name:20} {who:10} {results[problem.name][who]}", flush=True)
    commit = subprocess.run(["git", "describe", "--always", "--dirty"], cwd=ROOT, capture_output=True, text=True).stdout.strip()
    machine = {"cpu": platform.processor() or platform.machine(), "cores": os.cpu_count(), "python": platform.python_version()}
    document = {
        "benchmark": "model_quality",
        "date": dt.date.today().isoformat(),
        "commit": commit,
        "machine": machine,
        "seed": config.training.seed,
        "settings": arguments.set,
        "results": results,
    }
    arguments.output.parent.mkdir(parents=True, exist_ok=True)
    arguments.output.write_text(json.dumps(document, indent=2) + "\n", encoding="utf-8")
    print(
        "RESULT "
        + json.dumps(
            {name: {model: metrics[model] for model in ("popularity", "ease", "towers", "two_stage")} for name, metrics in results.items()}
        )
    )


if __name__ == "__main__":
    main()
