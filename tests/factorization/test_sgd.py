"""Logistic factorisation against automatic differentiation and a dense float64 loop."""

import dataclasses
import functools
import itertools

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest

from cadc_jax import sharding
from cadc_jax.errors import ConfigError, DataError
from cadc_jax.factorization import sgd, sgd_rows, sgd_step
from cadc_jax.factorization.factors import Factors, scores
from cadc_jax.factorization.sgd import SGDConfig, TrainingRows
from cadc_jax.runtime.checkpoints import Checkpoints
from cadc_jax.runtime.interrupts import Stopped

U, I, D = 30, 20, 4  # noqa: E741 (the letters of the package)
KEY = jax.random.key(0)
CONFIG = SGDConfig(factors=D, batch_rows=16, epochs=3, learning_rate=0.1, regularization=0.01)
SAME = np.arange(U)[:, None] % 2 == np.arange(I) % 2  # user and item are of one taste


def clicks(rows=200):
    """Labelled rows with two tastes planted: even users click even items, odd users odd ones."""
    rng = np.random.default_rng(0)
    user, item = rng.integers(0, U, rows), rng.integers(0, I, rows)
    likely = np.where(user % 2 == item % 2, 0.9, 0.1)
    return TrainingRows(user, item, U, I, (rng.random(rows) < likely).astype(np.float32))


def positives(rows=200):
    """The rows of `clicks` as if every one was a positive."""
    return dataclasses.replace(clicks(rows), label=None)


def random_factors(users=U, items=I):
    rng = np.random.default_rng(0)
    shapes = (users, D), (items, D), (users,), (items,), ()
    return Factors(*(jnp.asarray(0.1 * rng.normal(size=shape), jnp.float32) for shape in shapes))


def all_scores(factors):
    return np.asarray(scores(factors, np.arange(U)[:, None], np.arange(I)))


def test_gradients_equal_automatic_differentiation():
    rng = np.random.default_rng(0)
    user, item = rng.normal(size=(6, D + 1)), rng.normal(size=(6, 3, D + 1))
    label, weight = rng.integers(0, 2, (6, 3)), rng.integers(0, 2, (6, 3))
    arguments = [jnp.asarray(a, jnp.float32) for a in (user, item, 0.3, label, weight)]
    of_user, of_item = rng.random(6).astype(np.float32), rng.random((6, 3)).astype(np.float32)

    def loss(user, item, bias):
        # sigma(u . v + b_u + b_v + b), as the paper writes it
        dots = jnp.einsum("bd,bgd->bg", user[:, :D], item[..., :D])
        logits = dots + user[:, D:] + item[..., D] + bias
        log_loss = optax.sigmoid_binary_cross_entropy(logits, arguments[3])
        return (arguments[4] * (log_loss + penalty(user, item))).sum()

    def penalty(user, item):
        return (of_user[:, None] * (user**2).sum(-1)[:, None] + of_item * (item**2).sum(-1)) / 2

    want = jax.grad(loss, argnums=(0, 1, 2))(*arguments[:3])
    got, plain = sgd_step._gradients(*arguments, (of_user, of_item))
    jax.tree.map(lambda g, w: np.testing.assert_allclose(g, w, rtol=1e-4, atol=1e-5), got, want)
    penalties = (arguments[4] * penalty(*arguments[:2])).sum()
    np.testing.assert_allclose(plain + penalties, loss(*arguments[:3]), rtol=1e-4)


@pytest.mark.parametrize("negatives", [0, 3])
@pytest.mark.parametrize("exponent", [0.0, 0.5, 1.0])
def test_a_row_pays_in_an_epoch_by_a_power_of_its_number_of_uses(exponent, negatives):
    user, item = np.array([0, 0, 0, 0, 1, 1, 3]), np.array([0, 1, 2, 2, 2, 2, 2])
    rows = TrainingRows(user, item, 4, 3, np.ones(7) if not negatives else None)
    blocks = sgd_rows.Blocks(rows, 4, sharding.make_mesh(jax.devices()[:1]))
    found = blocks.penalties(0.1, exponent, negatives)
    users = np.array([4, 2, 1]) * (1 + negatives)
    items = np.array([1, 1, 5]) + 7 * negatives / 3
    mean = np.sqrt(users.mean() * items.mean())
    for got, uses in ((np.asarray(found.user)[[0, 1, 3]], users), (found.item, items)):
        want = 0.1 * mean * (uses / mean) ** exponent
        np.testing.assert_allclose(got * uses, want, rtol=1e-5)


