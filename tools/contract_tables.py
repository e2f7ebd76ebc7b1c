"""Print the table part of docs/data-contract.md from recsys_batch/schemas.py; ``--write`` puts it into the file."""

import sys
from pathlib import Path

from recsys_batch.schemas import TABLES, Column, IdTypes, TableSpec, spark_type

DOCUMENT = Path(__file__).parent.parent / "docs" / "data-contract.md"
BEGIN = "<!-- begin: written by tools/contract_tables.py --write, do not edit -->"
END = "<!-- end: tools/contract_tables.py -->"

_NUMBERS, _TEXTS = IdTypes("BIGINT", "BIGINT"), IdTypes("STRING", "STRING")


def main(arguments: list[str]) -> int:
    if arguments == ["--write"]:
        DOCUMENT.write_text(put_into(DOCUMENT.read_text(encoding="utf-8"), tables()), encoding="utf-8")
        return 0
    if arguments:
        print(f"error: unknown arguments {arguments}; the only option is --write", file=sys.stderr)
        return 2
    print(tables(), end="")
    return 0


def tables() -> str:
    """Markdown of every table of the contract, in the order of schemas.py."""
    return "\n".join(_table(spec) for spec in TABLES.values())


def put_into(document: str, part: str, begin: str = BEGIN, end: str = END) -> str:
    """The document with ``part`` between its two markers.

    Raises:
        ValueError: a marker is missing.
    """
    before, has_begin, rest = document.partition(begin)
    _, has_end, after = rest.partition(end)
    if not (has_begin and has_end):
        raise ValueError(f"the document lacks the markers {begin!r} and {end!r}")
    return f"{before}{begin}\n\n{part}\n{end}{after}"


def _table(spec: TableSpec) -> str:
    lines = [f"### {spec.name}", "", f"{spec.comment[0].upper()}{spec.comment[1:]}.", ""]
    layout = [
        f"{word} {', '.join(f'`{name}`' for name in names)}"
        for word, names in (("partitioned by", spec.partition_by), ("clustered by", spec.cluster_by), ("sorted by", spec.sort_by))
        if names
    ]
    if layout:
        lines += [f"Layout: {'; '.join(layout)}.", ""]
    lines += ["| column | type | null | comment |", "|---|---|---|---|"]
    lines += [
        f"| {column.name} | `{_type(column)}` | {'yes' if column.nullable else 'never'} | {column.comment} |" for column in spec.columns
    ]
    if spec.checks:
        lines += ["", *(f"- CHECK `{name}`: `{sql}`" for name, sql in spec.checks.items())]
    return "\n".join(lines) + "\n"


def _type(column: Column) -> str:
    """Spark SQL's name; ID stands for a type that the source decides."""
    number, text = (spark_type(column.arrow(ids).type) for ids in (_NUMBERS, _TEXTS))
    return number if number == text else text.replace("STRING", "ID")


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
