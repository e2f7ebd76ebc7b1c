"""Choosing slots: never more than asked for, never twice, never what is barred; against the plainest code that could do it."""

import numpy as np
from hypothesis import given
from hypothesis import strategies as st

from recsys_batch.digest.slot_selection import ChosenSlots, choose_slots, fill_slots

N_ITEMS = 12
lists = st.lists(st.lists(st.integers(0, N_ITEMS - 1), unique=True, max_size=8), min_size=1, max_size=6)
subset = st.sets(st.integers(0, N_ITEMS - 1))


def chosen_of(rows: list[list[int]]) -> ChosenSlots:
    owner = np.array([user for user, items in enumerate(rows) for _ in items], dtype=np.int64)
    codes = np.array([item for items in rows for item in items], dtype=np.int64)
    return ChosenSlots(owner, codes, np.zeros(len(codes), np.float32), np.zeros(len(codes), bool))


@given(lists, subset, st.sets(st.tuples(st.integers(0, 5), st.integers(0, N_ITEMS - 1))), st.integers(1, 5), st.lists(subset, max_size=2))
def test_choosing_and_filling_are_what_a_loop_over_users_does(
    rows: list[list[int]], unavailable: set[int], sent: set[tuple[int, int]], slots: int, popular: list[set[int]]
) -> None:
    sendable = np.array([item not in unavailable for item in range(N_ITEMS)])
    keys = np.array(sorted(user * N_ITEMS + item for user, item in sent if user < len(rows)), dtype=np.int64)
    pairs = zip(("all", "north"), popular, strict=False)
    named = {name: (np.array(sorted(some), np.int64), np.zeros(len(some), np.float32)) for name, some in pairs}
    segments = ["north" if user % 2 else None for user in range(len(rows))]

    found = fill_slots(choose_slots(chosen_of(rows), len(rows), slots, sendable, keys), segments, slots, named, sendable, keys)

    expected = []
    for user, items in enumerate(rows):
        free = [item for item in items if sendable[item] and (user, item) not in sent][:slots]
        for name in dict.fromkeys((segments[user] or "all", "all")):
            for item in named.get(name, (np.zeros(0, np.int64),))[0].tolist():
                if len(free) < slots and item not in free and sendable[item] and (user, item) not in sent:
                    free.append(item)
        expected += [(user, item) for item in free]
    assert list(zip(found.owner.tolist(), found.codes.tolist(), strict=True)) == expected
