"""The files that a reader opens are seen, whoever opens them."""

import runpy
import subprocess
import sys
from pathlib import Path

ROOT = Path(__file__).parent.parent.parent
watch_opened_files = runpy.run_path(str(ROOT / "tools" / "opened_files.py"))["watch_opened_files"]


def test_opened_files_are_collected_also_of_another_process_and_others_are_not(tmp_path: Path) -> None:
    names = ["a.parquet", "below/b.parquet", "below/c.parquet", "d.json"]
    (tmp_path / "below").mkdir()
    for name in names:
        (tmp_path / name).write_bytes(b"x")
    with watch_opened_files(tmp_path) as opened:
        (tmp_path / "a.parquet").read_bytes()
        (tmp_path / "d.json").read_bytes()
        (tmp_path / "below" / "c.parquet").stat()
        subprocess.run([sys.executable, "-c", "import sys; open(sys.argv[1]).read()", str(tmp_path / "below" / "b.parquet")], check=True)
    assert opened == {tmp_path / "a.parquet", tmp_path / "below" / "b.parquet"}


def test_nothing_is_collected_where_nothing_is_opened(tmp_path: Path) -> None:
    (tmp_path / "a.parquet").write_bytes(b"x")
    with watch_opened_files(tmp_path) as opened:
        pass
    assert opened == set()