def test_one_batch_of_all_rows_equals_a_plain_loop():
    rows, start = clicks(12), random_factors()
    config = dataclasses.replace(
        CONFIG,
        optimizer="sgd",
        batch_rows=12,
        epochs=1,
        learning_rate_decay=0.0,
        frequency_exponent=1.0,
    )
    factors, losses = sgd.fit(rows, config, KEY, init=start)

    # The order of rows does not matter, and their gradients add up.
    p, q, b, c, mean = map(np.float64, (start.user, start.item, *start.biases))
    user, item, label = rows.user, rows.item, rows.label
    logits = (p[user] * q[item]).sum(1) + b[user] + c[item] + mean
    error = 1 / (1 + np.exp(-logits)) - label
    new_p, new_q, new_b, new_c = p.copy(), q.copy(), b.copy(), c.copy()
    for e, u, v in zip(error, user, item, strict=True):
        new_p[u] -= 0.1 * (e * q[v] + 0.01 * p[u])
        new_q[v] -= 0.1 * (e * p[u] + 0.01 * q[v])
        new_b[u] -= 0.1 * (e + 0.01 * b[u])
        new_c[v] -= 0.1 * (e + 0.01 * c[v])
    want = Factors(new_p, new_q, new_b, new_c, mean - 0.1 * error.mean())
    jax.tree.map(lambda g, w: np.testing.assert_allclose(g, w, 1e-4, 1e-6), factors, want)
    loss = np.mean(np.log1p(np.exp(logits)) - label * logits)
    np.testing.assert_allclose(losses, [loss], rtol=1e-5)


@pytest.mark.parametrize("optimizer", ["adagrad", "adam", "sgd"])
def test_planted_taste_is_learnt_from_labels(optimizer):
    rate = {"adagrad": 0.2, "adam": 0.02, "sgd": 0.1}[optimizer]
    config = dataclasses.replace(CONFIG, optimizer=optimizer, epochs=15, learning_rate=rate)
    factors, losses = sgd.fit(clicks(2000), config, KEY)
    assert losses[-1] < 0.8 * losses[0]
    assert (all_scores(factors)[SAME] > 0).mean() > 0.95
    assert (all_scores(factors)[~SAME] < 0).mean() > 0.95


def test_planted_taste_is_learnt_from_positives_alone():
    log = clicks(2000)
    positive = (log.label == 1) & ((log.user + log.item) % 7 > 0)  # a seventh is never seen
    config = dataclasses.replace(CONFIG, epochs=30, learning_rate=0.2)
    rows = TrainingRows(log.user[positive], log.item[positive], U, I)
    factors, _ = sgd.fit(rows, config, KEY)
    assert all_scores(factors)[SAME].mean() > all_scores(factors)[~SAME].mean() + 1


def test_the_binary_search_finds_exactly_the_known_items():
    rng = np.random.default_rng(0)
    seen = rng.random((U, I)) < 0.3
    seen[3], seen[4], seen[-1] = False, True, False
    rows = TrainingRows(*np.nonzero(seen), U, I)
    block = sgd_rows.Blocks(rows, 16, sharding.make_mesh(jax.devices()[:1])).on_devices(0)
    every = jnp.broadcast_to(jnp.arange(I), (U, I))
    np.testing.assert_array_equal(sgd_rows.contains(block, jnp.arange(U)[:, None], every), seen)


def test_a_known_positive_is_never_a_negative():
    # User 0 has every item: all drawn items are ignored, so the loss is that of the positives.
    config = dataclasses.replace(
        CONFIG, optimizer="sgd", epochs=1, negatives=5, batch_rows=I, learning_rate_decay=0.0
    )
    start = random_factors(users=1)
    _, losses = sgd.fit(TrainingRows(np.zeros(I, int), np.arange(I), 1, I), config, KEY, init=start)
    logits = np.asarray(scores(start, np.zeros(I, int), np.arange(I)))
    np.testing.assert_allclose(losses, [np.mean(np.log1p(np.exp(-logits)))], rtol=1e-5)


