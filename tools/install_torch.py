"""Install torch's CPU build into this environment where pip can reach one, and say what was done: `make setup TORCH=cpu`.

The package index's own build for Linux on x86-64 brings CUDA libraries of several GB. A CPU build has a version like 2.15.0+cpu and is in
another index, which pip has to be told of: PIP_EXTRA_INDEX_URL, PIP_FIND_LINKS, or pip's own configuration. Where there is none nothing is
installed here: set-up goes on with the build that it finds. On other platforms that build may be a CPU build already.
"""

from __future__ import annotations

import json
import subprocess
import sys
from importlib.metadata import PackageNotFoundError, version
from pathlib import Path

from packaging.requirements import Requirement
from packaging.version import Version

ROOT = Path(__file__).parent.parent
BUILDS = ("cpu", "default")


def main(arguments: list[str]) -> int:
    if len(arguments) != 1 or arguments[0] not in BUILDS:
        print(f"error: TORCH is {' '.join(arguments)!r}: expected one of {', '.join(BUILDS)}", file=sys.stderr)
        return 2
    wanted, found = read_requirement(), find_installed()
    if arguments[0] == "default":
        print(f"torch: {found or 'the build that pip prefers'}")
    elif found is not None and found.local == "cpu" and found in wanted.specifier:
        print(f"torch: {found} is here, a CPU build")
    elif (build := choose_cpu_build(list_versions(), wanted)) is None:
        stays = f"{found} stays" if found else "the build that pip prefers is installed, on Linux with CUDA libraries (several GB)"
        print(f"torch: pip finds no CPU build of {wanted}; {stays}. Name an index that has one in PIP_EXTRA_INDEX_URL")
    else:
        subprocess.run([sys.executable, "-m", "pip", "install", "-q", "--disable-pip-version-check", f"torch=={build}"], check=True)
        left = f" in place of {found}; CUDA libraries of that build are left: make distclean first removes them" if found else ""
        print(f"torch: installed {build}, a CPU build{left}")
    return 0


def read_requirement() -> Requirement:
    """Read what setup.cfg says of torch."""
    lines = (line.strip() for line in (ROOT / "setup.cfg").read_text(encoding="utf-8").splitlines())
    return Requirement(next(line for line in lines if line.startswith("torch")))


def find_installed() -> Version | None:
    """Find the version of torch in this environment."""
    try:
        return Version(version("torch"))
    except PackageNotFoundError:
        return None


def list_versions() -> list[Version]:
    """List the versions of torch that pip finds for this interpreter, in all places that it was told of."""
    command = [sys.executable, "-m", "pip", "index", "versions", "torch", "--json", "--disable-pip-version-check"]
    done = subprocess.run(command, capture_output=True, text=True, check=False)
    if done.returncode:
        raise SystemExit(f"torch: pip could not list versions: {(done.stderr.strip().splitlines() or ['it said nothing'])[-1]}")
    return [Version(text) for text in json.loads(done.stdout)["versions"]]


def choose_cpu_build(versions: list[Version], wanted: Requirement) -> Version | None:
    """Choose the newest CPU build that a requirement allows; None where there is none."""
    return max((one for one in versions if one.local == "cpu" and one in wanted.specifier), default=None)


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
