"""Logistic factorisation against automatic differentiation and a dense float64 loop."""

import dataclasses
import itertools

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest

from cadc_jax.errors import ConfigError, DataError
from cadc_jax.factorization import sgd
from cadc_jax.factorization.factors import Factors, scores
from cadc_jax.factorization.sgd import SGDConfig
from cadc_jax.runtime.checkpoints import Checkpoints
from cadc_jax.runtime.interrupts import Stopped

U, I, D = 30, 20, 4  # noqa: E741 (the letters of the package)
KEY = jax.random.key(0)
CONFIG = SGDConfig(factors=D, batch_rows=16, epochs=3, learning_rate=0.1, regularization=0.01)


def clicks(rows=200, seed=0):
    """User, item and label, with taste planted in two groups."""
    rng = np.random.default_rng(seed)
    user, item = rng.integers(0, U, rows), rng.integers(0, I, rows)
    likely = np.where(user % 2 == item % 2, 0.9, 0.1)
    return user, item, (rng.random(rows) < likely).astype(np.float32)


def test_gradients_equal_automatic_differentiation():
    rng = np.random.default_rng(0)
    user, item = rng.normal(size=(6, D + 1)), rng.normal(size=(6, 3, D + 1))
    label, weight = rng.integers(0, 2, (6, 3)), rng.integers(0, 2, (6, 3))
    arguments = [jnp.asarray(a, jnp.float32) for a in (user, item, 0.3, label, weight)]

    def loss(user, item, bias):
        # sigma(u . v + b_u + b_v + b), as the paper writes it
        dots = jnp.einsum("bd,bgd->bg", user[:, :D], item[..., :D])
        logits = dots + user[:, D:] + item[..., D] + bias
        log_loss = optax.sigmoid_binary_cross_entropy(logits, arguments[3])
        norms = (user**2).sum(-1)[:, None] + (item**2).sum(-1)
        return (arguments[4] * (log_loss + 0.05 * norms)).sum()

    want = jax.grad(loss, argnums=(0, 1, 2))(*arguments[:3])
    got, plain = sgd._gradients(*arguments, 0.1)
    jax.tree.map(lambda g, w: np.testing.assert_allclose(g, w, rtol=1e-4, atol=1e-5), got, want)
    norms = (arguments[0] ** 2).sum(-1)[:, None] + (arguments[1] ** 2).sum(-1)
    penalty = 0.05 * (arguments[4] * norms).sum()
    np.testing.assert_allclose(plain + penalty, loss(*arguments[:3]), rtol=1e-4)


def test_one_row_at_a_time_equals_a_plain_loop():
    user, item, label = clicks(12)
    config = dataclasses.replace(
        CONFIG, optimizer="sgd", batch_rows=12, epochs=1, learning_rate_decay=0.0
    )
    start = sgd._init(U, I, config, np.mean(label), jax.random.split(KEY, 3)[0])
    p, q = np.float64(start.user), np.float64(start.item)
    factors, losses = sgd.fit(user, item, U, I, config, KEY, label)

    # one batch holds all rows: the order does not matter, and gradients add up
    logits = (p[user, :D] * q[item, :D]).sum(1) + p[user, D] + q[item, D] + float(start.bias)
    error = 1 / (1 + np.exp(-logits)) - label
    new_p, new_q = p.copy(), q.copy()
    for n in range(12):
        u, v = user[n], item[n]
        new_p[u] -= 0.1 * (error[n] * np.append(q[v, :D], 1) + 0.01 * p[u])
        new_q[v] -= 0.1 * (error[n] * np.append(p[u, :D], 1) + 0.01 * q[v])
    np.testing.assert_allclose(factors.user, new_p[:, :D], rtol=1e-4, atol=1e-6)
    np.testing.assert_allclose(factors.user_bias, new_p[:, D], rtol=1e-4, atol=1e-6)
    np.testing.assert_allclose(factors.item, new_q[:, :D], rtol=1e-4, atol=1e-6)
    np.testing.assert_allclose(factors.item_bias, new_q[:, D], rtol=1e-4, atol=1e-6)
    np.testing.assert_allclose(factors.global_bias, start.bias - 0.1 * error.mean(), rtol=1e-4)
    want = np.mean(np.log1p(np.exp(logits)) - label * logits)
    np.testing.assert_allclose(losses, [want], rtol=1e-5)


