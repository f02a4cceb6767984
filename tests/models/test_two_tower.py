import jax
import jax.numpy as jnp
import numpy as np

from cadc_jax.models.two_tower import TwoTower
from tests.models.test_dlrm import random_inputs


def test_an_untrained_network_scores_as_the_factorisation_does():
    x = random_inputs()
    model = TwoTower(hidden=(8,))
    logits = model.apply(model.init(jax.random.key(0), x), x)
    np.testing.assert_allclose(logits, jnp.einsum("bd,bgd->bg", x.user, x.item) / 2, rtol=1e-5)


def test_a_gate_starts_open_and_the_scale_where_it_is_told():
    x = random_inputs()
    model = TwoTower(hidden=(), gate=4, scale=3.0)
    logits = model.apply(model.init(jax.random.key(0), x), x)
    np.testing.assert_allclose(logits, 3 * jnp.einsum("bd,bgd->bg", x.user, x.item) / 2, rtol=1e-5)


def test_a_gate_weighs_embeddings_by_their_length_alone():
    x = random_inputs()
    model = TwoTower(hidden=(), gate=4)
    params = model.init(jax.random.key(0), x)
    gate = params["params"]["user_tower"]["gate"]["Dense_1"]
    gate["kernel"] = jax.random.normal(jax.random.key(1), gate["kernel"].shape)
    plain, turned = (
        model.apply(params, x.replace(user=user, item=item))
        for user, item in ((x.user, x.item), (-x.user, -x.item))
    )
    np.testing.assert_allclose(plain, turned, rtol=1e-5)
    dots = jnp.einsum("bd,bgd->bg", x.user, x.item) / 2
    assert not np.allclose(plain, dots, rtol=0.1)
    longer = model.apply(params, x.replace(user=2 * x.user))
    assert not np.allclose(longer, 2 * plain, rtol=0.01)


def test_items_shared_by_all_users_score_as_if_repeated():
    x = random_inputs(items=5, item_rows=1)
    repeated = x.replace(
        item=jnp.repeat(x.item, 3, 0),
        item_dense=jnp.repeat(x.item_dense, 3, 0),
        item_features=jnp.repeat(x.item_features, 3, 0),
    )
    model = TwoTower(hidden=(8,))
    params = jax.tree.map(lambda p: p + 0.1, model.init(jax.random.key(0), x))
    np.testing.assert_allclose(
        model.apply(params, x), model.apply(params, repeated), rtol=1e-5, atol=1e-5
    )


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
