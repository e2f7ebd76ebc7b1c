"""Run whole nights on workers that have the extra [executor] alone, and compare them with full ones: `make executor-test`.

The workers' environment (.executor) has no torch, MLflow, matplotlib, pandas or pyspark; Spark brings its own Python side. The driver has
everything. Fails unless the light night chooses ONNX Runtime by itself, has the same embeddings and candidates bit for bit, and the same
lists with scores within 1e-6; and unless a night that insists on torch is refused.
"""

from __future__ import annotations

import datetime as dt
import os
import shutil
import subprocess
import sys
import tempfile
from pathlib import Path

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc

from recsys_batch import read
from recsys_batch.config import load_config
from recsys_batch.model.onnx_export import export_ranker_onnx
from recsys_batch.registry.bundle import RANKER_PREFIX, write_bundle
from recsys_batch.registry.mlflow_registry import ModelRegistry
from recsys_batch.tables.run_manifest import SCORED_BY_ONNX

ROOT = Path(__file__).parent.parent
ENVIRONMENT = ROOT / ".executor"
TOLERANCE = 1e-6
FULL, LIGHT, REFUSED = "2026-03-01", "2026-03-02", "2026-03-03"
_ABSENT = ("torch", "mlflow", "matplotlib", "pandas", "pyspark", "deltalake", "onnx")


def main() -> int:
    python = make_environment()
    with tempfile.TemporaryDirectory(prefix="executor-test-") as name:
        warehouse = Path(name) / "warehouse"
        places = {
            "paths.warehouse": warehouse,
            "paths.state": Path(name) / "state",
            "paths.jars": ROOT / ".jars",
            "model.embedding_dim": 64,
        }
        settings = [f"--set={key}={value}" for key, value in places.items()]
        run(["generate", *settings, "--users", "1000", "--items", "300", "--events", "20000", "--seed", "5"])
        run(["train", *settings])
        run(["register", *settings, "--bundle", str(open_gate(settings, Path(name)))])
        run(["nightly", *settings, "--run-date", FULL])
        print("a full night is published", flush=True)
        run(["nightly", *settings, "--run-date", LIGHT], workers=python)
        compare_nights(str(warehouse))
        told = run(["nightly", *settings, "--set=scoring.engine=torch", "--run-date", REFUSED], expected=2, workers=python)
        if "without torch" not in told:
            raise SystemExit(f"a night that insists on torch ended with 2 and said: {told[-1000:]}")
        print("a night that insists on torch is refused where workers lack it: exit code 2")
    print("executor test passed")
    return 0


def open_gate(settings: list[str], folder: Path) -> Path:
    """Write the champion's bundle once more with a ranker that says something; returns its folder.

    Training on so little may shut the ranker's gate; all engines give the retrieval score then, and agree in nothing else.
    """
    config = load_config(ROOT / "conf" / "smoke.toml", [setting.removeprefix("--set=") for setting in settings])
    registry = ModelRegistry(config)
    trained = registry.fetch(registry.require_champion().version, folder / "trained")
    output = RANKER_PREFIX + "output"
    drawn = np.random.default_rng(3).normal(size=trained.tensors[output].shape) * 0.1
    tensors = trained.tensors | {output: drawn.astype(np.float32)}
    write_bundle(folder / "opened", trained.manifest, tensors=tensors, vocab=trained.vocab, ranker_onnx=export_ranker_onnx(tensors))
    return folder / "opened"


def make_environment() -> Path:
    """Make the workers' environment, or bring its copy of this package up to date; returns its interpreter."""
    python, pip = ENVIRONMENT / "bin" / "python", [sys.executable, "-m", "pip", "--python", str(ENVIRONMENT / "bin" / "python")]
    if not python.exists():
        subprocess.run([sys.executable, "-m", "venv", "--without-pip", str(ENVIRONMENT)], check=True)
    with tempfile.TemporaryDirectory(prefix="executor-test-") as name:
        for part in ("setup.cfg", "setup.py", "pyproject.toml", "README.md", "LICENSE"):
            shutil.copy(ROOT / part, name)
        shutil.copytree(ROOT / "recsys_batch", Path(name) / "recsys_batch", ignore=shutil.ignore_patterns("__pycache__", "*.so"))
        install = [*pip, "install", "-q", "--disable-pip-version-check"]
        subprocess.run([*install, f"{name}[executor]"], check=True)
        subprocess.run([*install, "--no-deps", "--force-reinstall", name], check=True)
    ask = f"import importlib.util as u; print(*[name for name in {_ABSENT} if u.find_spec(name)])"
    there = subprocess.run([python, "-I", "-c", ask], check=True, capture_output=True, text=True).stdout.strip()
    if there:
        raise SystemExit(f"{ENVIRONMENT} has {there}: remove the folder and try again")
    return python


