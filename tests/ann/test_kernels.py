"""The score of a pair is the same bits in any company, and lengths are right for any float32."""

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from recsys_batch.ann import kernels


@settings(max_examples=60, deadline=None)
@given(seed=st.integers(0, 99), n=st.integers(1, 9), m=st.integers(0, 40), d=st.integers(1, 70), floats=st.sampled_from([1, 300, 100_000]))
def test_a_pairs_score_does_not_depend_on_the_other_pairs_nor_on_blocks(seed: int, n: int, m: int, d: int, floats: int) -> None:
    rng = np.random.default_rng(seed)
    queries, vectors = (rng.normal(size=(rows, d)).astype(np.float32) for rows in (n, 30))
    rows = rng.integers(-1, 30, (n, m))
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(kernels, "_GATHERED_FLOATS", floats)
        scores = kernels.inner_products(queries, vectors, rows)
    assert scores.dtype == np.float32
    everything = kernels.all_inner_products(queries, vectors)
    for (query, column), row in np.ndenumerate(rows):
        alone = kernels.inner_products(queries[query : query + 1].copy(), vectors[row : row + 1].copy(), np.zeros((1, 1), np.int64))[0, 0]
        assert scores[query, column] == (everything[query, row] if row >= 0 else -np.inf)
        assert row < 0 or scores[query, column] == alone
    truth = queries.astype(np.float64) @ vectors.T.astype(np.float64)
    bound = kernels.rounding_error(queries, kernels.max_row_norm(vectors))
    assert (np.abs(everything - truth) <= bound[:, None]).all()


def test_no_vectors_give_no_scores() -> None:
    scores = kernels.inner_products(np.ones((2, 4), np.float32), np.zeros((0, 4), np.float32), np.full((2, 3), -1))
    np.testing.assert_array_equal(scores, np.full((2, 3), -np.inf, np.float32))
