"""The multi-layer perceptron against NumPy."""

import jax
import jax.numpy as jnp
import numpy as np

from cadc_jax.models.mlp import MLP

X = np.random.default_rng(0).normal(size=(2, 3, 5)).astype(np.float32)


def test_every_layer_but_the_last_has_a_relu():
    model = MLP((4, 2))
    params = jax.tree.map(lambda p: p + 0.1, model.init(jax.random.key(0), X))
    first, second = (params["params"][f"Dense_{i}"] for i in range(2))
    hidden = np.maximum(X @ np.asarray(first["kernel"]) + np.asarray(first["bias"]), 0)
    want = hidden @ np.asarray(second["kernel"]) + np.asarray(second["bias"])
    assert (want < 0).any()
    np.testing.assert_allclose(model.apply(params, X), want, rtol=1e-4, atol=1e-5)


def test_a_zero_output_starts_at_zero_and_can_still_be_trained():
    model = MLP((4, 2), zero_output=True)
    params = model.init(jax.random.key(0), X)
    assert not model.apply(params, X).any()
    grads = jax.grad(lambda p: jnp.sum(model.apply(p, X)))(params)["params"]["Dense_1"]
    assert np.asarray(grads["kernel"]).any()


def test_dropout_zeroes_hidden_units_in_training_only():
    model = MLP((2000, 1), dropout=0.25)
    params = model.init(jax.random.key(0), X)
    params = {
        "params": {
            "Dense_0": {"kernel": jnp.zeros((5, 2000)), "bias": jnp.ones(2000)},
            "Dense_1": {"kernel": jnp.ones((2000, 1)), "bias": jnp.zeros(1)},
        }
    }
    np.testing.assert_array_equal(model.apply(params, X), np.full((2, 3, 1), 2000.0))
    trained = model.apply(params, X[:1, 0], train=True, rngs={"dropout": jax.random.key(1)})
    kept = float(trained[0, 0]) * 0.75 / 2000  # the units that are kept are divided by 0.75
    assert 0.7 < kept < 0.8
