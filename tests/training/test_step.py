import dataclasses
import re

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest

from cadc_jax import sharding, sparse_optimizers
from cadc_jax.models import embeddings, scoring
from cadc_jax.models.dlrm import DLRM
from cadc_jax.models.two_tower import TwoTower
from cadc_jax.training import losses, placement, step
from cadc_jax.training.step import TrainConfig
from tests.training.examples import ITEMS, RANK, USERS, batch, content, tables


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
        rows = embeddings.take_rows(tables, embeddings.lookup_ids(content(), batch()))
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
    config = TrainConfig(negatives=2)
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
        scoring.predict(
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


def one_step(config, data=None, frozen=(), model=None):
    model, state, constant = start(config, frozen, model)
    return step.train_step(
        model, config, state, constant, content(), data or batch(), jax.random.key(0)
    )


def assert_close(a, b, rtol=1e-5, atol=1e-6):
    jax.tree.map(lambda x, y: np.testing.assert_allclose(x, y, rtol=rtol, atol=atol), a, b)


@pytest.mark.parametrize("padded", [0, 5])  # 5: the last microbatch of 2 rows is all padding
@pytest.mark.parametrize("loss", ["bce", "softmax"])
def test_microbatches_add_up_to_the_batch(loss, padded):
    whole = TrainConfig(negatives=2, loss=loss, l2=0.1, table_optimizer="adagrad")
    parts = dataclasses.replace(whole, microbatch_rows=2)
    (got, got_loss), (want, want_loss) = (
        one_step(config, batch(padded=padded)) for config in (parts, whole)
    )
    # Adam's first mean is the gradient; its step would blow up the rounding of those near zero.
    assert_close(
        (got_loss, got.opt_state[0].mu, got.tables),
        (want_loss, want.opt_state[0].mu, want.tables),
        rtol=1e-4,
    )


def test_steps_in_one_program_are_those_of_single_calls():
    config = TrainConfig(negatives=2, table_optimizer="adam")
    batches = [batch(padded=k) for k in range(3)]
    model, state, _ = start(config)
    total = 0.0
    for data in batches[:2]:
        state, loss = step.train_step(model, config, state, {}, content(), data, jax.random.key(0))
        total += loss
    _, together, _ = start(config)
    stack = jax.tree.map(lambda *x: np.stack(x), *batches)
    together, loss = step.train_steps(
        model, config, together, {}, content(), stack, 2, jax.random.key(0)
    )
    assert_close((together, loss), (state, total), rtol=1e-4, atol=1e-5)


def test_learning_rates_warm_up_and_decay():
    config = TrainConfig(warmup_steps=4, decay_steps=10)
    got = [float(step._schedule(config, k)) for k in (0, 1, 3, 4, 9, 14, 20)]
    np.testing.assert_allclose(got, [0.25, 0.5, 1, 1, 0.5, 0, 0], atol=1e-6)
    assert float(step._schedule(TrainConfig(), 1000)) == 1


def test_the_schedule_governs_network_and_tables():
    config = TrainConfig(negatives=2, table_optimizer="sgd", table_learning_rate=0.5)
    _, before, _ = start(config)
    full, _ = one_step(config)
    half, _ = one_step(dataclasses.replace(config, warmup_steps=2))
    moved = lambda after: jax.tree.map(  # noqa: E731
        lambda a, b: a - b, (after.params, after.tables), (before.params, before.tables)
    )
    assert_close(moved(half), jax.tree.map(lambda x: x / 2, moved(full)), rtol=1e-3)


def test_clipping_bounds_the_gradients_that_the_network_sees():
    config = TrainConfig(negatives=2, clip_norm=1e-3)
    state, _ = one_step(config)
    means = state.opt_state[1][0].mu  # after one step 0.1 of the gradient
    np.testing.assert_allclose(optax.tree.norm(means), 1e-4, rtol=1e-3)


def test_bfloat16_computes_nearly_the_same_and_keeps_float32_weights():
    config = TrainConfig(negatives=2, table_optimizer="sgd", table_learning_rate=0.5)
    model = DLRM(RANK, (8,), (8,))
    exact, loss = one_step(config, model=model)
    rough, rough_loss = one_step(dataclasses.replace(config, compute_dtype="bfloat16"), model=model)
    np.testing.assert_allclose(rough_loss, loss, rtol=0.02)
    assert float(rough_loss) != float(loss)
    assert {x.dtype for x in jax.tree.leaves((rough.params, rough.tables))} == {jnp.dtype("f4")}
    assert_close(rough.tables, exact.tables, rtol=0.05, atol=0.02)


def test_bfloat16_products_are_compiled_as_such():
    config = TrainConfig(negatives=2, compute_dtype="bfloat16")
    model, state, _ = start(config, model=DLRM(RANK, (8,), (8,)))
    text = step.train_step.lower(
        model, config, state, {}, content(), batch(), jax.random.key(0)
    ).as_text()
    products = [line for line in text.splitlines() if "dot_general" in line]
    assert products
    assert all("xbf16>" in line for line in products)


def test_bfloat16_tables_round_at_random_only_if_asked():
    config = TrainConfig(negatives=2, table_dtype="bfloat16", table_learning_rate=0.02)
    nearest = one_step(config)[0].tables
    rounded = one_step(dataclasses.replace(config, stochastic_rounding=True))[0].tables
    assert {x.dtype for x in nearest.values()} == {jnp.dtype("bfloat16")}
    assert not np.array_equal(nearest["user"], rounded["user"])
    assert_close(*jax.tree.map(lambda x: x.astype(jnp.float32), (nearest, rounded)), rtol=0.01)


@pytest.mark.parametrize("optimizer", ["sgd", "adagrad", "adam"])
@pytest.mark.parametrize("frozen", [(), ("user", "item", "features")])
def test_a_compiled_run_of_steps_holds_nothing_else_of_a_tables_size(frozen, optimizer):
    """Several steps, in which tables are updated in place or only read."""
    rows = 123_457
    config = TrainConfig(table_optimizer=optimizer, microbatch_rows=4)
    model, state, constant = start(config, frozen, DLRM(RANK, (8,), (8,)))
    shape = lambda x: jax.ShapeDtypeStruct(x.shape, x.dtype)  # noqa: E731

    def grow(tree):
        sizes = {USERS, ITEMS}

        def one(x):
            large = x.ndim and x.shape[0] in sizes
            return jax.ShapeDtypeStruct((rows, *x.shape[1:]), x.dtype) if large else shape(x)

        return jax.tree.map(one, tree)

    state = jax.tree.map(shape, state).replace(
        tables=grow(dict(state.tables)), slots=grow(dict(state.slots))
    )
    stack = jax.tree.map(lambda x: np.stack([x] * 3), batch())
    compiled = step.train_steps.lower(
        *(model, config, state, grow(constant), content(), stack, 3, jax.random.key(0))
    ).compile()
    assert f"[{rows}" in compiled.as_text()
    memory = compiled.memory_analysis()
    assert memory.temp_size_in_bytes < rows  # not even a byte a row
    fresh = memory.output_size_in_bytes - memory.alias_size_in_bytes
    assert fresh < rows


def test_a_step_on_eight_devices_moves_no_table():
    rows = 123_456
    mesh = sharding.make_mesh()
    config = TrainConfig(negatives=2, table_optimizer="adagrad")
    model = DLRM(RANK, (8,), (8,))
    _, state, _ = start(config, model=model)
    big = {name: jax.ShapeDtypeStruct((rows, RANK), jnp.float32) for name in state.tables}
    ids = dict.fromkeys(big, 8)
    placed = placement.plan_placement(mesh, big, big, "adagrad", ids, 3 * rows * RANK * 2)
    assert [table.split for table in placed.tables] == [True] * 3
    everywhere, split = (
        sharding.named(mesh, spec) for spec in (sharding.REPLICATED, sharding.BATCH)
    )

    def on(tree, where):
        return jax.tree.map(lambda x: jax.ShapeDtypeStruct(x.shape, x.dtype, sharding=where), tree)

    tables = {name: placement.shape(placed, name, table) for name, table in big.items()}
    slots = jax.eval_shape(
        lambda tables: {n: sparse_optimizers.init("adagrad", t) for n, t in tables.items()}, tables
    )
    tables, slots = (
        {name: placement.like(placed, name, tree) for name, tree in trees.items()}
        for trees in (tables, slots)
    )
    state = on(state.replace(tables={}, slots={}), everywhere)
    lowered = step.train_step.lower(
        *(model, config, state.replace(tables=tables, slots=slots), {}),
        *(on(content(), everywhere), on(batch(), split), jax.random.key(0), placed),
    )
    text = lowered.compile().as_text()
    moved = [
        line
        for line in text.splitlines()
        if re.search(r"= .*(all-gather|all-reduce|all-to-all|collective-permute)", line)
    ]
    assert moved
    assert not [line for line in moved if re.search(rf"\[({rows}|{-(-rows // 8)})\b", line)]
    assert lowered.compile().memory_analysis().temp_size_in_bytes < rows


# Negatives within the batch.


def in_batch(rows=8, padded=0):
    given = batch(rows, 1, padded)
    return given | {"log_q": losses.log_frequency(given["item"][:, 0], ITEMS)[given["item"][:, 0]]}


IN_BATCH = TrainConfig(loss="in_batch", table_optimizer="sgd", table_learning_rate=0.5)


def test_an_in_batch_step_equals_a_dense_one_on_all_pairs():
    given = in_batch(8, padded=2)
    model, state, _ = start(IN_BATCH)
    # Towers start as the identity, and would not show features that are mixed up.
    state = state.replace(
        params=jax.tree.map(
            lambda x: x + 0.3 * jnp.sin(7 * x + jnp.arange(x.size).reshape(x.shape)), state.params
        )
    )
    before = jax.tree.map(jnp.copy, state)

    def dense(params, tables):
        users, items = given["user"], given["item"][:, 0]
        pairs = embeddings.pair_batch(users, jnp.broadcast_to(items[None], (8, 8)))
        rows = embeddings.take_rows(tables, embeddings.lookup_ids(content(), pairs))
        logits = model.apply(params, embeddings.model_inputs(rows, content(), pairs))
        return losses.in_batch_softmax(logits, users, items, given["log_q"], given["weight"])

    loss, (_, table_grads) = jax.value_and_grad(dense, argnums=(0, 1))(before.params, before.tables)
    state, got = step.train_step(model, IN_BATCH, state, {}, content(), given, jax.random.key(0))
    np.testing.assert_allclose(got, loss, rtol=1e-5)
    for name, table in state.tables.items():
        expected = before.tables[name] - 0.5 * table_grads[name]
        np.testing.assert_allclose(table, expected, rtol=1e-4, atol=1e-5)


def test_in_batch_losses_are_the_same_on_eight_devices():
    results = []
    for devices in (jax.devices()[:1], jax.devices()):
        mesh = sharding.make_mesh(devices=devices)
        model, state, _ = start(IN_BATCH)
        everywhere = sharding.named(mesh, sharding.REPLICATED)
        state, features, key = jax.device_put((state, content(), jax.random.key(0)), everywhere)
        given = jax.device_put(in_batch(), sharding.named(mesh, sharding.BATCH))
        for _ in range(3):
            state, loss = step.train_step(model, IN_BATCH, state, {}, features, given, key)
        results.append((float(loss), jax.tree.map(np.asarray, state.tables)))
    jax.tree.map(lambda a, b: np.testing.assert_allclose(a, b, rtol=1e-4, atol=1e-5), *results)


ALL_ITEMS = dataclasses.replace(IN_BATCH, loss="all_items", l2=0.1)


@pytest.mark.parametrize("devices", [1, 8])
def test_a_step_among_all_items_equals_a_dense_one(devices):
    given = batch(8, 1, padded=2)
    model, state, _ = start(ALL_ITEMS)
    before = jax.tree.map(jnp.copy, state)
    items = jnp.arange(ITEMS)

    def dense(params, tables):
        pairs = embeddings.pair_batch(given["user"], items[None])
        rows = embeddings.take_rows(tables, embeddings.lookup_ids(content(), pairs))
        logits = model.apply(params, embeddings.model_inputs(rows, content(), pairs))
        competes = jnp.broadcast_to(items > 0, logits.shape)  # 0 is the unknown item
        positive = given["item"][:, 0]
        loss = losses.all_items_softmax(logits, positive, competes, given["weight"])
        user = tables["user"][given["user"][:6]]
        features = content().user_categorical[given["user"][:6], 0]
        of_items = tables["features"][content().item_categorical[items, 0]]
        trained = (user, tables["item"][items], tables["features"][features], of_items)
        return loss + 0.1 / 8 * sum(jnp.sum(x**2) for x in trained)

    loss, (_, table_grads) = jax.value_and_grad(dense, argnums=(0, 1))(before.params, before.tables)
    mesh = sharding.make_mesh(devices=jax.devices()[:devices])
    ids = {"user": 8, "item": ITEMS, "features": 8 + ITEMS}
    placed = placement.plan_placement(mesh, state.tables, state.tables, "sgd", ids)
    everywhere = sharding.named(mesh, sharding.REPLICATED)
    state, features, key = jax.device_put((state, content(), jax.random.key(0)), everywhere)
    given_there = jax.device_put(given, sharding.named(mesh, sharding.BATCH))
    state, got = step.train_step(model, ALL_ITEMS, state, {}, features, given_there, key, placed)
    np.testing.assert_allclose(got, loss, rtol=1e-5)
    for name, table in state.tables.items():
        expected = before.tables[name] - 0.5 * table_grads[name]
        np.testing.assert_allclose(table, expected, rtol=1e-4, atol=1e-5)


@pytest.mark.parametrize("loss", ["bce", "softmax"])
@pytest.mark.parametrize(("micro", "l2"), [(0, 0.0), (4, 0.0), (0, 0.1), (4, 0.1)])
def test_items_that_are_computed_once_a_step_train_as_if_once_a_row(loss, micro, l2):
    """With many items that no row asks for, they are not; three steps of a lazy optimizer, so that
    rows of other items must not move, nor those of padding."""
    config = TrainConfig(negatives=2, loss=loss, microbatch_rows=micro, l2=l2)
    few, found = ITEMS, []
    for num_items, shared in ((few, True), (few + 100, False)):
        asked = (micro or 8) * 3
        assert scoring.shares_items(TwoTower((8,)), asked, num_items) == shared
        extra = num_items - few
        of = content()
        of = of.replace(
            item_dense=jnp.zeros((num_items, 0)),
            item_categorical=jnp.pad(of.item_categorical, ((0, extra), (0, 0))),
        )
        trained = tables()
        trained["item"] = jnp.pad(trained["item"], ((0, extra), (0, 0)))
        model, key = TwoTower((8,), gate=3), jax.random.key(1)
        state = step.init_state(model, config, trained, {}, of, batch(), key)
        for padded in (0, 3, 8 - 1):
            state, total = step.train_step(
                model, config, state, {}, of, batch(padded=padded), jax.random.key(0)
            )
        moved = {name: table[: len(tables()[name])] for name, table in state.tables.items()}
        # A softmax leaves biases of all items open: what Adam makes of their noise is no matter.
        found.append((total, moved, state.params if loss == "bce" else {}))
    jax.tree.map(lambda a, b: np.testing.assert_allclose(a, b, rtol=1e-4, atol=1e-6), *found)


@pytest.mark.parametrize(
    ("precision", "expected"),
    [
        ("default", "DEFAULT"),
        ("bfloat16", "DEFAULT"),
        ("tensorfloat32", "HIGH"),
        ("float32", "HIGHEST"),
    ],
)
def test_the_precision_of_products_is_a_setting_in_training_and_float32_in_scores(
    precision, expected
):
    """On a CPU all precisions compute the same, so this reads the programs before compiling."""
    config = TrainConfig(negatives=2, matmul_precision=precision)
    model, state, _ = start(config)
    trained = step.train_step.lower(model, config, state, {}, content(), batch(), jax.random.key(0))
    scored = scoring.predict.lower(model, state.params, state.tables, content(), batch())
    for program, name in ((trained, expected), (scored, "HIGHEST")):
        lines = program.as_text().splitlines()
        products = [line for line in lines if "stablehlo.dot_general" in line]
        assert products
        assert all(f"precision = [{name}, {name}]" in line for line in products)
