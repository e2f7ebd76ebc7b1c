"""Benchmark gradient steps of the towers in one process, and in two under pyspark's TorchDistributor (local mode, gloo), same batches.

A step is the product's: pooled histories, sampled softmax, Adam, or SparseAdam where the catalogue is large. The processes of the
distributed run split each batch of users and average gradients (DistributedDataParallel); they have a core each, the single one has all.

    python benchmarks/torch_distributor.py [--items 50000,200000] [--steps 20]
"""

import argparse
import os
import time
from pathlib import Path
from typing import Any

from measuring import ROOT, report

BATCH_USERS, EVENTS_PER_USER, DIM, NEGATIVES = 512, 20, 64, 4_096


def run_steps(root: str, n_items: int, n_steps: int) -> dict[str, Any]:
    """Run steps in this process, or in this one of a distributed run; returns users per second of all processes, and the last loss."""
    import sys

    sys.path.insert(0, root)
    import numpy as np
    import torch
    import torch.distributed as dist

    from recsys_batch.model.content_tokens import ContentTokens
    from recsys_batch.model.tower_parameters import TowerParameters
    from recsys_batch.model.tower_training import make_optimizers
    from recsys_batch.model.training_data import Positives

    n_processes = int(os.environ.get("WORLD_SIZE", "1"))
    torch.set_num_threads(max((os.cpu_count() or 1) // n_processes, 1))
    if n_processes > 1:
        dist.init_process_group("gloo")
    rank, n_users = int(os.environ.get("RANK", "0")), BATCH_USERS // n_processes
    generator = torch.Generator().manual_seed(1)
    history, embedding = (0.1 * torch.randn(n_items, DIM - 1, generator=generator) for _ in range(2))

    class Towers(torch.nn.Module):
        def __init__(self) -> None:
            super().__init__()
            tensors = (history, embedding, torch.zeros(n_items, 1), torch.zeros(DIM - 1), torch.zeros(0, DIM - 1))
            self.weights = torch.nn.ParameterList(tensors)

        def parameters_of_towers(self) -> TowerParameters:
            return TowerParameters(*self.weights, recency=0.3)

        def forward(self, codes: np.ndarray, offsets: np.ndarray, sampled: np.ndarray, columns: np.ndarray) -> torch.Tensor:
            towers = self.parameters_of_towers()
            inputs = Positives(n_items, offsets, codes, codes)
            users = towers.encode_users(inputs, ContentTokens.empty(n_users), np.arange(n_users))
            logits = towers.score_sampled_items(users, torch.from_numpy(sampled))
            return torch.nn.functional.cross_entropy(logits, torch.from_numpy(columns))

    module = Towers()
    model = torch.nn.parallel.DistributedDataParallel(module, find_unused_parameters=True) if n_processes > 1 else module
    towers = module.parameters_of_towers()
    optimizers = make_optimizers(towers, 1e-3)
    rng, loss, started = np.random.default_rng(5), torch.zeros(()), 0.0
    for step in range(n_steps + 2):
        if step == 2:  # after the first allocations
            started = time.perf_counter()
        codes = rng.integers(0, n_items, (BATCH_USERS, EVENTS_PER_USER + 1))[rank * n_users : (rank + 1) * n_users]
        sampled = np.unique(np.concatenate([codes[:, 0], rng.integers(0, n_items, NEGATIVES)]))
        offsets = np.arange(n_users + 1) * EVENTS_PER_USER
        loss = model(codes[:, 1:].ravel(), offsets, sampled, np.searchsorted(sampled, codes[:, 0]))
        for optimizer in optimizers:
            optimizer.zero_grad()
        loss.backward()
        for optimizer in optimizers:
            optimizer.step()
    elapsed = time.perf_counter() - started
    if n_processes > 1:
        dist.destroy_process_group()
    return {"users_per_s": round(n_steps * BATCH_USERS / elapsed), "ms_per_step": round(1000 * elapsed / n_steps, 1), "loss": float(loss)}


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--items", default="50000,250000")
    parser.add_argument("--steps", type=int, default=20)
    parser.add_argument("--output", type=Path)
    options = parser.parse_args()
    from pyspark.ml.torch.distributor import TorchDistributor

    from recsys_batch.config import load_config
    from recsys_batch.spark.session import get_session

    settings = [
        f"paths.jars={ROOT}/.jars",
        "spark.master=local[2]",
        "spark.conf.spark.driver.memory=1g",
        "spark.conf.spark.ui.enabled=false",
    ]
    session = get_session(load_config(None, settings))
    details: dict[str, Any] = {}
    for n_items in map(int, options.items.split(",")):
        arguments = (str(ROOT), n_items, options.steps)
        before = run_steps(*arguments)
        started = time.perf_counter()
        two = TorchDistributor(num_processes=2, local_mode=True, use_gpu=False).run(run_steps, *arguments)
        two["start_and_end_s"] = round(time.perf_counter() - started - two["ms_per_step"] * options.steps / 1000, 1)
        after = run_steps(*arguments)  # on both sides, as the machine may have become busier
        details[str(n_items)] = {"one_process": max(before, after, key=lambda found: found["users_per_s"]), "two_processes": two}
        print(f"  {n_items} items: {details[str(n_items)]}", flush=True)
    session.stop()
    result = {n: round(found["two_processes"]["users_per_s"] / found["one_process"]["users_per_s"], 2) for n, found in details.items()}
    report("torch_distributor", {"items": options.items, "steps": options.steps}, details, {"speed_up_by_items": result}, options.output)


if __name__ == "__main__":
    main()