@pytest.mark.parametrize("optimizer", ["adagrad", "adam", "sgd"])
def test_planted_taste_is_learnt_from_labels(optimizer):
    user, item, label = clicks(2000)
    rate = {"adagrad": 0.2, "adam": 0.02, "sgd": 0.1}[optimizer]
    config = dataclasses.replace(CONFIG, optimizer=optimizer, epochs=15, learning_rate=rate)
    factors, losses = sgd.fit(user, item, U, I, config, KEY, label)
    assert losses[-1] < 0.8 * losses[0]
    every = np.asarray(scores(factors, np.arange(U)[:, None], np.arange(I)))
    same = np.arange(U)[:, None] % 2 == np.arange(I) % 2
    assert (every[same] > 0).mean() > 0.95
    assert (every[~same] < 0).mean() > 0.95


def test_planted_taste_is_learnt_from_positives_alone():
    user, item, label = clicks(2000)
    positive = (label == 1) & ((user + item) % 7 > 0)  # a seventh is never seen
    config = dataclasses.replace(CONFIG, epochs=30, learning_rate=0.2)
    factors, _ = sgd.fit(user[positive], item[positive], U, I, config, KEY)
    every = np.asarray(scores(factors, np.arange(U)[:, None], np.arange(I)))
    same = np.arange(U)[:, None] % 2 == np.arange(I) % 2
    assert every[same].mean() > every[~same].mean() + 1


def test_membership_is_exact():
    rng = np.random.default_rng(0)
    seen = rng.random((U, I)) < 0.3
    seen[3], seen[4], seen[-1] = False, True, False
    user, item = np.nonzero(seen)
    known = sgd.Interactions.from_rows(user, item, U, I).by_user
    offsets, items = jnp.asarray(known.offsets, jnp.int32), jnp.asarray(known.columns)
    rows = sgd._Rows(None, None, None, offsets, items)
    every = jnp.broadcast_to(jnp.arange(I), (U, I))
    np.testing.assert_array_equal(sgd._contains(rows, jnp.arange(U)[:, None], every), seen)


def test_a_known_positive_is_never_a_negative():
    # User 0 has every item: all draws are left out, so the loss is that of positives alone.
    config = dataclasses.replace(
        CONFIG, optimizer="sgd", epochs=1, negatives=5, batch_rows=I, learning_rate_decay=0.0
    )
    user, item = np.zeros(I, int), np.arange(I)
    drawn, losses = sgd.fit(user, item, 1, I, config, KEY)
    start = sgd._init(1, I, config, 1 / 6, jax.random.split(KEY, 3)[0])
    logits = (start.user[:, :D] * start.item[:, :D]).sum(1) + start.bias
    np.testing.assert_allclose(losses, [np.mean(np.log1p(np.exp(-logits)))], rtol=1e-5)


def test_rows_that_do_not_fill_a_batch_count_once_each():
    user, item, label = clicks(50)
    config = dataclasses.replace(CONFIG, optimizer="sgd", epochs=1, learning_rate=1e-6)
    losses = [
        sgd.fit(user, item, U, I, dataclasses.replace(config, batch_rows=b), KEY, label)[1]
        for b in (50, 16, 7, 1)
    ]
    np.testing.assert_allclose(losses, losses[0] * np.ones((4, 1)), rtol=1e-4)


