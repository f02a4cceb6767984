"""Ids, rows and inputs of small batches, checked by hand."""

import dataclasses

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from cadc_jax.data.likely import LikelyItems
from cadc_jax.data.table import Features, Schema, Table
from cadc_jax.data.vocabulary import MOST_IDS
from cadc_jax.errors import DataError
from cadc_jax.models import embeddings
from cadc_jax.models.embeddings import Content, Inputs
from cadc_jax.resident import likely


def content():
    """Two users with one feature of 3 values, and three items with one feature of 3 values.

    The stacked table holds 3 values of users, 4 of the context feature and 3 of items.
    """
    return Content(
        user_dense=jnp.array([[0.0], [1.5]]),
        user_categorical=jnp.array([[0], [2]]),
        item_dense=jnp.zeros((3, 0)),
        item_categorical=jnp.array([[7], [8], [9]]),
        context_offsets=jnp.array([3]),
    )


BARE = Schema("ranking", 2, 2, Features(), Features(), Features())


def table():
    """A prepared table with the content above, and a bag of 5 values for each item."""
    schema = Schema(
        "ranking",
        2,
        3,
        context=Features(categorical=("hour",), vocabulary_sizes=(4,)),
        user_content=Features(("age",), ("town",), (3,)),
        item_content=Features((), ("brand",), (3,), ("tags",), (5,)),
    )
    users = {"dense": np.float32([[0], [1.5]]), "categorical": np.int32([[0], [2]])}
    items = {
        "dense": np.zeros((3, 0), np.float32),
        "categorical": np.int32([[0], [1], [2]]),
        "bags": np.int32([[[1, 4]], [[2, -1]], [[-1, -1]]]),
    }
    return Table(schema, {}, users, items, {})


def batch():
    """User 1 with items 2 and 1, user 0 with item 1 twice."""
    return {
        "user": jnp.array([1, 0]),
        "item": jnp.array([[2, 1], [1, 1]]),
        "dense": jnp.array([[5.0], [6.0]]),
        "categorical": jnp.array([[3], [0]]),
    }


def test_each_vocabulary_starts_after_the_one_before():
    np.testing.assert_array_equal(embeddings.stacked_offsets([3, 4, 2]), [0, 3, 7])


def test_a_stacked_table_of_more_rows_than_ids_is_refused():
    sizes = [MOST_IDS - 10, 10]
    np.testing.assert_array_equal(embeddings.stacked_offsets(sizes), [0, MOST_IDS - 10])
    with pytest.raises(DataError, match="2,147,418,113 values together.*lower data.max_vocabulary"):
        embeddings.stacked_offsets([*sizes, 1])


def test_the_rows_of_the_stacked_table_are_all_values_of_all_features():
    assert embeddings.num_feature_rows(table()) == 3 + 4 + 3 + 5
    assert embeddings.num_feature_rows(dataclasses.replace(table(), schema=BARE)) == 0


def test_the_content_of_a_table_has_stacked_ids_and_mean_weights():
    found = embeddings.content_of(table())
    np.testing.assert_array_equal(found.user_dense, [[0.0], [1.5]])
    np.testing.assert_array_equal(found.user_categorical, [[0], [2]])
    np.testing.assert_array_equal(found.context_offsets, [3])
    np.testing.assert_array_equal(found.item_categorical, [[7], [8], [9]])
    np.testing.assert_array_equal(found.item_bags, [[[11, 14]], [[12, -1]], [[-1, -1]]])
    np.testing.assert_array_equal(found.bag_weights, [[[0.5, 0.5]], [[1, 0]], [[0, 0]]])
    assert found.ids_an_item == 1 + 1 * 2


def test_a_table_without_features_has_empty_content():
    empty = {"dense": np.zeros((2, 0), np.float32), "categorical": np.zeros((2, 0), np.int32)}
    found = embeddings.content_of(Table(BARE, {}, empty, empty, {}))
    assert found.user_categorical.shape == found.item_categorical.shape == (2, 0)
    assert found.context_offsets.shape == (0,)
    assert found.item_bags is None and found.ids_an_item == 0


