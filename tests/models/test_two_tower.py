"""Two-tower networks against a NumPy reference, and as an untrained factorisation."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from cadc_jax.errors import ConfigError
from cadc_jax.models.two_tower import TwoTower
from tests.models.inputs import random_inputs, with_repeated_items


def test_an_untrained_network_scores_as_its_factorisation():
    x = random_inputs()
    model = TwoTower(hidden=(8,))
    logits = model.apply(model.init(jax.random.key(0), x), x)
    np.testing.assert_allclose(logits, jnp.einsum("bd,bgd->bg", x.user, x.item) / 2, rtol=1e-5)


def test_a_gate_starts_at_one_and_the_scale_at_its_setting():
    x = random_inputs()
    model = TwoTower(hidden=(), gate=4, scale=3.0)
    logits = model.apply(model.init(jax.random.key(0), x), x)
    np.testing.assert_allclose(logits, 3 * jnp.einsum("bd,bgd->bg", x.user, x.item) / 2, rtol=1e-5)


def test_a_gate_weighs_embeddings_by_their_length_only():
    x = random_inputs()
    model = TwoTower(hidden=(), gate=4)
    params = model.init(jax.random.key(0), x)
    gate = params["params"]["user_tower"]["gate"]["Dense_1"]
    gate["kernel"] = jax.random.normal(jax.random.key(1), gate["kernel"].shape)
    plain, negated = (
        model.apply(params, x.replace(user=user, item=item))
        for user, item in ((x.user, x.item), (-x.user, -x.item))
    )
    np.testing.assert_allclose(plain, negated, rtol=1e-5)
    dots = jnp.einsum("bd,bgd->bg", x.user, x.item) / 2
    assert not np.allclose(plain, dots, rtol=0.1)
    longer = model.apply(params, x.replace(user=2 * x.user))
    assert not np.allclose(longer, 2 * plain, rtol=0.01)


def test_items_shared_by_all_users_score_as_if_repeated():
    shared = random_inputs(items=5, shared=True)
    model = TwoTower(hidden=(8,))
    params = jax.tree.map(lambda p: p + 0.1, model.init(jax.random.key(0), shared))
    logits = model.apply(params, shared)
    repeated = model.apply(params, with_repeated_items(shared))
    np.testing.assert_allclose(logits, repeated, rtol=1e-5, atol=1e-5)


def test_only_the_chosen_ones_of_shared_items_are_scored():
    shared = random_inputs(items=5, shared=True)
    model = TwoTower(hidden=(8,), gate=2)
    params = jax.tree.map(lambda p: p + 0.1, model.init(jax.random.key(0), shared))
    chosen = jnp.array([[4, 0], [1, 1], [2, 3]])
    want = np.take_along_axis(np.asarray(model.apply(params, shared)), chosen, axis=1)
    got = model.apply(params, shared.replace(chosen=chosen))
    np.testing.assert_allclose(got, want, rtol=1e-5, atol=1e-5)


def test_logits_equal_a_numpy_reference():
    x = random_inputs()
    model = TwoTower(hidden=(8,))
    params = jax.tree.map(lambda p: p + 0.1, model.init(jax.random.key(0), x))
    p = jax.tree.map(np.asarray, params["params"])

    def tower(name, embedding, dense, features):
        v = np.concatenate([embedding, dense, np.ravel(features)])
        first, second = p[name]["MLP_0"]["Dense_0"], p[name]["MLP_0"]["Dense_1"]
        v = np.maximum(v @ first["kernel"] + first["bias"], 0) @ second["kernel"] + second["bias"]
        return embedding + v[:-1], v[-1]

    user, user_bias = tower("user_tower", x.user[1], x.user_dense[1], x.user_features[1])
    item, item_bias = tower("item_tower", x.item[1, 0], x.item_dense[1, 0], x.item_features[1, 0])
    expected = p["scale"] * (user @ item) / 2 + user_bias + item_bias + p["bias"]
    np.testing.assert_allclose(model.apply(params, x)[1, 0], expected, rtol=1e-4)


def test_dropout_acts_in_training_only():
    x = random_inputs()
    model = TwoTower(hidden=(64,), dropout=0.5)
    params = jax.tree.map(lambda p: p + 0.1, model.init(jax.random.key(0), x))
    still = model.apply(params, x)
    moving = model.apply(params, x, train=True, rngs={"dropout": jax.random.key(1)})
    np.testing.assert_array_equal(still, model.apply(params, x))
    assert not np.allclose(still, moving)


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"hidden": (0,)}, r"two_tower.hidden=\(0,\): must be at least 1"),
        ({"gate": -1}, "two_tower.gate=-1: must be at least 0"),
        ({"dropout": 1.0}, r"two_tower.dropout=1.0: must be in \[0, 1\)"),
    ],
)
def test_sizes_that_cannot_work_are_rejected(change, message):
    with pytest.raises(ConfigError, match=message):
        TwoTower(**change)
    with pytest.raises(ConfigError, match=message):
        TwoTower().clone(**change)


def test_a_network_can_be_cloned_and_bound():
    x = random_inputs()
    model = TwoTower(hidden=())
    params = model.init(jax.random.key(0), x)
    assert model.clone() == model and hash(model.clone()) == hash(model)
    np.testing.assert_array_equal(model.bind(params)(x), model.apply(params, x))
