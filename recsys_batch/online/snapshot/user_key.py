"""Keys of users in a store: bytes whose order is the order of the ids, so that a store is filled front to back."""

import hashlib

from recsys_batch.ids import parse_bigint
from recsys_batch.schemas import IdType

_MAX_KEY_BYTES = 511  # LMDB's longest key
_SHIFT = 2**63


def user_key(user_id: int | str, kind: IdType) -> bytes | None:
    """The key of a user as a request names one; None where no user of that type can be meant.

    BIGINT ids are eight bytes, shifted so that negative ones come first; STRING ids their UTF-8 behind an "s". An id too long for
    a key ends in its hash. Text that is a number names the same BIGINT user as the number, and a number the STRING user of its digits.
    """
    if kind == "BIGINT":
        number = parse_bigint(user_id)
        return None if number is None else (number + _SHIFT).to_bytes(8, "big")
    text = user_id if isinstance(user_id, str) else str(user_id)
    try:
        key = b"s" + text.encode()
    except UnicodeEncodeError:  # a lone surrogate, which JSON can spell and no table holds
        return None
    if len(key) <= _MAX_KEY_BYTES:
        return key
    return key[: _MAX_KEY_BYTES - 32] + hashlib.sha256(key).digest()


def user_id_from_key(key: bytes, kind: IdType) -> int | str | None:
    """The id of a key; None for one that ends in a hash."""
    if kind == "BIGINT":
        return int.from_bytes(key, "big") - _SHIFT
    return None if len(key) == _MAX_KEY_BYTES else key[1:].decode()
