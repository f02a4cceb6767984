"""DLRM against a NumPy reference of its paper, and its pairwise dot products."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from cadc_jax.errors import ConfigError
from cadc_jax.models.dlrm import DLRM, pairwise_dots
from tests.models.inputs import random_inputs, with_repeated_items


def numpy_dlrm(params, x, b, g):
    """The logit of one pair, step by step as the paper describes it."""

    def mlp(layers, v):
        for i in range(len(layers)):
            layer = layers[f"Dense_{i}"]
            v = v @ np.asarray(layer["kernel"]) + np.asarray(layer["bias"])
            v = np.maximum(v, 0) if i < len(layers) - 1 else v
        return v

    dense = np.concatenate([x.user_dense[b], x.item_dense[b, g]])
    bottom = np.maximum(mlp(params["bottom_mlp"], dense), 0)
    user, item = np.asarray(x.user[b]), np.asarray(x.item[b, g])
    if "project_user" in params:
        user = user @ np.asarray(params["project_user"]["kernel"])
        item = item @ np.asarray(params["project_item"]["kernel"])
    vectors = [bottom, user, *x.user_features[b], item, *x.item_features[b, g]]
    dots = [vectors[i] @ vectors[j] for i in range(len(vectors)) for j in range(i)]
    return mlp(params["top_mlp"], np.concatenate([bottom, dots]))[0]


@pytest.mark.parametrize("rank", [4, 6])  # 6: user and item rows are projected
def test_logits_equal_a_numpy_reference(rank):
    model = DLRM(embedding_dim=4, bottom=(5,), top=(6, 3))
    x = random_inputs(rank=rank)
    params = model.init(jax.random.key(1), x)
    logits = model.apply(params, x)
    expected = [[numpy_dlrm(params["params"], x, b, g) for g in range(2)] for b in range(3)]
    np.testing.assert_allclose(logits, expected, rtol=1e-4, atol=1e-5)


def test_items_shared_by_all_users_score_as_if_repeated():
    shared = random_inputs(items=5, shared=True)
    model = DLRM(embedding_dim=4, bottom=(5,), top=(6,))
    params = model.init(jax.random.key(1), shared)
    logits = model.apply(params, shared)
    repeated = model.apply(params, with_repeated_items(shared))
    np.testing.assert_allclose(logits, repeated, rtol=1e-5, atol=1e-6)


def test_dropout_acts_in_training_only():
    x = random_inputs()
    model = DLRM(embedding_dim=4, top=(64,), dropout=0.5)
    params = model.init(jax.random.key(0), x)
    still = model.apply(params, x)
    moving = model.apply(params, x, train=True, rngs={"dropout": jax.random.key(1)})
    np.testing.assert_array_equal(still, model.apply(params, x))
    assert not np.allclose(still, moving)


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"embedding_dim": 0}, "dlrm.embedding_dim=0: must be at least 1"),
        ({"bottom": (8, 0)}, r"dlrm.bottom=\(8, 0\): must be at least 1"),
        ({"top": (-1,)}, r"dlrm.top=\(-1,\): must be at least 1"),
        ({"dropout": -0.1}, r"dlrm.dropout=-0.1: must be in \[0, 1\)"),
    ],
)
def test_sizes_that_cannot_work_are_rejected(change, message):
    with pytest.raises(ConfigError, match=message):
        DLRM(**change)
    with pytest.raises(ConfigError, match=message):
        DLRM().clone(**change)


def test_a_network_can_be_cloned_and_bound():
    x = random_inputs()
    model = DLRM(embedding_dim=4, bottom=(), top=())
    params = model.init(jax.random.key(0), x)
    assert model.clone() == model and hash(model.clone()) == hash(model)
    np.testing.assert_array_equal(model.bind(params)(x), model.apply(params, x))


def test_pairwise_dots_are_the_strictly_lower_triangle():
    vectors = jnp.array([[[1.0, 0.0], [2.0, 1.0], [0.0, 3.0]]])
    np.testing.assert_array_equal(pairwise_dots([vectors]), [[2.0, 0.0, 3.0]])


def test_a_model_without_dense_features_has_no_bottom_mlp():
    x = random_inputs()
    x = x.replace(user_dense=x.user_dense[:, :0], item_dense=x.item_dense[..., :0])
    params = DLRM(embedding_dim=4, top=(6,)).init(jax.random.key(0), x)
    assert set(params["params"]) == {"top_mlp"}


@pytest.mark.parametrize("needed", [(0,), (1,), (0, 2), (0, 1, 2)])
def test_the_gradient_of_a_vector_sums_the_vectors_that_it_is_paired_with(needed):
    """The derivative of sum_(i > j) w_ij <v_i, v_j> by v_i is sum_(j != i) w_ij v_j."""
    vectors, weights = np.random.default_rng(0).normal(size=(2, 3, 4, 4)).astype(np.float32)
    rows, columns = np.tril_indices(4, -1)
    parts = jnp.split(vectors, [1, 3], axis=1)

    def weighted_sum(changed):
        dots = pairwise_dots([changed.get(i, part) for i, part in enumerate(parts)])
        return jnp.sum(dots * weights[:, rows, columns])

    grads = jax.grad(weighted_sum)({i: parts[i] for i in needed})
    both = np.tril(weights, -1) + np.swapaxes(np.tril(weights, -1), 1, 2)
    expected = np.split(both @ vectors, [1, 3], axis=1)
    for i in needed:
        np.testing.assert_allclose(grads[i], expected[i], rtol=1e-4, atol=1e-5)


def test_the_gradient_of_frozen_vectors_is_not_computed():
    parts = [jnp.ones((5, 1, 4)), jnp.ones((5, 9, 4))]
    program = jax.make_jaxpr(jax.grad(lambda x: jnp.sum(pairwise_dots([x, parts[1]]))))(parts[0])
    products = [line for line in str(program).splitlines() if "dot_general" in line]
    assert [line.split("f32")[1].split(" ")[0] for line in products] == ["[5,10,10]", "[5,1,4]"]
