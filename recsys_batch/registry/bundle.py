"""The model bundle: a folder of JSON, safetensors and ONNX with checksums. Data, not code: loading never unpickles.

``bundle.json`` is written last and names every other file with its SHA-256, so a half-written folder is never a bundle.
"""

import hashlib
import json
from collections.abc import Mapping
from dataclasses import dataclass, field
from functools import cached_property
from pathlib import Path
from typing import Any

import numpy as np
from safetensors import SafetensorError
from safetensors.numpy import load_file

from recsys_batch.errors import BundleError
from recsys_batch.storage.checksums import sha256_file
from recsys_batch.storage.tensor_files import write_tensors

BUNDLE_FORMAT = "recsys_batch.bundle"
FORMAT_VERSION = 1
BUNDLE_MANIFEST = "bundle.json"
WEIGHTS_FILE = "weights.safetensors"
VOCAB_FILE = "vocab.json"
RANKER_FILE = "ranker.onnx"
RANKER_PREFIX = "ranker_"
"""Of the names of the reference ranker's tensors."""
KINDS = ("two_tower", "embeddings")


@dataclass(frozen=True)
class Bundle:
    """A bundle on disk whose checksums were verified.

    ``manifest`` is the parsed ``bundle.json``: kind, embedding_dim, features, model, metrics, tables, files; ``digest`` its hex
    SHA-256, which identifies the content, as it names every file's checksum.
    """

    path: Path
    manifest: Mapping[str, Any] = field(repr=False)
    digest: str

    @property
    def kind(self) -> str:
        return str(self.manifest["kind"])

    @property
    def embedding_dim(self) -> int:
        return int(self.manifest["embedding_dim"])

    @property
    def ranker_path(self) -> Path | None:
        return self.path / RANKER_FILE if RANKER_FILE in self.manifest["files"] else None

    @cached_property
    def tensors(self) -> dict[str, np.ndarray]:
        """All named arrays of ``weights.safetensors`` (empty where the bundle has none)."""
        if WEIGHTS_FILE not in self.manifest["files"]:
            return {}
        try:
            return dict(load_file(self.path / WEIGHTS_FILE))
        except (SafetensorError, ValueError) as error:
            raise BundleError(f"{self.path / WEIGHTS_FILE} is not a readable safetensors file: {error}") from None

    @property
    def ranker_weights(self) -> dict[str, np.ndarray] | None:
        """The reference ranker's weights by their names without RANKER_PREFIX; None where the bundle's ranker is another one."""
        weights = select_ranker_weights(self.tensors)
        return weights if self.kind == "two_tower" and weights else None

    @cached_property
    def vocab(self) -> dict[str, Any]:
        """The id lists and category names that the weights' rows stand for (empty where the bundle has none)."""
        if VOCAB_FILE not in self.manifest["files"]:
            return {}
        return dict(json.loads((self.path / VOCAB_FILE).read_text(encoding="utf-8")))


def select_ranker_weights(tensors: Mapping[str, np.ndarray]) -> dict[str, np.ndarray]:
    """Select the reference ranker's weights among a bundle's tensors, by their names without RANKER_PREFIX."""
    return {name.removeprefix(RANKER_PREFIX): array for name, array in tensors.items() if name.startswith(RANKER_PREFIX)}


def write_bundle(
    directory: Path,
    manifest: Mapping[str, Any],
    *,
    tensors: Mapping[str, np.ndarray] | None = None,
    vocab: Mapping[str, Any] | None = None,
    ranker_onnx: bytes | None = None,
) -> Bundle:
    """Write a bundle into ``directory`` (made if needed) and return it loaded.

    Args:
        manifest: must hold ``kind`` (one of KINDS) and ``embedding_dim``; anything JSON may be added.
        tensors: named arrays, stored in their own dtypes.
        vocab: JSON-able lists that name the rows of the tensors.
        ranker_onnx: a serialised ONNX model.
    """
    directory.mkdir(parents=True, exist_ok=True)
    written: list[str] = []
    if tensors is not None:
        write_tensors(directory / WEIGHTS_FILE, tensors)
        written.append(WEIGHTS_FILE)
    if vocab is not None:
        (directory / VOCAB_FILE).write_text(json.dumps(vocab, ensure_ascii=False), encoding="utf-8")
        written.append(VOCAB_FILE)
    if ranker_onnx is not None:
        (directory / RANKER_FILE).write_bytes(ranker_onnx)
        written.append(RANKER_FILE)
    files = {name: {"sha256": sha256_file(directory / name), "bytes": (directory / name).stat().st_size} for name in written}
    document = {"format": BUNDLE_FORMAT, "format_version": FORMAT_VERSION, **manifest, "files": files}
    (directory / BUNDLE_MANIFEST).write_text(json.dumps(document, indent=2, sort_keys=True, ensure_ascii=False), encoding="utf-8")
    return load_bundle(directory)


def load_bundle(directory: str | Path) -> Bundle:
    """Read and verify a bundle; raises BundleError: no manifest, another format or version, a file missing or its checksum differing."""
    path = Path(directory)
    manifest_path = path / BUNDLE_MANIFEST
    if not manifest_path.is_file():
        raise BundleError(f"{path} has no {BUNDLE_MANIFEST}: it is not a bundle, or its writing was cut short")
    raw = manifest_path.read_bytes()
    try:
        manifest = json.loads(raw)
    except ValueError as error:
        raise BundleError(f"{manifest_path} is not JSON: {error}") from None
    _check_manifest(manifest_path, manifest)
    for name, expected in manifest["files"].items():
        if Path(name).name != name:
            raise BundleError(f"{manifest_path} names the file {name!r}, which leaves the bundle's folder")
        if not (path / name).is_file():
            raise BundleError(f"{path} lacks {name}, which its manifest names")
        checksum = sha256_file(path / name)
        if checksum != expected["sha256"]:
            raise BundleError(f"{path / name}: checksum {checksum[:12]}..., manifest says {expected['sha256'][:12]}...: damaged or altered")
    return Bundle(path=path, manifest=manifest, digest=hashlib.sha256(raw).hexdigest())


def _check_manifest(path: Path, manifest: Any) -> None:
    if not isinstance(manifest, dict) or manifest.get("format") != BUNDLE_FORMAT:
        raise BundleError(f"{path} is not a {BUNDLE_FORMAT} manifest")
    if manifest.get("format_version") != FORMAT_VERSION:
        raise BundleError(f"{path} has format version {manifest.get('format_version')!r}; this release reads {FORMAT_VERSION}")
    missing = [key for key in ("kind", "embedding_dim", "files") if key not in manifest]
    if missing:
        raise BundleError(f"{path} lacks {', '.join(missing)}")
    if manifest["kind"] not in KINDS:
        raise BundleError(f"{path} has kind {manifest['kind']!r}; known kinds: {', '.join(KINDS)}")
