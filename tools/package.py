"""Build the archive that spark-submit takes as --py-files: `make package` writes dist/recsys_batch-VERSION.zip.

Dependencies are the cluster's: `pip install 'recsys-batch[night]'`, or an archive by venv-pack (conf/spark-defaults.yarn.conf).
The same sources make the same bytes.
"""

import sys
import zipfile
from pathlib import Path

from recsys_batch import __version__

ROOT = Path(__file__).parent.parent
_NOT_IN_ARCHIVES = (".so", ".pyd")
"""Compiled code is of one kind of machine, and no archive is imported from with it."""
_WHEN = (2020, 1, 1, 0, 0, 0)


def main() -> int:
    target = ROOT / "dist" / f"recsys_batch-{__version__}.zip"
    target.parent.mkdir(exist_ok=True)
    with zipfile.ZipFile(target, "w", zipfile.ZIP_DEFLATED) as archive:
        for path in sorted((ROOT / "recsys_batch").rglob("*")):
            if path.is_file() and "__pycache__" not in path.parts and path.suffix not in _NOT_IN_ARCHIVES:
                entry = zipfile.ZipInfo(str(path.relative_to(ROOT)), _WHEN)
                entry.compress_type = zipfile.ZIP_DEFLATED
                entry.external_attr = 0o644 << 16
                archive.writestr(entry, path.read_bytes())
    print(target.relative_to(ROOT))
    return 0


if __name__ == "__main__":
    sys.exit(main())
