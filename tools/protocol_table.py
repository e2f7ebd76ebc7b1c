"""Print what model servers answer to the same requests, the tables of docs/online-protocol.md; ``--write`` puts them into the file.

    python tools/protocol_table.py [--write] [triton] [mlserver] [recsys_batch]      # asks those that are named; all

Ours is started on a small snapshot; Triton and MLServer (make servers) on models of the same names, inputs and outputs
(tools/protocol_peers). The column of a server that is not asked, or not installed, stays as it is in the document.
"""

from __future__ import annotations

import json
import os
import shutil
import subprocess
import sys
import tempfile
import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

from model_servers import NotInstalled, end_session, find, free_ports, get, running
from protocol_cases import COLUMNS, DOCUMENT, OURS, ask_all, put_into, read_cells, render
from protocol_requests import TEXTS, D, F, Target, is_ready_by_grpc

from recsys_batch.model.onnx_export import export_ranker_onnx
from recsys_batch.model.ranker import RankerParameters
from recsys_batch.online.export.synthetic_snapshot import make_snapshot
from recsys_batch.online.snapshot.repository import set_current

ROOT = Path(__file__).parent.parent
_START_SECONDS = 120


@contextmanager
def peer(name: str, scratch: Path) -> Iterator[Target]:
    """Run Triton or MLServer on the models of tools/protocol_peers. Raises NotInstalled: it is not here."""
    find(name)
    write = {"triton": _write_triton, "mlserver": _write_mlserver}[name]
    write(scratch / "export")
    with running(name, scratch / "export", "recommend", "1", scratch / "run") as started:
        yield Target(started.port, started.grpc_port)


_SIGNATURES: dict[str, tuple[list[tuple[str, str, list[int]]], list[tuple[str, str, list[int]]]]] = {
    "ranker": (
        [("user_embedding", "FP32", [-1, D]), ("item_embedding", "FP32", [-1, -1, D]), ("features", "FP32", [-1, -1, F])],
        [("score", "FP32", [-1, -1])],
    ),
    **{
        name: ([("user_id", datatype, [-1]), ("k", "INT32", [1])], [("item_id", "BYTES", [-1, -1]), ("score", "FP32", [-1, -1])])
        for name, datatype in (("recommend", "INT64"), (TEXTS, "BYTES"))
    },
}


def _write_triton(folder: Path) -> None:
    for model, (inputs, outputs) in _SIGNATURES.items():
        version = folder / "model-repository-python" / model / "1"
        version.mkdir(parents=True)
        shutil.copy(ROOT / "tools/protocol_peers/triton_model.py", version / "model.py")
        shutil.copy(ROOT / "tools/protocol_peers/answers.py", version / "answers.py")
        lines = ['backend: "python"', "max_batch_size: 0"]
        for kind, tensors in (("input", inputs), ("output", outputs)):
            for name, datatype, dims in tensors:
                optional = " optional: true" if name == "k" else ""
                data_type = f"TYPE_{'STRING' if datatype == 'BYTES' else datatype}"
                lines.append(f'{kind} [ {{ name: "{name}" data_type: {data_type} dims: {dims}{optional} }} ]')
        (version.parent / "config.pbtxt").write_text("\n".join(lines) + "\n")


def _write_mlserver(folder: Path) -> None:
    folder.mkdir(parents=True)
    (folder / "settings.json").write_text(json.dumps({"host": "127.0.0.1", "parallel_workers": 0}))
    for source in ("mlserver_runtime.py", "answers.py"):
        shutil.copy(ROOT / "tools/protocol_peers" / source, folder / source)
    for model, signature in _SIGNATURES.items():
        (folder / model).mkdir()
        inputs, outputs = ([dict(zip(("name", "datatype", "shape"), one, strict=True)) for one in tensors] for tensors in signature)
        settings = {"name": model, "implementation": "mlserver_runtime.Model", "parameters": {"version": "1"}}
        (folder / model / "model-settings.json").write_text(json.dumps({**settings, "inputs": inputs, "outputs": outputs}))


@contextmanager
def ours(scratch: Path) -> Iterator[Target]:
    """Run our server on a small snapshot."""
    params = RankerParameters.initialize(D, F, 1)
    params.gate = 1.0
    snapshots, port = scratch / "snapshots", free_ports()
    make_snapshot(snapshots, snapshot_id="first", users=300, items=500, dim=D, candidates=60, ranker=export_ranker_onnx(params.to_arrays()))
    set_current(snapshots, "first")
    command = [sys.executable, "-m", "recsys_batch", "serve", "--snapshots", str(snapshots), "--workers", "1"]
    options = ["--port", str(port), "--grpc-port", str(port + 1)]
    target, log = Target(port, port + 1, "recommend"), scratch / "ours.log"
    with log.open("wb") as output:
        environment = {**os.environ, "PYTHONPATH": os.pathsep.join([str(ROOT), *filter(None, sys.path)])}
        process = subprocess.Popen([*command, *options], cwd=scratch, env=environment, stdout=output, stderr=output, start_new_session=True)
    try:
        until = time.monotonic() + _START_SECONDS
        while get(port, "/readyz") != 200 or is_ready_by_grpc(target) != "false":
            if process.poll() is not None or time.monotonic() > until:
                raise RuntimeError(f"our server did not start; its log ends:\n{log.read_text(errors='replace')[-3000:]}")
            time.sleep(0.1)
        yield target
    finally:
        end_session(process)


def main(arguments: list[str]) -> int:
    odd = set(arguments) - {"--write", *COLUMNS}
    if odd:
        print(f"error: unknown arguments {sorted(odd)}; known: --write, {', '.join(COLUMNS)}", file=sys.stderr)
        return 2
    document = DOCUMENT.read_text(encoding="utf-8")
    cells = read_cells(document)
    for name in [one for one in arguments if one != "--write"] or COLUMNS:
        with tempfile.TemporaryDirectory() as folder:
            try:
                with ours(Path(folder)) if name == OURS else peer(name, Path(folder)) as target:
                    cells[name] = ask_all(target)
            except NotInstalled as error:
                print(f"the column of {name} stays as it is: {error}", file=sys.stderr)
    if "--write" in arguments:
        DOCUMENT.write_text(put_into(document, render(cells)), encoding="utf-8")
    else:
        print(render(cells), end="")
    return 0


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