def test_ids_of_a_batch_are_those_of_its_users_rows_and_items():
    ids = embeddings.lookup_ids(content(), batch())
    np.testing.assert_array_equal(ids["user"], [1, 0])
    np.testing.assert_array_equal(ids["item"], [2, 1, 1, 1])
    np.testing.assert_array_equal(ids["features"], [2, 6, 9, 8, 0, 3, 8, 8])


def test_rows_of_weight_zero_need_no_row_of_any_table():
    ids = embeddings.lookup_ids(content(), {**batch(), "weight": jnp.array([1.0, 0.0])})
    np.testing.assert_array_equal(ids["user"], [1, -1])
    np.testing.assert_array_equal(ids["item"], [2, 1, -1, -1])
    np.testing.assert_array_equal(ids["features"], [2, 6, 9, 8, -1, -1, -1, -1])


def test_inputs_hold_the_rows_of_their_ids():
    tables = {
        "user": jnp.arange(2.0)[:, None],
        "item": 10 + jnp.arange(3.0)[:, None],
        "features": 100 + jnp.arange(10.0)[:, None],
    }
    rows = embeddings.take_rows(tables, embeddings.lookup_ids(content(), batch()))
    inputs = embeddings.model_inputs(rows, content(), batch())
    np.testing.assert_array_equal(inputs.user[:, 0], [1, 0])
    np.testing.assert_array_equal(inputs.item[..., 0], [[12, 11], [11, 11]])
    np.testing.assert_array_equal(inputs.user_dense, [[1.5, 5], [0, 6]])
    np.testing.assert_array_equal(inputs.user_features[..., 0], [[102, 106], [100, 103]])
    np.testing.assert_array_equal(inputs.item_features[..., 0, 0], [[109, 108], [108, 108]])


def bags():
    """Item 0 has values 0 and 2, item 1 has 2, item 2 has none; one row of the batch is padding."""
    return content().replace(
        item_bags=jnp.array([[[0, 2]], [[2, -1]], [[-1, -1]]]),
        bag_weights=jnp.array([[[0.5, 0.5]], [[1.0, 0.0]], [[0.0, 0.0]]]),
    )


def bag_batch():
    return {**batch(), "item": jnp.array([[0, 1], [2, 0]]), "weight": jnp.array([1.0, 0.0])}


def test_a_bag_is_the_weighted_sum_of_its_values():
    tables = {name: jnp.ones((3, 2)) for name in ("user", "item")}
    tables["features"] = jnp.arange(20.0).reshape(10, 2)
    ids = embeddings.lookup_ids(bags(), bag_batch())
    np.testing.assert_array_equal(ids["features"], [2, 6, 7, 0, 2, 8, 2, -1] + [-1] * 8)
    rows = embeddings.take_rows(tables, embeddings.lookup_ids(bags(), without_weight(bag_batch())))
    inputs = embeddings.model_inputs(rows, bags(), bag_batch())
    assert inputs.item_features.shape == (2, 2, 2, 2)
    np.testing.assert_array_equal(
        inputs.item_features[:, :, 1], [[[2, 3], [4, 5]], [[0, 0], [2, 3]]]
    )


def without_weight(batch):
    """The batch as if all its rows counted."""
    return {name: x for name, x in batch.items() if name != "weight"}


def test_the_padding_of_a_bag_gets_no_gradient():
    def total(features):
        tables = {"user": jnp.ones((3, 2)), "item": jnp.ones((3, 2)), "features": features}
        rows = embeddings.take_rows(
            tables, embeddings.lookup_ids(bags(), without_weight(bag_batch()))
        )
        inputs = embeddings.model_inputs(rows, bags(), without_weight(bag_batch()))
        return jnp.sum(inputs.item_features[:, :, 1])

    grads = jax.grad(total)(jnp.ones((10, 2)))
    np.testing.assert_array_equal(grads[:, 0], [1, 0, 2, 0, 0, 0, 0, 0, 0, 0])


