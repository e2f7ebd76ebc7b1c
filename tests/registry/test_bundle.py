"""A bundle is loaded only when it is whole, of this format, and unaltered."""

import json
import pickle
from pathlib import Path

import numpy as np
import pytest

from recsys_batch.errors import BundleError
from recsys_batch.registry.bundle import BUNDLE_MANIFEST, RANKER_FILE, VOCAB_FILE, WEIGHTS_FILE, Bundle, load_bundle, write_bundle
from recsys_batch.storage.checksums import sha256_file


@pytest.fixture
def bundle(tmp_path: Path) -> Bundle:
    manifest = {"kind": "two_tower", "embedding_dim": 3, "metrics": {"ndcg_at_10": 0.5}}
    tensors = {"w": np.arange(6, dtype=np.float32).reshape(2, 3)}
    return write_bundle(tmp_path / "b", manifest, tensors=tensors, vocab={"item_id": ["a", "é"]}, ranker_onnx=b"onnx")


def test_what_is_written_is_what_is_loaded(bundle: Bundle) -> None:
    loaded = load_bundle(bundle.path)
    assert (loaded.kind, loaded.embedding_dim, loaded.digest) == ("two_tower", 3, bundle.digest)
    np.testing.assert_array_equal(loaded.tensors["w"], [[0, 1, 2], [3, 4, 5]])
    assert loaded.vocab == {"item_id": ["a", "é"]}
    assert loaded.ranker_path is not None and loaded.ranker_path.read_bytes() == b"onnx"


@pytest.mark.parametrize("name", [WEIGHTS_FILE, VOCAB_FILE, RANKER_FILE])
def test_one_changed_byte_is_refused(bundle: Bundle, name: str) -> None:
    content = bytearray((bundle.path / name).read_bytes())
    content[-1] ^= 1
    (bundle.path / name).write_bytes(bytes(content))
    with pytest.raises(BundleError, match=f"{name}: checksum"):
        load_bundle(bundle.path)


def test_a_missing_file_is_refused(bundle: Bundle) -> None:
    (bundle.path / WEIGHTS_FILE).unlink()
    with pytest.raises(BundleError, match="lacks weights"):
        load_bundle(bundle.path)


def test_a_folder_whose_writing_was_cut_short_is_refused(bundle: Bundle) -> None:
    (bundle.path / BUNDLE_MANIFEST).unlink()
    with pytest.raises(BundleError, match="cut short"):
        load_bundle(bundle.path)


@pytest.mark.parametrize(
    ("change", "words"),
    [
        ({"format_version": 99}, "format version 99"),
        ({"format": "other"}, "not a recsys_batch.bundle"),
        ({"kind": "magic"}, "kind 'magic'"),
        ({"files": {"../../etc/passwd": {"sha256": "0", "bytes": 0}}}, "leaves the bundle's folder"),
    ],
)
def test_a_foreign_manifest_is_refused(bundle: Bundle, change: dict[str, object], words: str) -> None:
    path = bundle.path / BUNDLE_MANIFEST
    path.write_text(json.dumps({**json.loads(path.read_text()), **change}))
    with pytest.raises(BundleError, match=words):
        load_bundle(bundle.path)


class _Bomb:
    def __reduce__(self) -> tuple[object, tuple[str]]:
        return (Path.touch, (Path("exploded"),))  # type: ignore[return-value]


def test_a_pickle_in_place_of_weights_is_never_executed(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    folder = write_bundle(tmp_path / "b", {"kind": "two_tower", "embedding_dim": 3}, tensors={"w": np.ones(2, np.float32)}).path
    (folder / WEIGHTS_FILE).write_bytes(pickle.dumps(_Bomb()))
    manifest = json.loads((folder / BUNDLE_MANIFEST).read_text())
    manifest["files"][WEIGHTS_FILE]["sha256"] = sha256_file(folder / WEIGHTS_FILE)
    (folder / BUNDLE_MANIFEST).write_text(json.dumps(manifest))
    with pytest.raises(BundleError, match="not a readable safetensors"):
        _ = load_bundle(folder).tensors
    assert not (tmp_path / "exploded").exists()