def test_rows_that_do_not_fill_a_batch_count_once_each():
    config = dataclasses.replace(CONFIG, optimizer="sgd", epochs=1, learning_rate=1e-6)
    losses = [
        sgd.fit(clicks(50), dataclasses.replace(config, batch_rows=batch), KEY)[1]
        for batch in (50, 16, 7, 1)
    ]
    np.testing.assert_allclose(losses, losses[0] * np.ones((4, 1)), rtol=1e-4)


def test_blocks_of_rows_have_the_loss_of_all_rows_and_share_a_program(monkeypatch):
    config = dataclasses.replace(CONFIG, optimizer="sgd", epochs=1, learning_rate=1e-6)
    _, whole = sgd.fit(clicks(2000), config, KEY)
    monkeypatch.setattr(sgd_rows, "BLOCK_ROWS", 300)  # six blocks and a part of one
    sgd_step.train_block.clear_cache()
    _, blocks = sgd.fit(clicks(2000), config, KEY)
    assert sgd_step.train_block._cache_size() == 1
    np.testing.assert_allclose(blocks, whole, rtol=1e-4)


def test_planted_taste_is_learnt_from_blocks_of_rows(monkeypatch):
    monkeypatch.setattr(sgd_rows, "BLOCK_ROWS", 300)
    config = dataclasses.replace(CONFIG, epochs=15, learning_rate=0.2)
    factors, losses = sgd.fit(clicks(2000), config, KEY)
    assert losses[-1] < 0.8 * losses[0]
    assert (all_scores(factors)[SAME] > 0).mean() > 0.95
    assert (all_scores(factors)[~SAME] < 0).mean() > 0.95


def test_the_same_key_gives_the_same_factors_and_another_key_others():
    first, _ = sgd.fit(positives(), CONFIG, KEY)
    again, _ = sgd.fit(positives(), CONFIG, KEY)
    other, _ = sgd.fit(positives(), CONFIG, jax.random.key(1))
    np.testing.assert_array_equal(first.item, again.item)
    assert not np.allclose(first.item, other.item)


def test_each_epoch_draws_new_negatives():
    config = dataclasses.replace(CONFIG, optimizer="sgd", learning_rate=1e-6, epochs=4)
    _, losses = sgd.fit(positives(), config, KEY)
    assert len(set(losses)) == 4


def test_a_fit_from_the_factors_of_another_starts_at_their_loss():
    first, losses = sgd.fit(clicks(2000), dataclasses.replace(CONFIG, epochs=10), KEY)
    still = dataclasses.replace(CONFIG, learning_rate=1e-9, epochs=1)
    same, again = sgd.fit(clicks(2000), still, jax.random.key(1), init=first)
    jax.tree.map(lambda a, b: np.testing.assert_allclose(a, b, atol=1e-6), same, first)
    assert again[0] < losses[-1] < losses[0]


def test_a_refreshing_fit_keeps_the_learning_rate_of_the_last_epoch():
    config = dataclasses.replace(CONFIG, epochs=10, learning_rate=0.1, learning_rate_decay=0.9)
    refreshing = config.refreshing(3)
    assert (refreshing.epochs, refreshing.learning_rate_decay) == (3, 0)
    assert refreshing.learning_rate == pytest.approx(0.1 * (1 - 0.9 * 9 / 10))


def test_a_fit_does_not_start_from_factors_of_other_sizes():
    with pytest.raises(ConfigError, match=rf"\({I + 1}, {D}\).*; this fit needs .*\({I}, {D}\)"):
        sgd.fit(clicks(), CONFIG, KEY, init=random_factors(items=I + 1))


def test_a_fit_does_not_start_from_factors_without_biases():
    plain = Factors(jnp.zeros((U, D)), jnp.zeros((I, D)))
    with pytest.raises(ConfigError, match="init has no biases"):
        sgd.fit(clicks(), CONFIG, KEY, init=plain)


def test_one_program_serves_all_epochs_and_a_second_fit():
    sgd_step.train_block.clear_cache()
    sgd.fit(clicks(333), CONFIG, KEY)
    other = dataclasses.replace(CONFIG, learning_rate=0.3, regularization=0.0, epochs=5)
    sgd.fit(clicks(333), other, jax.random.key(1))
    assert sgd_step.train_block._cache_size() == 1


