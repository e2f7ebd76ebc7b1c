"""A folder that a model server starts from: the ranker, what runs it there, a README with the commands, and an example to try."""

from __future__ import annotations

import datetime as dt
import json
import shutil
import subprocess
import zipfile
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from pathlib import Path
from string import Template
from typing import Any

import numpy as np

from recsys_batch.errors import RecsysBatchError, UsageError
from recsys_batch.model_servers.ranker_model import ExportableRanker
from recsys_batch.ranking.onnx_ranker import INPUTS, OUTPUT
from recsys_batch.registry.bundle import RANKER_FILE
from recsys_batch.storage.atomic import make_draft_folder, publish

_FILES = Path(__file__).parent / "files"
_TENSORFLOW_SECONDS = 600
_OPEN_INFERENCE = ("triton", "mlserver")


@dataclass(frozen=True)
class ServerBatching:
    """How a server joins requests that wait, where it can.

    Attributes:
        size: most requests of a batch; 1 for none. delay_ms: how long one waits for others.
    """

    size: int = 1
    delay_ms: int = 1


def export_model(
    model: ExportableRanker, target: str, out: Path, batching: ServerBatching, tensorflow_python: str | None = None
) -> list[str]:
    """Write a folder for one of TARGETS; the paths of its files.

    Args:
        tensorflow_python: an interpreter that has TensorFlow, which writes a SavedModel.

    Raises:
        UsageError: ``out`` holds something already, or the target needs what is not given. RecsysBatchError: TensorFlow failed.
    """
    if out.exists() and (not out.is_dir() or any(out.iterdir())):
        raise UsageError(f"{out} is there already and not empty: an export is never written over another, as a server may have it open")
    with make_draft_folder(out.absolute().parent, f".{out.name}-") as draft:
        values = _template_values(model, batching)
        if target == "tfserving":
            _write_saved_model(model, draft, tensorflow_python)
        else:
            _WRITERS[target](model, draft, values)
        _fill_template(_FILES / target / "README.md", draft / "README.md", {**values, "interface": _describe_interface(model, target)})
        _write_json(draft / "example_request.json", _example_request(model, target))
        _write_json(draft / "example_response.json", {OUTPUT: model.example[OUTPUT].tolist()})
        publish(draft, out)
    return sorted(str(path.relative_to(out)) for path in out.rglob("*") if path.is_file())


def _template_values(model: ExportableRanker, batching: ServerBatching) -> dict[str, Any]:
    return {
        "name": model.name,
        "version": model.version,
        "dim": model.dim,
        "n_features": model.n_features,
        "batch_size": batching.size,
        "delay_ms": batching.delay_ms,
        "delay_us": 1000 * batching.delay_ms,
    }


def _describe_interface(model: ExportableRanker, target: str) -> str:
    """Describe inputs and outputs as a table, with the types as the target's people call them."""
    kind = "FP32" if target in _OPEN_INFERENCE else "float32"
    shapes = dict(zip(INPUTS, (f"[B, {model.dim}]", f"[B, C, {model.dim}]", f"[B, C, {model.n_features}]"), strict=True))
    rows = [f"| input | `{name}` | {kind} | {shape} |" for name, shape in shapes.items()]
    rows.append(f"| output | `{OUTPUT}` | {kind} | [B, C], greater is better |")
    return "\n".join(["| | name | type | shape |", "|---|---|---|---|", *rows])


def _fill_template(template: Path, path: Path, values: Mapping[str, Any]) -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text(Template(template.read_text(encoding="utf-8")).substitute(values), encoding="utf-8")


def _write_json(path: Path, document: Any) -> None:
    path.write_text(json.dumps(document) + "\n", encoding="utf-8")


def _example_request(model: ExportableRanker, target: str) -> dict[str, Any]:
    """Build the example in the JSON that a target's server takes."""
    arrays = {name: model.example[name] for name in INPUTS}
    if target in _OPEN_INFERENCE:
        tensors = [(name, list(array.shape), array.ravel().tolist()) for name, array in arrays.items()]
        return {"inputs": [{"name": name, "datatype": "FP32", "shape": shape, "data": data} for name, shape, data in tensors]}
    columns = {name: array.tolist() for name, array in arrays.items()}
    return {"inputs": columns} if target == "tfserving" else columns


def _write_onnx(model: ExportableRanker, folder: Path, values: Mapping[str, Any]) -> None:
    shutil.copyfile(model.onnx_path, folder / RANKER_FILE)


