"""Find the Java that Spark runs on, so that a missing one is a sentence and not a stack trace."""

import os
import re
import shutil
import subprocess
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path

from recsys_batch.errors import UsageError

OLDEST, PREFERRED_UP_TO, NEWEST = 17, 21, 25
"""Spark 4.2 runs on these; one above 21 is taken only where nothing else is there. See docs/decisions/0002-java.md."""
PROJECT_JAVA = Path(".java")
"""Where ``make setup`` puts a fetched Java."""
SYSTEM_FOLDERS = (Path("/usr/lib/jvm"), Path("/Library/Java/JavaVirtualMachines"))
PLACES = ", ".join(["JAVA_HOME", "PATH", *map(str, SYSTEM_FOLDERS), f"{PROJECT_JAVA}/"])
"""Where ``find_java`` looks, for messages."""


def find_java(environ: Mapping[str, str], system_folders: Sequence[Path] = SYSTEM_FOLDERS) -> Path | None:
    """Find the JAVA_HOME of a Java that Spark runs on; None where there is none.

    The user's own JAVA_HOME comes first; then the first of 17 to 21 on PATH, in the system's folders or the project's; then a newer one.
    """
    newer: Path | None = None
    for launcher in _list_launchers(environ, system_folders):
        home, version = _probe_java(launcher)
        if home is None or not OLDEST <= version <= NEWEST:
            continue
        if version <= PREFERRED_UP_TO or launcher == _java_home_launcher(environ):
            return home
        newer = newer or home
    return newer


def ensure_java() -> None:
    """Point JAVA_HOME of this process at a usable Java. Raises UsageError where there is none."""
    home = find_java(os.environ)
    if home is None:
        raise UsageError(
            f"no Java {OLDEST} to {NEWEST} found (looked at {PLACES}): "
            "run `make setup`, or install one, for example the package openjdk-17-jre-headless"
        )
    os.environ["JAVA_HOME"] = str(home)


def _java_home_launcher(environ: Mapping[str, str]) -> Path | None:
    return Path(environ["JAVA_HOME"]) / "bin" / "java" if environ.get("JAVA_HOME") else None


def _list_launchers(environ: Mapping[str, str], system_folders: Sequence[Path]) -> Iterator[Path]:
    for launcher in (_java_home_launcher(environ), shutil.which("java", path=environ.get("PATH", ""))):
        if launcher:
            yield Path(launcher)
    for folder in (*system_folders, PROJECT_JAVA.absolute()):
        for home in sorted(folder.iterdir()) if folder.is_dir() else ():
            yield home / "bin" / "java"
            yield home / "Contents" / "Home" / "bin" / "java"  # macOS


def _probe_java(launcher: Path) -> tuple[Path | None, int]:
    """Ask a launcher for its home and version: on PATH it is often a link or a script, whose own folder says nothing."""
    if not os.access(launcher, os.X_OK):
        return None, 0
    try:
        command = [str(launcher), "-XshowSettings:properties", "-version"]
        output = subprocess.run(command, capture_output=True, text=True, timeout=30, check=False).stderr
    except (OSError, subprocess.TimeoutExpired):
        return None, 0
    home = re.search(r"^\s*java\.home = (.+)$", output, re.MULTILINE)
    version = re.search(r"^\s*java\.specification\.version = (\d+)$", output, re.MULTILINE)
    return (Path(home.group(1)), int(version.group(1))) if home and version else (None, 0)
