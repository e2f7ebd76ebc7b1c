"""Keys and values of overlays, made up."""

import datetime as dt

import numpy as np

from recsys_batch.online.snapshot.live_overlay import encode_live_record
from recsys_batch.online.snapshot.user_key import user_key
from recsys_batch.online.snapshot.user_record import LiveOrigin, UserRecord, encode_record

WRITTEN = dt.datetime(2026, 3, 1, 12, 0, 0, 5, tzinfo=dt.UTC)


def key_of(user: int) -> bytes:
    key = user_key(user, "BIGINT")
    assert key is not None
    return key


def live_value(batch_id: int, codes: list[int], through: dt.datetime | None = None) -> bytes:
    n = len(codes)
    record = UserRecord(None, 3, None, np.array(codes), np.zeros(n, np.float32), np.arange(n), np.ones(n, np.float32))
    return encode_live_record(LiveOrigin(batch_id, WRITTEN, through), encode_record(record))
