"""Ids of users and items as requests, logs and commands spell them: "7" and 7 name the same one, in whichever type the tables have it.

Ids of whole columns are parsed by sources/values.py; whatever names one id after that comes through here.
"""

from recsys_batch.schemas import IdType


def parse_id(value: int | str, kind: IdType) -> int | str | None:
    """Read an id in the tables' type: "7" is the BIGINT 7, 7 the STRING "7"; None where no id of that type can be meant."""
    if kind == "BIGINT":
        return parse_bigint(value)
    return value if isinstance(value, str) else str(value)


def parse_bigint(value: int | str) -> int | None:
    """Read a BIGINT from a number or its decimal digits, at most 20 characters; None for anything else."""
    if isinstance(value, str):
        if len(value) > 20:
            return None
        digits = value.removeprefix("-")
        if not (digits.isascii() and digits.isdigit()):
            return None
        value = int(value)
    return value if -(2**63) <= value < 2**63 else None