def test_shared_items_are_looked_up_once():
    shared = {**batch(), "item": jnp.array([[2, 1]])}
    ids = embeddings.lookup_ids(content(), shared)
    np.testing.assert_array_equal(ids["item"], [2, 1])
    np.testing.assert_array_equal(ids["features"], [2, 6, 0, 3, 9, 8])
    tables = {"user": jnp.zeros((2, 1)), "item": jnp.zeros((3, 1))}
    tables["features"] = 100 + jnp.arange(10.0)[:, None]
    inputs = embeddings.model_inputs(embeddings.take_rows(tables, ids), content(), shared)
    np.testing.assert_array_equal(inputs.user_features[..., 0], [[102, 106], [100, 103]])
    np.testing.assert_array_equal(inputs.item_features[..., 0], [[[109], [108]]])
    assert inputs.item.shape == (1, 2, 1)


def test_a_batch_with_all_items_chooses_its_own():
    shared = embeddings.with_all_items(content(), batch())
    np.testing.assert_array_equal(shared["item"], [[0, 1, 2]])
    np.testing.assert_array_equal(shared["chosen"], batch()["item"])
    assert "uses" not in shared


def test_only_the_items_of_rows_that_count_are_looked_up_among_all_items():
    weighted = {**batch(), "weight": jnp.array([0.0, 1.0])}  # item 2 is only in the padding
    shared = embeddings.with_all_items(content(), weighted)
    np.testing.assert_array_equal(shared["uses"], [[0, 2, 0]])
    ids = embeddings.lookup_ids(content(), shared)
    np.testing.assert_array_equal(ids["item"], [-1, 1, -1])
    np.testing.assert_array_equal(ids["features"], [-1, -1, 0, 3, -1, 8, -1])
    uses = embeddings.uses_of_rows(content(), shared, ids)
    np.testing.assert_array_equal(uses["user"], [0, 1])
    np.testing.assert_array_equal(uses["item"], [0, 2, 0])
    np.testing.assert_array_equal(uses["features"], [0, 0, 1, 1, 0, 2, 0])


def test_all_items_but_the_unknown_and_the_likely_ones_compete():
    factors = np.eye(2, 2, dtype=np.float32), np.array([[9, 9], [1, 0], [0, 1]], np.float32)
    table = likely.of(LikelyItems.of(factors, np.array([0, 1]), rate=1.0))
    found = embeddings.among_all_items(content().replace(likely=table), batch(), devices=2)
    np.testing.assert_array_equal(found["item"], [[0, 1, 2, 0]])  # divides over two devices
    np.testing.assert_array_equal(found["positive"], batch()["item"][:, 0])
    user = np.asarray(batch()["user"])
    expected = np.array([[False, False, True, False], [False, True, False, False]])[user]
    np.testing.assert_array_equal(found["competes"], expected)
    ids = embeddings.lookup_ids(content(), {**found, "weight": jnp.ones(2)})
    np.testing.assert_array_equal(ids["item"], [0, 1, 2, -1])


def test_a_batch_of_pairs_has_no_context_features():
    pairs = embeddings.pair_batch(jnp.array([1, 0]), jnp.array([[2, 1], [1, 1]]))
    assert pairs["dense"].shape == pairs["categorical"].shape == (2, 0)
    no_context = content().replace(context_offsets=jnp.zeros(0, jnp.int32))
    ids = embeddings.lookup_ids(no_context, pairs)
    np.testing.assert_array_equal(ids["features"], [2, 9, 8, 0, 8, 8])


def test_ids_outside_a_table_read_its_last_row():
    rows = embeddings.take_rows({"user": jnp.arange(3.0)}, {"user": jnp.array([-1, 1, 7])})
    np.testing.assert_array_equal(rows["user"], [2, 1, 2])


def test_each_user_can_be_given_the_items_of_all_users():
    one = jnp.arange(3.0)[:, None, None]
    inputs = Inputs(jnp.zeros((3, 1)), one, jnp.zeros((3, 0)), one, jnp.zeros((3, 0, 1)), one)
    shared = embeddings.with_shared_items(inputs)
    assert shared.user is inputs.user
    for name in ("item", "item_dense", "item_features"):
        np.testing.assert_array_equal(getattr(shared, name), np.arange(3.0)[None, :, None])
