import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest

from cadc_jax import sharding
from cadc_jax.models import embeddings
from cadc_jax.models.dlrm import DLRM
from cadc_jax.models.embeddings import Content
from cadc_jax.models.two_tower import TwoTower
from cadc_jax.training import step
from cadc_jax.training.step import TrainConfig

USERS, ITEMS, RANK = 6, 5, 4


def content():
    return Content(
        user_dense=jnp.linspace(-1, 1, USERS)[:, None],
        user_categorical=jnp.arange(USERS)[:, None] % 3,
        item_dense=jnp.zeros((ITEMS, 0)),
        item_categorical=3 + jnp.arange(ITEMS)[:, None] % 2,
        context_offsets=jnp.zeros((0,), jnp.int32),
    )


def tables():
    keys = jax.random.split(jax.random.key(0), 3)
    sizes = {"user": USERS, "item": ITEMS, "features": 5}
    return {
        name: jax.random.normal(key, (size, RANK))
        for key, (name, size) in zip(keys, sizes.items(), strict=True)
    }


def batch(rows=8, items=3, padded=0):
    rng = np.random.default_rng(0)
    label = np.zeros((rows, items), np.float32)
    label[:, 0] = 1
    return {
        **embeddings.pair_batch(
            rng.integers(0, USERS, rows).astype(np.int32),
            rng.integers(0, ITEMS, (rows, items)).astype(np.int32),
        ),
        "label": label,
        "weight": np.r_[np.ones(rows - padded), np.zeros(padded)].astype(np.float32),
    }


def start(config, frozen=(), model=None):
    model = model or TwoTower((8,))
    all_tables = tables()
    constant = {name: all_tables[name] for name in frozen}
    trained = {name: t for name, t in all_tables.items() if name not in frozen}
    state = step.init_state(model, config, trained, constant, content(), batch(), jax.random.key(1))
    return model, state, constant


def test_a_step_equals_one_of_a_dense_optimizer():
    config = TrainConfig(negatives=2, table_optimizer="sgd", table_learning_rate=0.5, l2=0.1)
    model, state, _ = start(config)
    before = jax.tree.map(jnp.copy, state)

    def dense_loss(params, tables):
        rows = embeddings.gather(tables, embeddings.lookup_ids(content(), batch()))
        logits = model.apply(params, embeddings.model_inputs(rows, content(), batch()))
        loss = optax.sigmoid_binary_cross_entropy(logits, batch()["label"]).mean()
        return loss + 0.1 / 8 * sum(jnp.sum(x**2) for x in rows.values())

    loss, grads = jax.value_and_grad(dense_loss, argnums=(0, 1))(before.params, before.tables)
    state, got = step.train_step(model, config, state, {}, content(), batch(), jax.random.key(0))
    np.testing.assert_allclose(got, loss, rtol=1e-5)
    for name, table in state.tables.items():
        expected = before.tables[name] - 0.5 * grads[1][name]
        np.testing.assert_allclose(table, expected, rtol=1e-4, atol=1e-5)


def test_frozen_tables_have_no_state_and_do_not_move():
    config = TrainConfig(negatives=2)
    model, state, frozen = start(config, frozen=("user", "item"))
    assert set(state.tables) == set(state.slots) == {"features"}
    before = jax.tree.map(np.asarray, frozen)
    state, _ = step.train_step(model, config, state, frozen, content(), batch(), jax.random.key(0))
    jax.tree.map(np.testing.assert_array_equal, before, frozen)


def test_no_gradient_of_a_frozen_tables_size_is_compiled():
    config = TrainConfig(negatives=2)
    model, state, frozen = start(config, frozen=("user", "item"))
    big = {name: jnp.zeros((12_347, RANK)) for name in frozen}
    lowered = step.train_step.lower(
        model, config, state, big, content(), batch(), jax.random.key(0)
    )
    made = [
        line
        for line in lowered.compile().as_text().splitlines()
        if f"= f32[12347,{RANK}]" in line and "parameter(" not in line
    ]
    assert not made


def test_padding_rows_change_nothing():
    config = TrainConfig(negatives=2, l2=0.0)
    whole = batch(8, padded=3)
    part = {name: x[:5] for name, x in whole.items()}
    results = []
    for data in (whole, part):
        model, state, _ = start(config)
        results.append(
            step.train_step(model, config, state, {}, content(), data, jax.random.key(0))
        )
    jax.tree.map(
        lambda a, b: np.testing.assert_allclose(a, b, rtol=1e-5, atol=1e-6),
        (results[0][0].params, results[0][0].tables, results[0][1]),
        (results[1][0].params, results[1][0].tables, results[1][1]),
    )


def test_softmax_loss_is_the_negative_log_share_of_the_positive():
    config = TrainConfig(negatives=2, loss="softmax")
    model, state, _ = start(config)
    all_tables = {**state.tables}
    logits = np.asarray(
        step.predict(
            model,
            state.params,
            all_tables,
            content(),
            {name: x for name, x in batch().items() if name not in ("label", "weight")},
        )
    )
    expected = np.mean(np.log(np.exp(logits).sum(axis=1)) - logits[:, 0])
    _, loss = step.train_step(model, config, state, {}, content(), batch(), jax.random.key(0))
    np.testing.assert_allclose(loss, expected, rtol=1e-5)


@pytest.mark.parametrize("model", [TwoTower((8,)), DLRM(RANK, (8,), (8,))])
@pytest.mark.parametrize("frozen", [(), ("user", "item")])
def test_eight_devices_train_as_one_does(model, frozen):
    config = TrainConfig(negatives=2, table_optimizer="adagrad", table_learning_rate=0.1)
    results = []
    for devices in (jax.devices()[:1], jax.devices()):
        mesh = sharding.make_mesh(devices=devices)
        split = sharding.named(mesh, sharding.BATCH)
        _, state, constant = start(config, frozen, model)
        state, constant = jax.device_put(
            (state, constant), sharding.named(mesh, sharding.REPLICATED)
        )
        losses = []
        for _ in range(3):
            state, loss = step.train_step(
                model,
                config,
                state,
                constant,
                jax.device_put(content(), sharding.named(mesh, sharding.REPLICATED)),
                jax.device_put(batch(), split),
                jax.device_put(jax.random.key(0), sharding.named(mesh, sharding.REPLICATED)),
            )
            losses.append(float(loss))
        results.append((losses, jax.tree.map(np.asarray, state.tables)))
    assert len(jax.devices()) == 8
    jax.tree.map(lambda a, b: np.testing.assert_allclose(a, b, rtol=1e-4, atol=1e-5), *results)


def test_all_batches_of_one_shape_use_one_compilation():
    config = TrainConfig(negatives=2, learning_rate=2e-3)
    model, state, _ = start(config)
    before = step.train_step._cache_size()
    for padded in (0, 1, 5):
        state, _ = step.train_step(
            model, config, state, {}, content(), batch(padded=padded), jax.random.key(padded)
        )
    assert step.train_step._cache_size() - before == 1
