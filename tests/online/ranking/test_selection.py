"""What a request rules out, and the k best of the rest, against plain Python."""

import numpy as np
from hypothesis import given
from hypothesis import strategies as st
from hypothesis.extra.numpy import arrays

from recsys_batch.online.ranking.selection import not_excluded, select_top_k
from recsys_batch.ranking.business_rules import ItemRules


@given(
    st.integers(1, 4).flatmap(
        lambda rows: st.tuples(
            st.integers(0, 20).flatmap(lambda columns: arrays(np.int64, (rows, columns), elements=st.integers(0, 50))),
            st.lists(st.lists(st.integers(0, 50), max_size=60), min_size=rows, max_size=rows),
        )
    )
)
def test_outside_is_not_in(block: tuple[np.ndarray, list[list[int]]]) -> None:
    codes, gone = block
    expected = [[code not in out for code in row] for row, out in zip(codes.tolist(), gone, strict=True)]
    assert not_excluded(codes, gone).tolist() == expected


@given(st.data())
def test_the_best_come_by_score_and_equals_by_code(data: st.DataObject) -> None:
    rows, columns, k = data.draw(st.integers(1, 3)), data.draw(st.integers(1, 12)), data.draw(st.integers(1, 15))
    scores = data.draw(arrays(np.float32, (rows, columns), elements=st.sampled_from([-np.inf, 0.0, -0.0, 0.5, 1.0, 2.0, 3.0])))
    codes = np.array([data.draw(st.permutations(range(columns))) for _ in range(rows)], np.int64)
    places, values = select_top_k(scores, codes, k, ItemRules())
    assert places.shape == values.shape == (rows, min(k, columns))
    for row in range(rows):
        there = [place for place in range(columns) if scores[row, place] > -np.inf]
        expected = sorted(there, key=lambda place: (-scores[row, place], codes[row, place]))[:k]
        assert places[row, : len(expected)].tolist() == expected
        assert values[row].tolist() == [*scores[row, expected].tolist(), *[-np.inf] * (min(k, columns) - len(expected))]
