"""The table of installed sizes: counted from what is in a folder, merged into what the document has."""

import runpy
from pathlib import Path
from types import SimpleNamespace

import pytest

ROOT = Path(__file__).parent.parent.parent
DOCUMENT = (ROOT / "docs" / "decisions" / "0001-extras.md").read_text(encoding="utf-8")
tool = SimpleNamespace(**runpy.run_path(str(ROOT / "tools" / "extras_sizes.py")))


def package(folder: Path, name: str, n_bytes: int) -> None:
    info = folder / f"{name}-1.dist-info"
    info.mkdir(parents=True)
    (folder / f"{name}.bin").write_bytes(b"x" * n_bytes)
    (info / "METADATA").write_text(f"Metadata-Version: 2.1\nName: {name}\nVersion: 1\n")
    (info / "RECORD").write_text(f"{name}.bin,,\n")


def test_packages_are_listed_by_what_their_files_take(tmp_path: Path) -> None:
    package(tmp_path, "small", 1_000_000)
    package(tmp_path, "large", 3_000_000)
    (tmp_path / "of_nobody.bin").write_bytes(b"x" * 500_000)
    size = tool.measure_site_packages(tmp_path)
    assert list(size.by_package.items()) == [("large", 3_000_000), ("small", 1_000_000)]
    assert tool.format_row("night", size) == "| `[night]` | 2 | 5 | large 3, small 1 |"
    assert 4_500_000 < size.n_bytes < 4_501_000


def test_a_new_row_replaces_its_own_and_leaves_the_others() -> None:
    document = f"{tool.BEGIN}\n| (plain) | 1 | 2 | a 1 |\n| `[read]` | 3 | 4 | b 1 |\n| `[gone]` | 5 | 6 | c 1 |\n{tool.END}\n"
    merged = tool.merge_rows(document, {"read": "| `[read]` | 7 | 8 | d 1 |"}, ["(plain)", "read", "night"])
    assert [line for line in merged.splitlines() if line.startswith("| ")][1:] == [
        "| (plain) | 1 | 2 | a 1 |",
        "| `[read]` | 7 | 8 | d 1 |",
    ]


def test_the_document_has_a_row_for_every_extra() -> None:
    table = DOCUMENT.partition(tool.BEGIN)[2].partition(tool.END)[0]
    rows = [line.split("|")[1].strip().strip("`[]") for line in table.splitlines() if line.startswith(("| `", "| ("))]
    assert rows == ["(plain)", *tool.list_extras()], "run: make sizes"


def test_an_extra_that_is_none_is_bad_usage(capsys: pytest.CaptureFixture[str]) -> None:
    with pytest.raises(SystemExit) as ended:
        tool.main(["nihgt"])
    assert ended.value.code == 2 and "setup.cfg has no extra nihgt" in capsys.readouterr().err