def _write_torchserve(model: ExportableRanker, folder: Path, values: Mapping[str, Any]) -> None:
    """Write a model store with the archive, a zip of a manifest and what it names."""
    if values["batch_size"] > 1 and values["delay_ms"] == 0:
        raise UsageError("TorchServe takes a delay of 0 for its default, 100 ms: pass --batch-delay-ms 1 or more, or --batch-size 1")
    files = _FILES / "torchserve"
    manifest = {
        "createdOn": dt.datetime.now(dt.UTC).strftime("%d/%m/%Y %H:%M:%S"),
        "runtime": "python",
        "model": {
            "modelName": model.name,
            "modelVersion": model.version,
            "handler": "handler.py",
            "serializedFile": RANKER_FILE,
            "configFile": "model-config.yaml",
        },
        "archiverVersion": "0.12.0",
    }
    (folder / "model-store").mkdir()
    with zipfile.ZipFile(folder / "model-store" / f"{model.name}-{model.version}.mar", "w", zipfile.ZIP_DEFLATED) as archive:
        archive.writestr("MAR-INF/MANIFEST.json", json.dumps(manifest, indent=2))
        archive.writestr("handler.py", (files / "handler.py").read_text())
        archive.writestr("model-config.yaml", Template((files / "model-config.yaml").read_text()).substitute(values))
        archive.write(model.onnx_path, RANKER_FILE)
    _fill_template(files / "config.properties", folder / "config.properties", values)


def _write_triton(model: ExportableRanker, folder: Path, values: Mapping[str, Any]) -> None:
    """Write two model repositories: for Triton's ONNX Runtime backend, and for its Python backend."""
    onnx = {"backend": "onnxruntime", "kind": "KIND_AUTO", "n_instances": 1}
    python = {"backend": "python", "kind": "KIND_CPU", "n_instances": 2}
    for repository, backend, file in (("model-repository", onnx, "model.onnx"), ("model-repository-python", python, RANKER_FILE)):
        version = folder / repository / model.name / model.version
        _fill_template(_FILES / "triton" / "config.pbtxt", version.parent / "config.pbtxt", {**values, **backend})
        version.mkdir()
        shutil.copyfile(model.onnx_path, version / file)
        if backend is python:
            shutil.copyfile(_FILES / "triton" / "model.py", version / "model.py")


def _write_mlserver(model: ExportableRanker, folder: Path, values: Mapping[str, Any]) -> None:
    version = folder / model.name / model.version
    _fill_template(_FILES / "mlserver" / "model-settings.json", version / "model-settings.json", values)
    shutil.copyfile(_FILES / "mlserver" / "ranker_runtime.py", folder / "ranker_runtime.py")
    shutil.copyfile(_FILES / "mlserver" / "settings.json", folder / "settings.json")
    shutil.copyfile(model.onnx_path, version / RANKER_FILE)


def _write_saved_model(model: ExportableRanker, folder: Path, tensorflow_python: str | None) -> None:
    if tensorflow_python is None:
        raise UsageError(
            "a SavedModel is written by TensorFlow: pass --tensorflow-python, an interpreter that has it (pip install tensorflow)"
        )
    if not model.weights:
        raise UsageError(
            "the ranker is an ONNX model that was brought, and a SavedModel is made from the reference ranker's weights: "
            "export it for a server that runs ONNX (onnx, torchserve, triton, mlserver)"
        )
    weights, path = folder / "weights.npz", folder / model.name / model.version
    np.savez(weights, allow_pickle=False, **model.weights)
    command = [tensorflow_python, str(_FILES / "tfserving" / "save_model.py"), str(weights), str(path)]
    try:
        done = subprocess.run(command, capture_output=True, text=True, timeout=_TENSORFLOW_SECONDS, check=False)
    except (OSError, subprocess.TimeoutExpired) as error:
        raise RecsysBatchError(f"{tensorflow_python} did not write the SavedModel: {error}") from None
    if done.returncode != 0:
        last = (done.stderr.strip() or done.stdout.strip() or f"exit code {done.returncode}").splitlines()[-1]
        raise RecsysBatchError(f"{tensorflow_python} did not write the SavedModel: {last}")
    weights.unlink()


_WRITERS: dict[str, Callable[[ExportableRanker, Path, Mapping[str, Any]], None]] = {
    "onnx": _write_onnx,
    "torchserve": _write_torchserve,
    "triton": _write_triton,
    "mlserver": _write_mlserver,
}