def run(arguments: list[str], expected: int = 0, workers: Path | None = None) -> str:
    """Run a command of the product with the driver's full environment; returns what it said.

    Args:
        workers: Python of the workers, by the variable: spark.pyspark.python is read by spark-submit alone. None: the driver's.
    """
    command = [sys.executable, "-m", "recsys_batch", *arguments, "--conf", str(ROOT / "conf" / "smoke.toml")]
    environment = {key: value for key, value in os.environ.items() if not key.startswith("PYSPARK_")}
    environment |= {} if workers is None else {"PYSPARK_PYTHON": str(workers)}
    done = subprocess.run(command, cwd=ROOT, env=environment, capture_output=True, text=True, timeout=900, check=False)
    if done.returncode != expected:
        raise SystemExit(f"{' '.join(command)} ended with {done.returncode}, not {expected}:\n{done.stdout[-2000:]}{done.stderr[-4000:]}")
    return done.stdout + done.stderr


def compare_nights(warehouse: str) -> None:
    """Compare the light night with the full one; raises SystemExit with what differs."""
    runs = {date: read.published_on(warehouse, dt.date.fromisoformat(date)) for date in (FULL, LIGHT)}
    engines = {date: run.metrics.get(SCORED_BY_ONNX) for date, run in runs.items()}
    if engines != {FULL: 0.0, LIGHT: 1.0}:
        raise SystemExit(f"expected torch for the full night and ONNX Runtime for the light one: {SCORED_BY_ONNX} is {engines}")
    tables = {
        (name, date): sort_rows(read.run_slice(warehouse, name, run))
        for name in ("user_embeddings", "candidates", "topk")
        for date, run in runs.items()
    }
    for name in ("user_embeddings", "candidates"):
        if not tables[name, FULL].equals(tables[name, LIGHT]):
            raise SystemExit(f"{name} of the light night are not those of the full one, bit for bit")
        print(f"{name}: {len(tables[name, FULL]):,} rows, the same bits")
    full, light = tables["topk", FULL], tables["topk", LIGHT]
    if not full.select(["user_id", "rank", "source"]).equals(light.select(["user_id", "rank", "source"])):
        raise SystemExit("topk of the light night has other users, lengths or sources than the full one's")
    scores, others = np.asarray(full["score"]), np.asarray(light["score"])
    apart = np.abs(scores - others) / np.maximum(np.abs(scores), 1)
    farthest = float(np.max(apart))
    if not 0 < farthest <= TOLERANCE:  # two engines have some other last bits; without, one scored both, or the ranker said nothing
        raise SystemExit(f"scores are up to {farthest:.2e} apart: expected above 0, and at most {TOLERANCE}")
    moved = np.flatnonzero(~np.asarray(pc.equal(full["item_id"], light["item_id"])))
    print(
        f"topk: {len(full):,} rows, scores at most {farthest:.1e} apart (relative to 1 or the score), "
        f"{np.count_nonzero(apart):,} with other last bits; {len(moved)} rows have another item, in the place of one as good within 1e-6"
    )


def sort_rows(table: pa.Table) -> pa.Table:
    """Sort a run's rows of a table, without what names the run."""
    own = [column for column in table.column_names if column not in ("run_id", "run_date", "generated_at")]
    order = [(column, "ascending") for column in ("user_id", "rank") if column in own]
    return table.select(own).sort_by(order).combine_chunks()


if __name__ == "__main__":
    sys.exit(main())
