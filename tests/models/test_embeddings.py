import jax
import jax.numpy as jnp
import numpy as np

from cadc_jax.models import embeddings
from cadc_jax.models.embeddings import Content


def content():
    """Two user ids with one feature (vocabulary 3), three item ids with one feature; the row's own
    feature lies between them in the stacked table (vocabulary 4)."""
    return Content(
        user_dense=jnp.array([[0.0], [1.5]]),
        user_categorical=jnp.array([[0], [2]]),
        item_dense=jnp.zeros((3, 0)),
        item_categorical=jnp.array([[7], [8], [9]]),
        context_offsets=jnp.array([3]),
    )


def batch():
    return {
        "user": jnp.array([1, 0]),
        "item": jnp.array([[2, 1], [1, 1]]),
        "dense": jnp.array([[5.0], [6.0]]),
        "categorical": jnp.array([[3], [0]]),
    }


def test_vocabularies_are_stacked_one_after_the_other():
    np.testing.assert_array_equal(embeddings.stacked_offsets([3, 4, 2]), [0, 3, 7])


def test_ids_of_a_batch_are_those_of_users_rows_and_items():
    ids = embeddings.lookup_ids(content(), batch())
    np.testing.assert_array_equal(ids["user"], [1, 0])
    np.testing.assert_array_equal(ids["item"], [2, 1, 1, 1])
    np.testing.assert_array_equal(ids["features"], [2, 6, 9, 8, 0, 3, 8, 8])


def test_rows_of_weight_zero_ask_for_no_row():
    ids = embeddings.lookup_ids(content(), {**batch(), "weight": jnp.array([1.0, 0.0])})
    np.testing.assert_array_equal(ids["user"], [1, -1])
    np.testing.assert_array_equal(ids["item"], [2, 1, -1, -1])
    np.testing.assert_array_equal(ids["features"], [2, 6, 9, 8, -1, -1, -1, -1])


def test_inputs_hold_the_rows_that_were_asked_for():
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


def test_features_of_many_values_are_weighted_sums():
    tables = {name: jnp.ones((3, 2)) for name in ("user", "item")}
    tables["features"] = jnp.arange(20.0).reshape(10, 2)
    ids = embeddings.lookup_ids(bags(), bag_batch())
    np.testing.assert_array_equal(ids["features"], [2, 6, 7, 0, 2, 8, 2, -1] + [-1] * 8)
    rows = embeddings.take_rows(tables, embeddings.lookup_ids(bags(), pair_of(bag_batch())))
    inputs = embeddings.model_inputs(rows, bags(), bag_batch())
    assert inputs.item_features.shape == (2, 2, 2, 2)
    np.testing.assert_array_equal(
        inputs.item_features[:, :, 1], [[[2, 3], [4, 5]], [[0, 0], [2, 3]]]
    )


def pair_of(batch):
    return {name: x for name, x in batch.items() if name != "weight"}


def test_values_that_are_not_there_get_no_gradient():
    def total(features):
        tables = {"user": jnp.ones((3, 2)), "item": jnp.ones((3, 2)), "features": features}
        rows = embeddings.take_rows(tables, embeddings.lookup_ids(bags(), pair_of(bag_batch())))
        inputs = embeddings.model_inputs(rows, bags(), pair_of(bag_batch()))
        return jnp.sum(inputs.item_features[:, :, 1])

    grads = jax.grad(total)(jnp.ones((10, 2)))
    np.testing.assert_array_equal(grads[:, 0], [1, 0, 2, 0, 0, 0, 0, 0, 0, 0])
