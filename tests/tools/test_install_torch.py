"""TORCH=cpu takes a CPU build out of an index that pip was told of, and says so; the builds here are empty wheels."""

import os
import runpy
import shutil
import subprocess
import sys
import zipfile
from pathlib import Path
from types import SimpleNamespace

import packaging
import pip
import pytest
from packaging.requirements import Requirement
from packaging.version import Version

ROOT = Path(__file__).parent.parent.parent
tool = SimpleNamespace(**runpy.run_path(str(ROOT / "tools" / "install_torch.py")))


@pytest.mark.parametrize(
    ("versions", "expected"),
    [
        (["2.15.0", "2.15.0+cpu", "2.15.0+cu130"], "2.15.0+cpu"),
        (["2.15.0+cpu", "2.15.1+cpu", "2.16.0+cpu", "2.14.9+cpu"], "2.15.1+cpu"),
        (["2.15.0", "2.15.0+cu130", "2.16.0+cpu"], None),
        ([], None),
    ],
)
def test_the_newest_cpu_build_within_the_pins_is_chosen(versions: list[str], expected: str | None) -> None:
    chosen = tool.choose_cpu_build([Version(one) for one in versions], Requirement("torch>=2.15,<2.16"))
    assert (None if chosen is None else str(chosen)) == expected


def test_the_pins_are_those_of_setup_cfg() -> None:
    assert tool.read_requirement().name == "torch" and "2.15.0+cpu" in tool.read_requirement().specifier


def test_another_word_than_cpu_is_bad_usage(capsys: pytest.CaptureFixture[str]) -> None:
    assert tool.main(["gpu"]) == 2
    assert "expected one of cpu, default" in capsys.readouterr().err


def write_wheel(folder: Path, name: str, version: str) -> None:
    info = f"{name}-{version}.dist-info"
    with zipfile.ZipFile(folder / f"{name}-{version}-py3-none-any.whl", "w") as wheel:
        wheel.writestr(f"{name}.py", "")
        wheel.writestr(f"{info}/METADATA", f"Metadata-Version: 2.1\nName: {name}\nVersion: {version}\n")
        wheel.writestr(f"{info}/WHEEL", "Wheel-Version: 1.0\nGenerator: test\nRoot-Is-Purelib: true\nTag: py3-none-any\n")
        wheel.writestr(f"{info}/RECORD", "")


@pytest.mark.parametrize(("builds", "said"), [(["2.15.0", "2.15.0+cpu"], "installed 2.15.0+cpu"), (["2.15.0"], "no CPU build")])
def test_pip_installs_a_cpu_build_where_an_index_has_one(tmp_path: Path, builds: list[str], said: str) -> None:
    (tmp_path / "index").mkdir()
    for version in builds:
        write_wheel(tmp_path / "index", "torch", version)
    subprocess.run([sys.executable, "-m", "venv", "--without-pip", str(tmp_path / "venv")], check=True)
    python, (site_packages,) = tmp_path / "venv" / "bin" / "python", tmp_path.glob("venv/lib/python*/site-packages")
    for module in (pip, packaging):
        shutil.copytree(Path(str(module.__file__)).parent, site_packages / module.__name__)
    environment = {key: value for key, value in os.environ.items() if not key.startswith(("PIP_", "PYTHON"))}
    environment |= {"PIP_NO_INDEX": "1", "PIP_FIND_LINKS": str(tmp_path / "index"), "PIP_CONFIG_FILE": os.devnull}
    command = [str(python), str(ROOT / "tools" / "install_torch.py"), "cpu"]
    done = subprocess.run(command, env=environment, capture_output=True, text=True, check=False)
    assert (done.returncode, said in done.stdout) == (0, True), done.stdout + done.stderr
    installed = [path.name for path in site_packages.glob("torch-*")]
    assert installed == (["torch-2.15.0+cpu.dist-info"] if len(builds) == 2 else [])
    again = subprocess.run(command, env=environment, capture_output=True, text=True, check=True)
    assert ("2.15.0+cpu is here" if len(builds) == 2 else said) in again.stdout
