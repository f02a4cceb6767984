"""DCN-v2 against a NumPy reference of its paper."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from cadc_jax.errors import ConfigError
from cadc_jax.models.dcn import DCN, CrossLayer
from tests.models.inputs import random_inputs, with_repeated_items, without_features


def numpy_dcn(params, x, b, g):
    """The logit of one pair, step by step as the paper describes it."""
    p = jax.tree.map(np.asarray, params)
    sides = [
        np.concatenate([x.user[b], np.ravel(x.user_features[b]), x.user_dense[b]]),
        np.concatenate([x.item[b, g], np.ravel(x.item_features[b, g]), x.item_dense[b, g]]),
    ]
    x0 = out = np.concatenate(sides)
    for i in range(len(p) - 1):
        layer = p[f"cross_{i}"]
        if "w" in layer:
            weight, bias = layer["w"]["kernel"], layer["w"]["bias"]
        else:
            weight, bias = layer["v"]["kernel"] @ layer["u"]["kernel"], layer["u"]["bias"]
        out = x0 * (weight.T @ out + bias) + out
    layers = list(p["top_mlp"].values())
    for i, layer in enumerate(layers):
        out = out @ layer["kernel"] + layer["bias"]
        out = np.maximum(out, 0) if i < len(layers) - 1 else out
    return out[0]


@pytest.mark.parametrize("rank", [0, 2])
def test_logits_equal_a_numpy_reference(rank):
    model = DCN(cross_layers=3, rank=rank, top=(6, 3))
    x = random_inputs(rank=6, dim=4)
    params = jax.tree.map(lambda p: p + 0.05, model.init(jax.random.key(1), x))  # biases too
    expected = [[numpy_dcn(params["params"], x, b, g) for g in range(2)] for b in range(3)]
    np.testing.assert_allclose(model.apply(params, x), expected, rtol=1e-4, atol=1e-4)


def test_a_cross_layer_equals_values_by_hand():
    x0, x = jnp.array([2.0, 3.0]), jnp.array([5.0, 7.0])
    params = {"w": {"kernel": jnp.array([[0.0, 1.0], [1.0, 0.0]]), "bias": jnp.array([0.0, 1.0])}}
    out = CrossLayer().apply({"params": params}, x0, x)
    np.testing.assert_array_equal(out, [2 * 7 + 5, 3 * (5 + 1) + 7])


def test_a_low_rank_layer_has_no_full_matrix():
    x = jnp.ones((1, 50))
    params = CrossLayer(rank=3).init(jax.random.key(0), x, x)["params"]
    assert sum(p.size for p in jax.tree.leaves(params)) == 2 * 3 * 50 + 50


def test_without_features_only_the_embeddings_are_crossed():
    bare = without_features(random_inputs())
    params = DCN(cross_layers=1, top=()).init(jax.random.key(0), bare)["params"]
    assert params["cross_0"]["w"]["kernel"].shape == (8, 8)  # 4 of the user, 4 of the item


def test_items_shared_by_all_users_score_as_if_repeated():
    shared = random_inputs(items=5, shared=True)
    model = DCN(cross_layers=2, top=(6,))
    params = model.init(jax.random.key(1), shared)
    logits = model.apply(params, shared)
    repeated = model.apply(params, with_repeated_items(shared))
    np.testing.assert_allclose(logits, repeated, rtol=1e-5, atol=1e-6)


def test_dropout_acts_in_training_only():
    x = random_inputs()
    model = DCN(top=(64,), dropout=0.5)
    params = model.init(jax.random.key(0), x)
    still = model.apply(params, x)
    moving = model.apply(params, x, train=True, rngs={"dropout": jax.random.key(1)})
    np.testing.assert_array_equal(still, model.apply(params, x))
    assert not np.allclose(still, moving)


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"cross_layers": -1}, "dcn.cross_layers=-1: must be at least 0"),
        ({"rank": -1}, "dcn.rank=-1: must be at least 0"),
        ({"top": (8, 0)}, r"dcn.top=\(8, 0\): must be at least 1"),
        ({"dropout": 1.0}, r"dcn.dropout=1.0: must be in \[0, 1\)"),
    ],
)
def test_sizes_that_cannot_work_are_rejected(change, message):
    with pytest.raises(ConfigError, match=message):
        DCN(**change)
    with pytest.raises(ConfigError, match=message):
        DCN().clone(**change)


def test_a_network_without_cross_and_hidden_layers_is_allowed_and_can_be_cloned_and_bound():
    x = random_inputs()
    model = DCN(cross_layers=0, top=())
    params = model.init(jax.random.key(0), x)
    assert model.clone() == model
    np.testing.assert_array_equal(model.bind(params)(x), model.apply(params, x))
