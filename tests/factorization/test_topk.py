"""Top-k retrieval against a full sort."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from cadc_jax import sharding
from cadc_jax.factorization.topk import retrieve, search

B, D, ITEMS = 7, 5, 103


@pytest.fixture
def tables():
    rng = np.random.default_rng(0)
    return (
        rng.normal(size=(B, D)).astype(np.float32),
        rng.normal(size=(ITEMS, D)).astype(np.float32),
    )


def reference(queries, items, k, exclude=None):
    scores = queries.astype(np.float64) @ items.astype(np.float64).T
    for row, ids in enumerate([] if exclude is None else exclude):
        scores[row, ids[ids >= 0]] = -np.inf
    order = np.argsort(-scores, axis=1, kind="stable")[:, :k]
    return np.take_along_axis(scores, order, 1), order


@pytest.mark.parametrize("block", [1, 16, 103, 8192])
@pytest.mark.parametrize("k", [1, 10, ITEMS])
def test_the_result_is_that_of_a_full_sort_for_any_block(block, k, tables):
    scores, ids = retrieve(*map(jnp.asarray, tables), k, block=block)
    want_scores, want_ids = reference(*tables, k)
    np.testing.assert_array_equal(ids, want_ids)
    np.testing.assert_allclose(scores, want_scores, rtol=1e-4, atol=1e-5)


@pytest.mark.parametrize("block", [10, 8192])
def test_excluded_items_are_not_returned(block, tables):
    exclude = np.random.default_rng(1).integers(-1, ITEMS, (B, 40)).astype(np.int32)
    _, ids = retrieve(*map(jnp.asarray, tables), 20, jnp.asarray(exclude), block=block)
    np.testing.assert_array_equal(ids, reference(*tables, 20, exclude)[1])


def test_places_without_an_item_are_marked(tables):
    exclude = jnp.tile(jnp.arange(ITEMS - 2, dtype=jnp.int32), (B, 1))
    scores, ids = retrieve(*map(jnp.asarray, tables), 4, exclude, block=16)
    assert np.all(np.sort(ids[:, :2]) == [ITEMS - 2, ITEMS - 1])
    assert np.all(np.asarray(ids[:, 2:]) == -1)
    assert np.all(np.isneginf(scores[:, 2:]))


def test_the_lower_id_wins_among_equal_scores():
    items = jnp.ones((20, 2))
    _, ids = retrieve(jnp.ones((1, 2)), items, 5, block=4)
    np.testing.assert_array_equal(ids, [[0, 1, 2, 3, 4]])


@pytest.mark.parametrize("devices", [2, 4, 8])
@pytest.mark.parametrize("block", [6, 8192])
def test_items_spread_over_devices_give_the_same_result(devices, block, tables):
    mesh = sharding.make_mesh(devices=jax.devices()[:devices])
    exclude = jnp.asarray(np.random.default_rng(1).integers(-1, ITEMS, (B, 9)), jnp.int32)
    arguments = (*map(jnp.asarray, tables), 12, exclude)
    got = retrieve(*arguments, block=block, mesh=mesh)
    want = retrieve(*arguments)
    np.testing.assert_array_equal(got[1], want[1])
    np.testing.assert_allclose(got[0], want[0], rtol=1e-5)


def test_no_device_holds_all_scores_or_all_items():
    mesh = sharding.make_mesh(devices=jax.devices()[:8])
    queries = jax.ShapeDtypeStruct((4, 16), jnp.float32)
    rows = sharding.named(mesh, jax.sharding.PartitionSpec(mesh.axis_names))
    items = jax.ShapeDtypeStruct((8 * 1024, 16), jnp.float32, sharding=rows)
    text = retrieve.lower(queries, items, 5, block=256, mesh=mesh).compile().as_text()
    assert "f32[8192,16]" not in text
    assert "f32[4,8192]" not in text
    assert "f32[4,1024]" not in text
    assert "f32[4,256]" in text


def test_more_items_than_there_are_are_rejected(tables):
    with pytest.raises(ValueError, match="k=104 is not between 1 and the number of items, 103"):
        retrieve(*map(jnp.asarray, tables), 104)
    with pytest.raises(ValueError, match="k=11 is not between 1 and the number of items, 10"):
        search(score_by(tables), range(3, 13), 11, np.zeros((B, 0), np.int32), 4)


def score_by(tables):
    """A scoring function for `search`: ids -> scores of all queries."""
    return lambda ids: jnp.asarray(tables[0]) @ jnp.asarray(tables[1])[ids].T


@pytest.mark.parametrize("block", [10, 103, 8192])
def test_a_search_by_a_scoring_function_is_that_of_a_full_sort(block, tables):
    exclude = np.random.default_rng(1).integers(-1, ITEMS, (B, 40)).astype(np.int32)
    scores, ids = search(score_by(tables), range(ITEMS), 20, exclude, block)
    want_scores, want_ids = reference(*tables, 20, exclude)
    np.testing.assert_array_equal(ids, want_ids)
    np.testing.assert_allclose(scores, want_scores, rtol=1e-4, atol=1e-5)


def test_a_search_returns_candidates_only(tables):
    no_exclusion = np.zeros((B, 0), np.int32)
    scores, ids = search(score_by(tables), range(5, ITEMS), 10, no_exclusion, 16)
    want_scores, want_ids = reference(tables[0], tables[1][5:], 10)
    np.testing.assert_array_equal(ids, want_ids + 5)
    np.testing.assert_allclose(scores, want_scores, rtol=1e-4, atol=1e-5)
