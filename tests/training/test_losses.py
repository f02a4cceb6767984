"""Losses against plain NumPy, and what masks, weights and corrections are there for."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from cadc_jax import sharding
from cadc_jax.training import losses

USER = np.array([3, 3, 1, 2, 0, 4])
ITEM = np.array([7, 5, 5, 6, 8, 7])
WEIGHT = np.array([1, 1, 1, 1, 1, 0], np.float32)
LOG_Q = np.log([0.4, 0.2, 0.2, 0.1, 0.3, 0.4]).astype(np.float32)


def random_scores(rows=6, items=6):
    return np.random.default_rng(0).normal(size=(rows, items)).astype(np.float32)


# Binary cross-entropy.


@pytest.mark.parametrize("smoothing", [0.0, 0.1])
def test_binary_cross_entropy_equals_a_numpy_reference(smoothing):
    logits = random_scores(6, 3)
    labels = (logits > 0.5).astype(np.float32)
    probability = 1 / (1 + np.exp(-logits.astype(np.float64)))
    target = np.where(labels == 1, 1 - smoothing / 2, smoothing / 2)
    each = -(target * np.log(probability) + (1 - target) * np.log(1 - probability))
    found = losses.binary_cross_entropy(logits, labels, WEIGHT, smoothing)
    assert float(found) == pytest.approx(each[:5].mean(), rel=1e-6)


def test_a_smoothed_label_is_best_met_short_of_certainty():
    def loss(logit):
        return losses.binary_cross_entropy(jnp.full((1, 1), logit), jnp.ones((1, 1)), 1.0, 0.2)

    assert jax.grad(loss)(np.log(0.9 / 0.1)) == pytest.approx(0, abs=1e-6)
    assert jax.grad(loss)(5.0) > 0


def test_sampled_softmax_is_the_negative_log_share_of_the_first_item():
    logits = np.log([[2.0, 1.0, 1.0], [1.0, 1.0, 2.0], [1.0, 9.0, 9.0]])
    found = losses.sampled_softmax(logits, jnp.array([1.0, 1.0, 0.0]))
    assert float(found) == pytest.approx(-(np.log(1 / 2) + np.log(1 / 4)) / 2)


# In-batch softmax.


def test_all_items_softmax_is_the_negative_log_share_among_the_items_that_compete():
    logits = np.array([[1.0, 2.0, 3.0], [0.5, -1.0, 2.0]], np.float32)
    competes = np.array([[False, True, False], [True, True, True]])
    item, weight = np.array([0, 2]), np.array([1.0, 3.0], np.float32)
    first = np.log(np.exp([1.0, 2.0]).sum()) - 1.0  # its own item always competes
    second = np.log(np.exp(logits[1]).sum()) - 2.0
    found = losses.all_items_softmax(logits, item, competes, weight)
    np.testing.assert_allclose(found, (first + 3 * second) / 4, rtol=1e-6)


def numpy_in_batch(scores, user, item, log_q, weight):
    """Row by row, candidate by candidate."""
    total = 0.0
    for i in np.flatnonzero(weight):
        shares = {i: np.exp(scores[i, i] - log_q[i])}
        for j in np.flatnonzero(weight):
            if item[j] != item[i] and user[j] != user[i]:
                shares[j] = np.exp(scores[i, j] - log_q[j])
        total -= np.log(shares[i] / sum(shares.values()))
    return total / weight.sum()


def test_in_batch_softmax_equals_a_numpy_reference():
    scores = random_scores()
    expected = numpy_in_batch(scores.astype(np.float64), USER, ITEM, LOG_Q, WEIGHT)
    found = losses.in_batch_softmax(scores, USER, ITEM, LOG_Q, WEIGHT)
    assert float(found) == pytest.approx(expected, rel=1e-5)


def test_padding_the_same_item_and_the_same_user_are_no_competitors():
    push = jax.grad(losses.in_batch_softmax)(random_scores(), USER, ITEM, LOG_Q, WEIGHT)
    competes = np.array(
        [  # rows 0 and 1 are of one user, 1 and 2 hold one item, 5 is padding
            [0, 0, 1, 1, 1, 0],
            [0, 0, 0, 1, 1, 0],
            [1, 0, 0, 1, 1, 0],
            [1, 1, 1, 0, 1, 0],
            [1, 1, 1, 1, 0, 0],
            [0, 0, 0, 0, 0, 0],
        ]
    )
    np.testing.assert_array_equal(push > 0, competes)
    np.testing.assert_array_equal(np.diagonal(push) < 0, WEIGHT > 0)


def test_padding_equals_absence():
    scores = random_scores()
    padded = losses.in_batch_softmax(scores, USER, ITEM, LOG_Q, WEIGHT)
    cut = losses.in_batch_softmax(scores[:5, :5], USER[:5], ITEM[:5], LOG_Q[:5], WEIGHT[:5])
    assert float(padded) == pytest.approx(float(cut), rel=1e-6)


def test_only_differences_of_log_frequencies_matter():
    arguments = random_scores(), USER, ITEM
    found = [losses.in_batch_softmax(*arguments, LOG_Q + c, WEIGHT) for c in (0, 5)]
    assert float(found[0]) == pytest.approx(float(found[1]), rel=1e-5)


@pytest.mark.parametrize("corrected", [True, False])
def test_the_correction_makes_it_the_softmax_over_all_items(corrected):
    """Of items as unequal as they come, popular ones scoring low: up to a constant."""
    rng = np.random.default_rng(0)
    items, rows = 400, 2000
    share = 1 / np.arange(1, items + 1)
    share /= share.sum()
    item = rng.choice(items, rows, p=share)
    score = np.linspace(-2, 2, items)
    log_q = np.log(share[item]) if corrected else np.zeros(rows)
    found = losses.in_batch_softmax(
        np.tile(score[item], (rows, 1)), np.arange(rows), item, log_q, np.ones(rows)
    )
    # The partition function is estimated by `rows` draws, each over its own frequency.
    found -= np.log(rows) + (np.log(share[item]).mean() if corrected else -np.log(items))
    full = np.log(np.exp(score).sum()) - score[item].mean()
    assert (abs(float(found) - full) < 0.1) == corrected


def test_a_row_without_competitors_loses_nothing():
    arguments = jnp.zeros((2, 2)), jnp.array([1, 1]), jnp.array([2, 3]), jnp.zeros(2), jnp.ones(2)
    loss, grad = jax.value_and_grad(losses.in_batch_softmax)(*arguments)
    assert loss == 0
    np.testing.assert_array_equal(grad, 0)


def test_eight_devices_find_the_loss_and_gradient_of_one():
    rng = np.random.default_rng(0)
    user, item = rng.integers(0, 40, 64), rng.integers(0, 20, 64)
    rows = {
        "vectors": rng.normal(size=(2, 64, 8)).astype(np.float32).transpose(1, 0, 2),
        "user": user,
        "item": item,
        "log_q": losses.log_frequency(item, 20)[item],
        "weight": (np.arange(64) < 60).astype(np.float32),
    }

    @jax.jit
    @jax.value_and_grad
    def loss(vectors, batch):
        scores = vectors[:, 0] @ vectors[:, 1].T
        names = ("user", "item", "log_q", "weight")
        return losses.in_batch_softmax(scores, *(batch[name] for name in names))

    split = sharding.named(sharding.make_mesh(), sharding.BATCH)
    one = loss(rows["vectors"], rows)
    eight_rows = jax.device_put(rows, split)
    eight = loss(eight_rows["vectors"], eight_rows)
    jax.tree.map(lambda a, b: np.testing.assert_allclose(a, b, rtol=1e-4, atol=1e-6), one, eight)


def test_log_frequencies_are_those_of_the_rows():
    found = losses.log_frequency(np.array([1, 1, 1, 3]), 5)
    np.testing.assert_allclose(found, np.log([1 / 4, 3 / 4, 1 / 4, 1 / 4, 1 / 4]), rtol=1e-6)
    assert found.dtype == np.float32


# All of them.


def in_batch(logits, weight):
    return losses.in_batch_softmax(logits, USER, ITEM, LOG_Q, weight)


def cross_entropy(logits, weight):
    return losses.binary_cross_entropy(logits, jnp.eye(6), weight)


@pytest.mark.parametrize("loss", [cross_entropy, losses.sampled_softmax, in_batch])
def test_every_loss_of_no_row_is_zero_and_moves_nothing(loss):
    value, grad = jax.value_and_grad(loss)(random_scores(), jnp.zeros(6))
    assert value == 0
    np.testing.assert_array_equal(grad, 0)


@pytest.mark.parametrize("loss", [cross_entropy, losses.sampled_softmax, in_batch])
@pytest.mark.parametrize("scale", [0.0, 1e4])
def test_every_loss_has_a_finite_gradient_at_any_scale(loss, scale):
    value, grad = jax.value_and_grad(loss)(scale * random_scores(), WEIGHT)
    assert np.isfinite(value) and np.isfinite(grad).all()


@pytest.mark.parametrize("loss", [cross_entropy, losses.sampled_softmax, in_batch])
def test_every_loss_of_bfloat16_logits_is_computed_in_float32(loss):
    logits = jnp.asarray(random_scores(), jnp.bfloat16)
    found = loss(logits, WEIGHT)
    assert found.dtype == jnp.float32
    assert found == loss(logits.astype(jnp.float32), WEIGHT)