def test_the_cost_of_a_step_does_not_depend_on_the_size_of_the_tables():
    def flops_and_temporaries(size):
        ids = jax.ShapeDtypeStruct((64,), jnp.int32)
        label = jax.ShapeDtypeStruct((64,), jnp.float32)
        step = sgd_step.StepConfig("adagrad", 0, size, 0, sharding.make_mesh(jax.devices()[:1]))
        sizes = {"num_users": size, "num_items": size, "factors": D}
        random = functools.partial(
            sgd_step.random_state, **sizes, optimizer="adagrad", mesh=step.mesh
        )
        state = jax.eval_shape(random, KEY, 0.5)
        block = sgd_rows.Block(ids, ids, label)
        order = jax.ShapeDtypeStruct((4, 16), jnp.int32)
        penalty = jax.ShapeDtypeStruct((size,), jnp.float32)
        arguments = state, block, order, sgd_rows.Penalties(penalty, penalty), 0.1, KEY
        compiled = sgd_step.train_block.lower(*arguments, config=step).compile()
        memory = compiled.memory_analysis()
        return compiled.cost_analysis()["flops"], memory.temp_size_in_bytes

    assert flops_and_temporaries(100) == flops_and_temporaries(1_000_000)


def test_progress_is_called_after_each_epoch():
    calls = []
    _, losses = sgd.fit(clicks(), CONFIG, KEY, progress=lambda *call: calls.append(call))
    assert [call[:2] for call in calls] == list(enumerate(losses, start=1))
    assert np.all(np.diff([call[2] for call in calls]) > 0)


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"optimizer": "lion"}, "sgd.optimizer='lion': must be one of sgd, adagrad, adam"),
        ({"factors": 0}, "sgd.factors=0: must be above 0"),
        ({"epochs": 0}, "sgd.epochs=0: must be above 0"),
        ({"learning_rate": 0.0}, "sgd.learning_rate=0.0: must be above 0"),
        ({"regularization": -1.0}, "sgd.regularization=-1.0: must be at least 0"),
        ({"learning_rate_decay": 1.5}, r"sgd.learning_rate_decay=1.5: must be in \[0, 1\]"),
    ],
)
def test_a_config_that_cannot_work_is_rejected(change, message):
    with pytest.raises(ConfigError, match=message):
        SGDConfig(**change)


@pytest.mark.parametrize(
    ("item", "label", "message"),
    [
        ([0, 1], [1.0, 2.0], "labels must be 0 or 1"),
        ([0, 3], [1.0, 0.0], r"item ids must be in \[0, 3\); they go from 0 to 3"),
        ([0, 3], None, r"item ids must be in \[0, 3\); they go from 0 to 3"),
    ],
)
def test_rows_that_cannot_be_right_are_rejected(item, label, message):
    label = None if label is None else np.array(label)
    with pytest.raises(DataError, match=message):
        sgd.fit(TrainingRows(np.zeros(2, int), np.array(item), 1, 3, label), CONFIG, KEY)


def test_a_fit_without_rows_is_rejected():
    with pytest.raises(ConfigError, match="no interactions"):
        sgd.fit(TrainingRows(np.zeros(0, int), np.zeros(0, int), 1, 1), CONFIG, KEY)


@pytest.mark.parametrize("labelled", [True, False])
@pytest.mark.parametrize("optimizer", ["adagrad", "adam"])
def test_a_fit_resumed_after_any_block_gives_the_same_bits(
    labelled, optimizer, tmp_path, monkeypatch
):
    monkeypatch.setattr(sgd_rows, "BLOCK_ROWS", 64)  # of 200 rows: four blocks, the last of 8
    rows = clicks() if labelled else positives()
    config = dataclasses.replace(CONFIG, optimizer=optimizer)
    want, want_losses = sgd.fit(rows, config, KEY)
    for done in (0, 1, 4, 7, 11) if labelled else (0, 2):
        calls = itertools.count()
        with Checkpoints(tmp_path / str(done), stop=lambda: next(calls) >= done) as saved:  # noqa: B023
            with pytest.raises(Stopped):
                sgd.fit(rows, config, KEY, saved=saved)
        assert saved.newest == done
        with Checkpoints(tmp_path / str(done)) as saved:
            got, losses = sgd.fit(rows, config, KEY, saved=saved)
        np.testing.assert_array_equal(losses, want_losses)
        jax.tree.map(np.testing.assert_array_equal, got, want)
