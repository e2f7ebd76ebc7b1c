"""Model servers of others: installs each in an environment of its own, and starts it on what ``recsys-batch export-model`` wrote.

    python tools/model_servers.py [NAME ...]            # installs what is missing, and says what is there: make servers

Tests and benchmarks start servers by the commands of the exported folders' READMEs, on other ports; benchmarks/servers.py says what
each takes.
"""

from __future__ import annotations

import http.client
import json
import os
import random
import shutil
import signal
import socket
import subprocess
import sys
import time
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path

ROOT = Path(__file__).parent.parent
FOLDER = ROOT / ".servers"
SYSTEM_PYTHON = "/usr/bin/python3"
_START_SECONDS = 180


@dataclass(frozen=True)
class Recipe:
    """How an environment is made.

    Attributes:
        python: interpreter. packages: all that the files import and that the server forgets to ask for; what has to agree is pinned.
        shown: the one whose version is told. files: folders and files of this repository that run in it.
    """

    python: str
    packages: tuple[str, ...]
    shown: str
    files: tuple[str, ...]


_EXPORTED, _PEERS = "recsys_batch/model_servers/files", "benchmarks/peers"
RECIPES = {
    "torchserve": Recipe(
        sys.executable,
        ("torchserve==0.12.0", "torch-model-archiver==0.12.0", "torch", "pyyaml", "setuptools", "numpy", "onnxruntime", "lmdb"),
        "torchserve",
        (f"{_EXPORTED}/torchserve", f"{_PEERS}/torchserve_handler.py", f"{_PEERS}/lookup.py"),
    ),
    # Its stub needs the distribution's Python.
    "triton": Recipe(
        SYSTEM_PYTHON,
        ("nvidia-pytriton==0.7.0", "numpy<2", "onnxruntime", "lmdb"),
        "nvidia-pytriton",
        (f"{_EXPORTED}/triton", f"{_PEERS}/triton_model.py", f"{_PEERS}/pytriton_server.py", f"{_PEERS}/lookup.py"),
    ),
    "mlserver": Recipe(sys.executable, ("mlserver==1.7.1", "numpy", "onnxruntime"), "mlserver", (f"{_EXPORTED}/mlserver",)),
    # TensorFlow alone, which writes and loads SavedModels: TensorFlow Serving is in no package index.
    "tensorflow": Recipe(sys.executable, ("tensorflow-cpu==2.21.0", "numpy"), "tensorflow-cpu", (f"{_EXPORTED}/tfserving",)),
}


class NotInstalled(Exception):
    """There is no such environment here, and why."""


def install(name: str) -> Path:
    """Make an environment where it is missing, or was made of other packages; its interpreter. Raises NotInstalled: pip could not."""
    recipe, folder = RECIPES[name], FOLDER / name
    if not _is_ready(name):
        shutil.rmtree(folder, ignore_errors=True)
        for command in (
            [recipe.python, "-m", "venv", str(folder)],
            [str(folder / "bin" / "python"), "-m", "pip", "install", "-q", "--disable-pip-version-check", *recipe.packages],
        ):
            done = subprocess.run(command, capture_output=True, text=True, check=False)
            if done.returncode != 0:
                raise NotInstalled(f"{name}: {(done.stderr.strip() or done.stdout.strip()).splitlines()[-1]}")
        (folder / ".ready").write_text(_contents_of(recipe))
    return folder / "bin" / "python"


def find(name: str) -> Path:
    """Find the interpreter of an environment. Raises NotInstalled: `make servers` was not run, or could not make it."""
    if not _is_ready(name):
        raise NotInstalled(f"{name} is not installed here, or of other packages than tools/model_servers.py lists: make servers")
    return FOLDER / name / "bin" / "python"


def _is_ready(name: str) -> bool:
    """Whether an environment is there and is of the packages that are listed now: one from before a package was added lacks it."""
    mark = FOLDER / name / ".ready"
    return mark.exists() and mark.read_text() == _contents_of(RECIPES[name])


def _contents_of(recipe: Recipe) -> str:
    return "\n".join(recipe.packages) + "\n"


@dataclass(frozen=True)
class Started:
    """A server that runs.

    Attributes:
        address: of its HTTP. grpc_port: 0 where it has none. process: its first one; the others are of its session.
        seconds: that it took to answer.
    """

    address: str
    port: int
    grpc_port: int
    process: subprocess.Popen[bytes]
    seconds: float

    def kill(self) -> None:
        """Kill all of its processes at once."""
        os.killpg(self.process.pid, signal.SIGKILL)
        self.process.wait(10)

    def resident_mb(self) -> float:
        """Measure the resident memory of all of its processes, what they share counted once each."""
        total = 0
        for stat in Path("/proc").glob("[0-9]*/stat"):
            try:
                if int(stat.read_text().rsplit(")", 1)[1].split()[3]) == self.process.pid:
                    smaps = (stat.parent / "smaps_rollup").read_text()
                    total += next(int(line.split()[1]) for line in smaps.splitlines() if line.startswith("Pss:"))
            except (OSError, StopIteration):
                continue
        return total / 1024