def test_rows_that_do_not_fit_on_the_device_are_learnt_from_in_blocks(monkeypatch):
    monkeypatch.setattr(sgd, "BLOCK_ROWS", 300)  # 2000 rows make six blocks and a part of one
    user, item, label = clicks(2000)
    config = dataclasses.replace(CONFIG, optimizer="sgd", epochs=1, learning_rate=1e-6)
    sgd._epoch.clear_cache()
    loss = sgd.fit(user, item, U, I, config, KEY, label)[1]
    assert sgd._epoch._cache_size() == 1
    monkeypatch.setattr(sgd, "BLOCK_ROWS", 2000)
    np.testing.assert_allclose(loss, sgd.fit(user, item, U, I, config, KEY, label)[1], rtol=1e-4)

    monkeypatch.setattr(sgd, "BLOCK_ROWS", 300)
    config = dataclasses.replace(CONFIG, epochs=15, learning_rate=0.2)
    factors, losses = sgd.fit(user, item, U, I, config, KEY, label)
    assert losses[-1] < 0.8 * losses[0]
    every = np.asarray(scores(factors, np.arange(U)[:, None], np.arange(I)))
    same = np.arange(U)[:, None] % 2 == np.arange(I) % 2
    assert (every[same] > 0).mean() > 0.95 and (every[~same] < 0).mean() > 0.95


def test_the_same_key_gives_the_same_factors_and_another_key_others():
    user, item, _ = clicks()
    first, _ = sgd.fit(user, item, U, I, CONFIG, KEY)
    again, _ = sgd.fit(user, item, U, I, CONFIG, KEY)
    other, _ = sgd.fit(user, item, U, I, CONFIG, jax.random.key(1))
    np.testing.assert_array_equal(first.item, again.item)
    assert not np.allclose(first.item, other.item)


def test_negatives_are_fresh_in_each_epoch():
    config = dataclasses.replace(CONFIG, optimizer="sgd", learning_rate=1e-6, epochs=4)
    user, item, _ = clicks()
    _, losses = sgd.fit(user, item, U, I, config, KEY)
    assert len(set(losses)) == 4


def test_a_fit_that_goes_on_from_factors_starts_at_their_loss():
    user, item, label = clicks(2000)
    first, losses = sgd.fit(user, item, U, I, dataclasses.replace(CONFIG, epochs=10), KEY, label)
    still = dataclasses.replace(CONFIG, learning_rate=1e-9, epochs=1)
    same, again = sgd.fit(user, item, U, I, still, jax.random.key(1), label, init=first)
    jax.tree.map(lambda a, b: np.testing.assert_allclose(a, b, atol=1e-6), same, first)
    assert again[0] < losses[-1] < losses[0]


def test_a_fit_that_goes_on_keeps_the_rate_of_the_last_epoch():
    config = dataclasses.replace(CONFIG, epochs=10, learning_rate=0.1, learning_rate_decay=0.9)
    going_on = config.refreshing(3)
    assert (going_on.epochs, going_on.learning_rate_decay) == (3, 0)
    assert going_on.learning_rate == pytest.approx(0.1 * (1 - 0.9 * 9 / 10))


def test_factors_of_other_sizes_are_no_start():
    user, item, label = clicks()
    first, _ = sgd.fit(user, item, U, I, CONFIG, KEY, label)
    with pytest.raises(ConfigError, match=rf"\({I}, {D}\).*; this fit has .*\({I + 1}, {D}\)"):
        sgd.fit(user, item, U, I + 1, CONFIG, KEY, label, init=first)


def test_factors_without_biases_are_no_start():
    user, item, label = clicks()
    plain = Factors(jnp.zeros((U, D)), jnp.zeros((I, D)))
    with pytest.raises(ConfigError, match="init has no biases"):
        sgd.fit(user, item, U, I, CONFIG, KEY, label, init=plain)


