"""The contract that every retriever keeps, and what exact means."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path
from typing import TYPE_CHECKING, Literal

import numpy as np
import pytest

from recsys_batch.ann import inverted_lists, kernels, retrievers
from recsys_batch.ann.index import build_index
from recsys_batch.ann.retrievers import IvfRetriever, TunableRetriever
from recsys_batch.ann.search import open_retriever
from recsys_batch.ann.vector_storage import Int8Rows
from recsys_batch.config import Retrieval
from recsys_batch.errors import RecsysBatchError

if TYPE_CHECKING:
    from conftest import Built, Case

Result = tuple[np.ndarray, np.ndarray]


def assert_same(found: Result, expected: Result) -> None:
    """Bit for bit."""
    np.testing.assert_array_equal(found[1], expected[1])
    np.testing.assert_array_equal(found[0].view(np.int32), expected[0].view(np.int32))


def padded(result: Result, k: int) -> Result:
    short = ((0, 0), (0, k - result[0].shape[1]))
    return np.pad(result[0], short, constant_values=-np.inf), np.pad(result[1], short, constant_values=-1)


def true_scores(built: Built, queries: np.ndarray) -> np.ndarray:
    """float64 [B, n], by definition of the metric."""
    q, x = queries.astype(np.float64), built.vectors.astype(np.float64)
    if built.infos["exact"].metric == "cosine":
        q, x = (v / np.maximum(np.linalg.norm(v, axis=1, keepdims=True), 1e-30) for v in (q, x))
    return np.asarray(q @ x.T)


def lists_of(ivf: IvfRetriever, queries: np.ndarray, nprobe: int) -> list[np.ndarray]:
    """Per prepared query the codes of its lists."""
    _, probed = kernels.scan_all(queries, ivf.centroids, nprobe)
    assert ivf.items.codes is not None
    members = [ivf.items.codes[ivf.lists.rows_at(np.arange(a, b))] for a, b in zip(ivf.lists.starts, ivf.lists.ends, strict=True)]
    return [np.sort(np.concatenate([members[number] for number in row])) for row in probed]


@pytest.mark.parametrize("k", [1, 50, 333, 3005])
def test_results_are_in_order_unique_allowed_and_carry_the_true_score(case: Case, queries: np.ndarray, k: int) -> None:
    scores, codes = case.retriever.search(queries, k)
    assert (scores.shape, scores.dtype, codes.shape, codes.dtype) == ((len(queries), k), np.float32, (len(queries), k), np.int64)
    truth = true_scores(case.built, queries)
    np.testing.assert_array_equal(scores, kernels.inner_products(case.built.prepared(queries), case.built.stored, codes))
    for row, (row_scores, row_codes) in enumerate(zip(scores, codes, strict=True)):
        n_found = int((row_codes >= 0).sum())
        assert n_found == min(k, len(case.codes)) or (k < 3005 and not case.backend.finds_all)
        assert (row_codes[n_found:] == -1).all()
        assert (row_scores[n_found:] == -np.inf).all()
        found, found_codes = row_scores[:n_found], row_codes[:n_found]
        assert ((np.diff(found) < 0) | ((np.diff(found) == 0) & (np.diff(found_codes) > 0))).all()
        assert len(np.unique(found_codes)) == n_found
        assert np.isin(found_codes, case.codes).all()
        np.testing.assert_allclose(found, truth[row, found_codes], atol=1e-4)


def test_a_query_gets_the_same_bits_alone_and_in_any_batch(case: Case, queries: np.ndarray) -> None:
    retriever = case.retriever
    together = retriever.search(queries, 50)
    alone = [retriever.search(query[None], 50) for query in queries]
    assert_same((np.concatenate([s for s, _ in alone]), np.concatenate([c for _, c in alone])), together)
    others = np.random.default_rng(2).normal(size=(1500, queries.shape[1])).astype(np.float32)
    among_others = retriever.search(np.concatenate([others[:700], queries[::-1], others[700:]]), 50)
    assert_same(tuple(part[700 : 700 + len(queries)][::-1] for part in among_others), together)


@pytest.mark.parametrize("k", [1, 7, 50, 130, 1700, 2999, 3000])
def test_exact_search_finds_what_scoring_every_allowed_item_finds(exact_case: Case, queries: np.ndarray, k: int) -> None:
    found = exact_case.retriever.search(queries, k)
    assert_same(found, padded(exact_case.scan(queries, k), k))
    truth = true_scores(exact_case.built, queries)[:, exact_case.codes]
    n = min(k, len(exact_case.codes))
    np.testing.assert_allclose(found[0][:, :n], -np.sort(-truth, axis=1)[:, :n], atol=1e-4)


@pytest.mark.parametrize("name", ["ivf", "sharded"])
@pytest.mark.parametrize("restricted", [False, True])
@pytest.mark.parametrize(("nprobe", "k"), [(1, 5), (10, 50), (30, 400)])
def test_ivf_is_exact_among_the_lists_that_it_looks_into(
    built: Built, queries: np.ndarray, name: str, restricted: bool, nprobe: int, k: int
) -> None:
    ivf = built.ivf(name).restrict(built.allowed) if restricted else built.ivf(name)
    scores, codes = ivf.search_with_nprobe(queries, k, nprobe)
    ready = built.prepared(queries)
    for row, looked_at in enumerate(lists_of(ivf, ready, nprobe)):
        assert not restricted or built.allowed[looked_at].all()
        best = kernels.scan_all(ready[row : row + 1], built.stored[looked_at], k, looked_at)
        assert_same((scores[row : row + 1], codes[row : row + 1]), padded(best, k))


@pytest.mark.parametrize("name", ["ivf", "int8", "sharded"])
@pytest.mark.parametrize("restricted", [False, True])
def test_the_place_of_a_list_is_told_in_the_order_of_probing(built: Built, queries: np.ndarray, name: str, restricted: bool) -> None:
    ivf = built.ivf(name).restrict(built.allowed) if restricted else built.ivf(name)
    codes = np.random.default_rng(2).integers(-1, 3000, size=(len(queries), 90))
    places, ready = ivf.list_places(queries, codes), built.prepared(queries)
    findable = built.allowed if restricted else np.ones(3000, dtype=bool)
    np.testing.assert_array_equal(places >= 0, (codes >= 0) & findable[codes])
    for nprobe in (1, 10, 60):
        for row, looked_at in enumerate(lists_of(ivf, ready, nprobe)):
            np.testing.assert_array_equal((places[row] >= 0) & (places[row] < nprobe), np.isin(codes[row], looked_at))


@pytest.mark.parametrize("restricted", [False, True])
@pytest.mark.parametrize("overfetch", [1.0, 1.5, 3.0])
def test_int8_fetches_the_best_by_its_codes_and_keeps_the_best_of_them_by_their_vectors(
    built: Built, queries: np.ndarray, restricted: bool, overfetch: float
) -> None:
    ivf = built.ivf("int8", overfetch=overfetch)
    ivf = ivf.restrict(built.allowed) if restricted else ivf
    scores, codes = ivf.search_with_nprobe(queries, 50, 10)
    rows, ready = ivf.search_shards[0].open(), built.prepared(queries)
    assert isinstance(rows, Int8Rows)
    assert ivf.row_of_code is not None
    decoded = rows.take(ivf.row_of_code[:-1])
    for row, looked_at in enumerate(lists_of(ivf, ready, 10)):
        query = ready[row : row + 1]
        _, fetched = kernels.scan_all(query, decoded[looked_at], int(50 * overfetch), looked_at)
        fetched = np.sort(fetched[0])
        assert_same((scores[row : row + 1], codes[row : row + 1]), padded(kernels.scan_all(query, built.stored[fetched], 50, fetched), 50))


def test_what_int8_fetches_may_lie_in_several_shards(built: Built, queries: np.ndarray) -> None:
    int8 = built.ivf("int8", overfetch=1.5)
    in_shards = replace(int8, items=replace(int8.items, shards=built.ivf("sharded").items.shards))
    assert_same(in_shards.search(queries, 50), int8.search(queries, 50))


@pytest.mark.parametrize("restricted", [False, True])
@pytest.mark.parametrize(("nprobe", "k"), [(1, 50), (10, 1), (10, 170), (34, 50)])
def test_shards_change_no_bit_of_an_ivf_search(built: Built, queries: np.ndarray, restricted: bool, nprobe: int, k: int) -> None:
    whole, sharded = built.ivf("ivf", nprobe=nprobe), built.ivf("sharded", nprobe=nprobe)
    assert (len(whole.items.shards), len(sharded.items.shards)) == (1, 4)
    if restricted:
        whole, sharded = whole.restrict(built.allowed), sharded.restrict(built.allowed)
    assert whole.effective_nprobe(k) < whole.nlist
    assert_same(sharded.search(queries, k), whole.search(queries, k))


@pytest.mark.parametrize("restricted", [False, True])
@pytest.mark.parametrize("k", [1, 50, 2000])
def test_shards_change_no_bit_of_an_exact_search(built: Built, queries: np.ndarray, restricted: bool, k: int) -> None:
    exact, sharded = built.exact, built.open("exact of sharded")
    if restricted:
        exact, sharded = exact.restrict(built.allowed), sharded.restrict(built.allowed)
    assert_same(sharded.search(queries, k), exact.search(queries, k))


@pytest.mark.parametrize("name", ["ivf", "sharded"])
@pytest.mark.parametrize("restricted", [False, True])
@pytest.mark.parametrize("k", [1, 50, 1000])
def test_ivf_that_looks_into_every_list_equals_exact_search(built: Built, queries: np.ndarray, name: str, restricted: bool, k: int) -> None:
    ivf, exact = built.ivf(name), built.exact
    if restricted:
        ivf, exact = ivf.restrict(built.allowed), exact.restrict(built.allowed)
    assert_same(ivf.search_with_nprobe(queries, k, ivf.nlist), exact.search(queries, k))  # search() would take the product instead


@pytest.mark.parametrize(("overfetch", "k"), [(3.0, 1000), (3.0, 3000), (60.0, 50)])
def test_int8_that_fetches_everything_equals_exact_search(built: Built, queries: np.ndarray, overfetch: float, k: int) -> None:
    ivf = built.ivf("int8", overfetch=overfetch)
    assert_same(ivf.search_with_nprobe(queries, k, ivf.nlist), built.exact.search(queries, k))


def test_int8_with_over_fetch_finds_nearly_what_float32_finds(built: Built, queries: np.ndarray) -> None:
    def overlap(overfetch: float) -> float:
        _, found = built.ivf("int8", overfetch=overfetch).search(queries[:60], 50)
        return float(np.mean([len(set(a) & set(b)) / 50 for a, b in zip(found, truth, strict=True)]))

    _, truth = built.ivf("ivf").search(queries[:60], 50)
    assert 0.9 < overlap(1.0) < overlap(2.0)
    assert overlap(2.0) > 0.99


def test_ivf_keeps_its_recall_where_more_results_are_asked_for(built: Built, queries: np.ndarray) -> None:
    ivf = built.ivf()
    assert ivf.nlist == 187
    assert [ivf.effective_nprobe(n) for n in (1, 50, 75, 565)] == [10, 10, 14, 62]
    assert ivf.effective_nprobe(580) == ivf.nlist  # past a third of the lists the product is cheaper
    few, many = (np.isfinite(ivf.with_nprobe(1).search(queries, k)[0]).sum(axis=1) for k in (50, 300))
    assert few.min() < 50
    assert many.mean() > 4 * few.mean()


def test_ivf_looks_into_more_lists_where_items_are_left_out(built: Built) -> None:
    every_third = np.arange(3000) % 3 == 0
    ivf = built.ivf().restrict(every_third)
    assert (ivf.n_items, ivf.effective_nprobe(50), ivf.effective_nprobe(100)) == (1000, 23, 39)
    assert ivf.with_nprobe(28).effective_nprobe(50) == ivf.nlist


def test_the_lists_that_hold_what_is_found_are_as_many_as_were_probed(built: Built, queries: np.ndarray) -> None:
    every_third = np.arange(3000) % 3 == 0
    ivf = built.ivf().restrict(every_third)
    assert_same(ivf.search(queries, 50), ivf.search_with_nprobe(queries, 50, 23))


def test_all_allowed_is_the_same_as_no_restriction(case: Case, queries: np.ndarray) -> None:
    everything = np.ones(3000, dtype=bool)
    retriever = case.built.open(case.backend.index, **case.backend.options)
    assert_same(retriever.restrict(everything).search(queries, 50), retriever.search(queries, 50))


@pytest.mark.parametrize("n_allowed", [0, 1, 7])
def test_a_few_allowed_items_are_all_found_and_nothing_else(case: Case, queries: np.ndarray, n_allowed: int) -> None:
    few = np.isin(np.arange(3000), np.random.default_rng(4).choice(3000, n_allowed, replace=False))
    retriever = case.built.open(case.backend.index, **case.backend.options).restrict(few)
    _, codes = retriever.search(queries, 10)
    assert retriever.n_items == n_allowed
    assert (np.sort(codes[:, :n_allowed], axis=1) == np.flatnonzero(few)).all()
    assert (codes[:, n_allowed:] == -1).all()


@pytest.mark.parametrize("name", ["exact", "ivf", "int8", "sharded"])
def test_a_restriction_of_a_restricted_search_allows_what_both_allow(built: Built, queries: np.ndarray, name: str) -> None:
    even = np.arange(3000) % 2 == 0
    retriever = built.open(name) if name == "exact" else built.ivf(name)
    assert_same(
        retriever.restrict(built.allowed).restrict(even).search(queries, 50), retriever.restrict(built.allowed & even).search(queries, 50)
    )


def test_n_items_counts_what_can_be_found(case: Case) -> None:
    assert case.retriever.n_items == len(case.codes)


def test_only_what_trades_recall_for_time_is_probing(case: Case) -> None:
    retriever = case.retriever
    assert isinstance(retriever, TunableRetriever) == case.name.startswith(("ivf", "int8", "sharded"))
    if isinstance(retriever, TunableRetriever):
        assert (len(retriever.overfetch_grid) > 1) == case.name.startswith("int8")
        assert retriever.overfetch_grid[0] == 1.0


def test_no_queries_give_no_rows(case: Case) -> None:
    scores, codes = case.retriever.search(np.zeros((0, 16), np.float32), 5)
    assert scores.shape == codes.shape == (0, 5)


@pytest.mark.parametrize(
    ("query", "k", "message"),
    [
        (np.array([[0.0] * 16, [np.nan] * 16], np.float32), 5, "row 1 is not finite"),
        (np.array([[np.inf] + [0.0] * 15], np.float32), 5, "row 0 is not finite"),
        (np.zeros((2, 8), np.float32), 5, "same model"),
        (np.zeros(16, np.float32), 5, "same model"),
        (np.zeros((2, 16), np.float32), 0, "k >= 1"),
    ],
)
def test_queries_that_cannot_be_searched_are_refused(case: Case, query: np.ndarray, k: int, message: str) -> None:
    with pytest.raises(RecsysBatchError, match=message):
        case.retriever.search(query, k)


def test_queries_may_lie_in_memory_in_any_order(case: Case, queries: np.ndarray) -> None:
    assert_same(case.retriever.search(np.asfortranarray(queries), 50), case.retriever.search(queries, 50))


def test_a_search_leaves_its_queries_as_they_were(case: Case, queries: np.ndarray) -> None:
    given = queries.copy()
    case.retriever.search(given, 5)
    np.testing.assert_array_equal(given, queries)


@pytest.mark.parametrize("index", ["exact", "exact of sharded", "ivf", "int8", "sharded"])
@pytest.mark.parametrize("n_threads", [2, 1])
def test_a_search_uses_no_more_threads_than_it_was_given(built: Built, queries: np.ndarray, index: str, n_threads: int) -> None:
    from threadpoolctl import threadpool_info

    kernels.limit_threads(3 - n_threads)
    built.open(index, n_threads=n_threads).search(queries, 5)
    ours = [pool for pool in threadpool_info() if "faiss" in pool["filepath"] or "numpy" in pool["filepath"]]
    assert [pool["num_threads"] for pool in ours] == [n_threads] * 3  # faiss's OpenMP and BLAS, numpy's BLAS


def test_the_dot_product_of_no_item_is_minus_infinity(built: Built) -> None:
    codes = np.array([[0, -1], [-1, 2]])
    scores = kernels.inner_products(built.vectors[:2], built.vectors, codes)
    np.testing.assert_array_equal(scores == -np.inf, codes == -1)


@pytest.mark.parametrize(
    "sizes",
    [
        {
            (kernels, "_BLOCK_PAIRS"): 500,
            (retrievers, "_GATHER_ROWS"): 100,
            (inverted_lists, "_BLOCK_SCORES"): 2000,
            (inverted_lists, "_RESCORE_ROWS"): 3,
        },
        {
            (kernels, "_BLOCK_PAIRS"): 1,
            (retrievers, "_GATHER_ROWS"): 7,
            (inverted_lists, "_BLOCK_SCORES"): 1,
            (inverted_lists, "_RESCORE_ROWS"): 1,
        },
        {(kernels, "_MAX_DENSE_VECTORS"): 100},  # faiss in the place of a product and a partition
    ],
    ids=["small", "smallest", "faiss"],
)
def test_small_blocks_change_nothing(
    case: Case, queries: np.ndarray, sizes: dict[tuple[object, str], int], monkeypatch: pytest.MonkeyPatch
) -> None:
    some = queries[::4]
    expected = case.retriever.search(some, 50)
    for (module, name), size in sizes.items():
        monkeypatch.setattr(module, name, size)
    assert_same(case.retriever.search(some, 50), expected)


@pytest.mark.parametrize("mode", ["exact", "ivf", "sharded"])
@pytest.mark.parametrize("size", [1e-30, 1e30])
def test_by_cosine_tiny_and_huge_vectors_are_found_as_others_are(
    tmp_path: Path, mode: Literal["exact", "ivf", "sharded"], size: float
) -> None:
    rng = np.random.default_rng(8)
    vectors, queries = rng.standard_normal((400, 16)).astype(np.float32), rng.standard_normal((9, 16)).astype(np.float32)
    sized = vectors.copy()
    sized[::2] *= np.float32(size)  # beside others
    settings = Retrieval(mode=mode, metric="cosine", n_candidates=20)
    plain, odd = (open_retriever(tmp_path, build_index(rows, settings, tmp_path, n_threads=1), nprobe=10**6) for rows in (vectors, sized))
    expected_scores, expected = plain.search(queries, 20)
    for asked in (queries, (queries * np.float32(size)).astype(np.float32)):
        scores, codes = odd.search(asked, 20)
        np.testing.assert_array_equal(codes, expected)
        np.testing.assert_allclose(scores, expected_scores, rtol=1e-5)
    assert np.isin([0, 1], expected % 2).all()  # of both kinds