@contextmanager
def running(name: str, export: Path, model: str, version: str, scratch: Path, *, workers: int = 1) -> Iterator[Started]:
    """Run a server on an exported folder until the block ends.

    Args:
        name: torchserve, triton or mlserver. workers: processes, or instances, that score.
    """
    python, port = find(name), free_ports()
    scratch.mkdir(parents=True, exist_ok=True)
    environment = {key: value for key, value in os.environ.items() if not key.startswith("PYTHON")} | {"OMP_NUM_THREADS": "1"}
    command, path = _COMMANDS[name](python, export, scratch, port, workers, environment)
    ready = path.format(model=model, version=version)
    log, began = scratch / f"{name}.log", time.monotonic()
    with log.open("wb") as output:
        process = subprocess.Popen(command, env=environment, cwd=scratch, stdout=output, stderr=output, start_new_session=True)
    try:
        while get(port, ready) != 200:
            if process.poll() is not None or time.monotonic() - began > _START_SECONDS:
                raise RuntimeError(f"{name} did not start; its log ends:\n{log.read_text(errors='replace')[-3000:]}")
            time.sleep(0.1)
        grpc_port = 0 if name == "torchserve" else port + 1
        yield Started(f"http://127.0.0.1:{port}", port, grpc_port, process, time.monotonic() - began)
    finally:
        end_session(process)


def _torchserve(python: Path, export: Path, scratch: Path, port: int, workers: int, environment: dict[str, str]) -> tuple[list[str], str]:
    lines = (export / "config.properties").read_text().splitlines()
    for offset, name in enumerate(("inference", "management", "metrics")):
        lines = [line for line in lines if not line.startswith(f"{name}_address")] + [f"{name}_address=http://127.0.0.1:{port + offset}"]
    settings = scratch / "config.properties"
    settings.write_text("\n".join(lines) + "\n")
    environment["PATH"] = f"{python.parent}:{environment['PATH']}"
    environment |= {"LOG_LOCATION": str(scratch / "logs"), "METRICS_LOCATION": str(scratch / "logs"), "TEMP": str(scratch)}
    options = ["--start", "--foreground", "--ncs", "--disable-token-auth"]
    return [
        str(python.parent / "torchserve"),
        *options,
        "--model-store",
        str(export / "model-store"),
        "--ts-config",
        str(settings),
    ], "/predictions/{model}/{version}"


def triton_command(
    python: Path, export: Path, scratch: Path, port: int, workers: int, environment: dict[str, str]
) -> tuple[list[str], str]:
    """Make the command of Triton's own server on the models of ``export``/model-repository-python, and the path that says it is ready."""
    site = subprocess.run(
        [str(python), "-c", "import sysconfig; print(sysconfig.get_path('purelib'))"], capture_output=True, text=True, check=True
    )
    packages = Path(site.stdout.strip())
    home = packages / "pytriton" / "tritonserver"
    environment["PATH"] = f"{python.parent}:{environment['PATH']}"  # its stub runs the python3 that it finds, and knows no PYTHONPATH
    stub, python_version = "triton_python_backend_stub", packages.parent.name.removeprefix("python")
    if not (home / "backends" / "python" / stub).exists():
        shutil.copy(home / "python_backend_stubs" / python_version / stub, home / "backends" / "python" / stub)
    addresses = [f"--{kind}-address=127.0.0.1" for kind in ("http", "grpc", "metrics")]
    ports = [f"--http-port={port}", f"--grpc-port={port + 1}", f"--metrics-port={port + 2}"]
    folders = [f"--model-repository={export / 'model-repository-python'}", f"--backend-directory={home / 'backends'}"]
    return [str(home / "bin" / "tritonserver"), *folders, *addresses, *ports], "/v2/models/{model}/versions/{version}/ready"


def _mlserver(python: Path, export: Path, scratch: Path, port: int, workers: int, environment: dict[str, str]) -> tuple[list[str], str]:
    # Settings of a folder go before those of the environment.
    shutil.copytree(export, copied := scratch / "export", dirs_exist_ok=True)
    settings = json.loads((copied / "settings.json").read_text())
    settings |= {"http_port": port, "grpc_port": port + 1, "metrics_port": port + 2}
    (copied / "settings.json").write_text(json.dumps(settings))
    environment["PYTHONPATH"] = str(copied)
    return [str(python.parent / "mlserver"), "start", str(copied)], "/v2/models/{model}/versions/{version}/ready"


_COMMANDS = {"torchserve": _torchserve, "triton": triton_command, "mlserver": _mlserver}
SERVERS = tuple(_COMMANDS)


def get(port: int, path: str) -> int | None:
    """GET a path; the status, None where nobody answers."""
    connection = http.client.HTTPConnection("127.0.0.1", port, timeout=30)
    try:
        connection.request("GET", path)
        return connection.getresponse().status
    except (OSError, http.client.HTTPException):
        return None
    finally:
        connection.close()


def free_ports() -> int:
    """Find the first of three consecutive free ports, below those that the system gives to connections."""
    while True:
        port = random.randrange(20_000, 32_000)
        if all(_is_free(port + n) for n in range(3)):
            return port


def _is_free(port: int) -> bool:
    with socket.socket() as tried:
        return tried.connect_ex(("127.0.0.1", port)) != 0


def end_session(process: subprocess.Popen[bytes]) -> None:
    """End the session that a process began, also what is left of it where that process has ended."""
    for number, seconds in ((signal.SIGTERM, 20), (signal.SIGKILL, 10)):
        try:
            os.killpg(process.pid, number)
            process.wait(seconds)
        except ProcessLookupError:
            break
        except subprocess.TimeoutExpired:
            continue
    process.wait(10)


def main() -> None:
    failed = False
    for name in sys.argv[1:] or RECIPES:
        try:
            python = install(name)
        except NotInstalled as error:
            print(f"not installed: {error}")
            failed = True
            continue
        command = [str(python), "-c", f"import importlib.metadata as m; print(m.version({RECIPES[name].shown!r}))"]
        version = subprocess.run(command, capture_output=True, text=True, check=True).stdout.strip()
        size = sum(path.lstat().st_size for path in (FOLDER / name).rglob("*")) / 2**20
        print(f"{name:<12}{RECIPES[name].shown} {version}, {size:,.0f} MiB in {python.parents[1]}")
    sys.exit(1 if failed else 0)


if __name__ == "__main__":
    main()