def test_one_program_serves_all_epochs_and_a_second_fit():
    user, item, label = clicks(333)
    sgd._epoch.clear_cache()
    sgd.fit(user, item, U, I, CONFIG, KEY, label)
    other = dataclasses.replace(CONFIG, learning_rate=0.3, regularization=0.0, epochs=5)
    sgd.fit(user, item, U, I, other, jax.random.key(1), label)
    assert sgd._epoch._cache_size() == 1


def test_a_step_costs_the_same_whatever_the_size_of_the_tables():
    def flops_and_temporaries(size):
        state = jax.eval_shape(lambda key: sgd._init(size, size, CONFIG, 0.5, key), KEY)
        log = jax.ShapeDtypeStruct((64,), jnp.int32)
        label = jax.ShapeDtypeStruct((64,), jnp.float32)
        rows = sgd._Rows(log, log, label, None, None)
        order = jax.ShapeDtypeStruct((4, 16), jnp.int32)
        compiled = sgd._epoch.lower(
            state, rows, order, 0.1, 0.01, KEY, optimizer="adagrad", negatives=4
        ).compile()
        memory = compiled.memory_analysis()
        return compiled.cost_analysis()["flops"], memory.temp_size_in_bytes

    assert flops_and_temporaries(100) == flops_and_temporaries(1_000_000)


def test_progress_is_called_once_an_epoch():
    calls = []
    user, item, label = clicks()
    _, losses = sgd.fit(
        user, item, U, I, CONFIG, KEY, label, progress=lambda *call: calls.append(call)
    )
    assert [call[:2] for call in calls] == list(enumerate(losses, start=1))


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"optimizer": "lion"}, "sgd.optimizer='lion': choose one of sgd, adagrad, adam"),
        ({"epochs": 0}, "sgd.epochs=0: must be above 0"),
        ({"regularization": -1.0}, "sgd.regularization=-1.0: must not be negative"),
        ({"learning_rate_decay": 1.5}, "sgd.learning_rate_decay=1.5"),
    ],
)
def test_a_config_that_cannot_work_is_refused(change, message):
    with pytest.raises(ConfigError, match=message):
        SGDConfig(**change)


def test_labels_other_than_0_and_1_and_empty_logs_are_refused():
    with pytest.raises(DataError, match="labels must be 0 or 1"):
        sgd.fit(np.array([0]), np.array([0]), 1, 1, CONFIG, KEY, np.array([2.0]))
    with pytest.raises(DataError, match=r"item ids must lie in \[0, 3\); they go from 0 to 3"):
        sgd.fit(np.array([0, 0]), np.array([0, 3]), 1, 3, CONFIG, KEY, np.array([1.0, 0.0]))
    with pytest.raises(ConfigError, match="no interactions"):
        sgd.fit([], [], 1, 1, CONFIG, KEY)


@pytest.mark.parametrize("labelled", [True, False])
@pytest.mark.parametrize("optimizer", ["adagrad", "adam"])
def test_a_fit_resumed_after_any_block_is_bit_for_bit_an_undisturbed_one(
    labelled, optimizer, tmp_path, monkeypatch
):
    monkeypatch.setattr(sgd, "BLOCK_ROWS", 64)  # of 200 rows: four blocks, the last of 8
    user, item, label = clicks()
    config = dataclasses.replace(CONFIG, optimizer=optimizer)
    arguments = user, item, U, I, config, KEY, label if labelled else None
    want, want_losses = sgd.fit(*arguments)
    for done in (0, 1, 4, 7, 11) if labelled else (0, 2):
        calls = itertools.count()
        with Checkpoints(tmp_path / str(done), stop=lambda: next(calls) >= done) as saved:  # noqa: B023
            with pytest.raises(Stopped):
                sgd.fit(*arguments, saved=saved)
        assert saved.newest == done
        with Checkpoints(tmp_path / str(done)) as saved:
            got, losses = sgd.fit(*arguments, saved=saved)
        np.testing.assert_array_equal(losses, want_losses)
        jax.tree.map(np.testing.assert_array_equal, got, want)
