#!/usr/bin/env bash
# TorchServe 0.12.0: maxBatchDelay: 0 in a model's configuration is taken for the default, 100 ms.
#
# maxBatchDelay is how long a request waits for others to be joined with, in milliseconds. Who wants joined what waits already, and nothing
# waited for, writes 0, as Triton and TensorFlow Serving take it. TorchServe then has every request of a batchSize above 1 wait for 100 ms, its
# default, while 1 is 1 ms and 5 is 5 ms. Seen with a handler that does nothing, one request at a time, medians: batchSize 1: 3 ms; batchSize 8
# with a delay of 0: 103 ms, of 1: 4 ms, of 5: 8 ms. Write 1, or batchSize 1.
#
# Needs Java 17. Prints what it saw, and fails when that changes.
set -euo pipefail
folder=$(mktemp -d)
trap 'rm -rf "$folder"' EXIT
python3 -m venv "$folder/venv"
"$folder/venv/bin/pip" install -q 'torchserve==0.12.0' 'torch==2.15.0' 'pyyaml==6.0.4' 'setuptools==84.2.1'
cat > "$folder/try.py" <<'PYTHON'
import http.client
import json
import os
import signal
import statistics
import subprocess
import sys
import time
import zipfile
from pathlib import Path

folder = Path(sys.argv[1])
store, port = folder / "store", 28080
store.mkdir()
HANDLER = "def handle(data, context):\n    return None if data is None else ['done'] * len(data)\n"
MODELS = {"alone": (1, 0), "delay0": (8, 0), "delay1": (8, 1), "delay5": (8, 5)}
for name, (size, delay) in MODELS.items():
    about = {"modelName": name, "modelVersion": "1", "handler": "handler.py:handle", "configFile": "config.yaml"}
    with zipfile.ZipFile(store / f"{name}.mar", "w") as archive:
        archive.writestr("MAR-INF/MANIFEST.json", json.dumps({"runtime": "python", "model": about, "archiverVersion": "0.12.0"}))
        archive.writestr("handler.py", HANDLER)
        archive.writestr("config.yaml", f"minWorkers: 1\nmaxWorkers: 1\nbatchSize: {size}\nmaxBatchDelay: {delay}\n")
addresses = [f"{name}_address=http://127.0.0.1:{port + n}" for n, name in enumerate(("inference", "management", "metrics"))]
(folder / "config.properties").write_text("\n".join([*addresses, "load_models=all"]) + "\n")
binaries = folder / "venv" / "bin"
logs = {"LOG_LOCATION": str(folder / "logs"), "METRICS_LOCATION": str(folder / "logs"), "TEMP": str(folder)}
command = [str(binaries / "torchserve"), "--start", "--foreground", "--ncs", "--disable-token-auth", "--model-store", str(store)]
with open(folder / "log", "wb") as log:
    server = subprocess.Popen(
        [*command, "--ts-config", str(folder / "config.properties")],
        env={**os.environ, **logs, "PATH": f"{binaries}:{os.environ['PATH']}"},
        cwd=folder,
        stdout=log,
        stderr=log,
        start_new_session=True,
    )


def ask(name: str) -> bool:
    connection = http.client.HTTPConnection("127.0.0.1", port, timeout=10)
    try:
        connection.request("POST", f"/predictions/{name}", b"x")
        return connection.getresponse().status == 200
    except OSError:
        return False
    finally:
        connection.close()


try:
    until = time.monotonic() + 90
    while not all(ask(name) for name in MODELS):
        if time.monotonic() > until or server.poll() is not None:
            sys.exit("TorchServe did not start:\n" + (folder / "log").read_text(errors="replace")[-3000:])
        time.sleep(0.3)
    medians = {}
    for name, (size, delay) in MODELS.items():
        times = []
        for n in range(60):
            began = time.perf_counter()
            assert ask(name)
            times.append(1000 * (time.perf_counter() - began))
        medians[name] = statistics.median(times[10:])
        print(f"batchSize {size}, maxBatchDelay {delay}: median {medians[name]:.1f} ms")
    assert medians["delay0"] > 95, "it changed: a delay of 0 is none"
    assert max(medians["alone"], medians["delay1"], medians["delay5"]) < 60, "this machine is too slow to tell"
finally:
    os.killpg(server.pid, signal.SIGKILL)
PYTHON
"$folder/venv/bin/python" "$folder/try.py" "$folder"
