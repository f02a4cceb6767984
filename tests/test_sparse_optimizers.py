"""Row-sparse optimisers against dense NumPy ones with the gradient of the whole table."""

import functools

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from jax.sharding import PartitionSpec as P

from cadc_jax import sharding, sparse_optimizers
from cadc_jax.tables import packed

V, D, N = 16, 3, 24
RATE = 0.1


def reference(name, table, batches, rate=RATE):
    """The same steps in float64, from the dense gradient [V, D] of the whole table."""
    table = table.astype(np.float64)
    accumulator, mean, variance = np.zeros(V), np.zeros((V, D)), np.zeros((V, D))
    for count, (ids, grads) in enumerate(batches, start=1):
        dense = np.zeros((V, D))
        np.add.at(dense, ids, grads)
        touched = np.isin(np.arange(V), ids)[:, None]
        if name == "sgd":
            table = table - rate * dense
        elif name == "adagrad":
            accumulator += (dense**2).mean(1)
            step = rate * dense / (np.sqrt(accumulator)[:, None] + 1e-8)
            table = np.where(touched, table - step, table)
        else:
            mean = np.where(touched, 0.9 * mean + 0.1 * dense, mean)
            variance = np.where(touched, 0.999 * variance + 0.001 * dense**2, variance)
            root = np.sqrt(variance / (1 - 0.999**count)) + 1e-8
            table = np.where(touched, table - rate * mean / (1 - 0.9**count) / root, table)
    return table


@pytest.fixture
def table():
    return np.random.default_rng(0).normal(size=(V, D)).astype(np.float32)


@pytest.fixture
def batches():
    rng = np.random.default_rng(1)
    return [
        (rng.integers(0, 9, N).astype(np.int32), rng.normal(size=(N, D)).astype(np.float32))
        for _ in range(4)
    ]


def run(name, table, batches, masks=None):
    table = jnp.asarray(table)
    slots = sparse_optimizers.init(name, table)
    masks = [None] * len(batches) if masks is None else masks
    for (ids, grads), mask in zip(batches, masks, strict=True):
        ids, grads = jnp.asarray(ids), jnp.asarray(grads)
        table, slots = sparse_optimizers.update(name, table, slots, ids, grads, RATE, mask=mask)
    return table, slots


@pytest.mark.parametrize("name", sparse_optimizers.OPTIMIZERS)
def test_repeated_ids_get_the_update_of_their_dense_gradient(name, table, batches):
    got, _ = run(name, table, batches)
    np.testing.assert_allclose(got, reference(name, table, batches), rtol=1e-5, atol=1e-5)


@pytest.mark.parametrize("name", sparse_optimizers.OPTIMIZERS)
def test_rows_outside_the_batch_do_not_change(name, table, batches):
    got, _ = run(name, table, batches)
    np.testing.assert_array_equal(got[9:], table[9:])


@pytest.mark.parametrize("name", sparse_optimizers.OPTIMIZERS)
def test_masked_entries_have_no_effect(name, table, batches):
    padded = [
        (
            np.concatenate([ids, np.arange(12, 16, dtype=np.int32), ids[:1]]),
            np.pad(g, ((0, 5), (0, 0))),
        )
        for ids, g in batches
    ]
    masks = [jnp.arange(N + 5) < N] * len(batches)
    padded = [(ids, g + 7.0 * (np.arange(N + 5) >= N)[:, None]) for ids, g in padded]
    got, got_slots = run(name, table, padded, masks)
    want, want_slots = run(name, table, batches)
    np.testing.assert_array_equal(got, want)
    for key in set(got_slots) - {"scratch"}:
        np.testing.assert_array_equal(got_slots[key], want_slots[key])


@pytest.mark.parametrize("name", sparse_optimizers.OPTIMIZERS)
@pytest.mark.parametrize("outside", [V, V + 3, 2**31 - 1 - N, -1, -V])
def test_ids_outside_the_table_are_dropped(name, outside, table, batches):
    ids, grads = batches[0]
    ids = np.where(np.arange(N) % 3 == 0, outside, ids).astype(np.int32)
    inside = ids != outside
    got, _ = run(name, table, [(ids, grads)])
    want = reference(name, table, [(ids[inside], grads[inside])])
    np.testing.assert_allclose(got, want, rtol=1e-5, atol=1e-5)


@pytest.mark.parametrize("name", sparse_optimizers.OPTIMIZERS)
def test_a_fully_masked_batch_changes_nothing_in_spite_of_momentum(name, table, batches):
    before, slots = run(name, table, batches)
    ids, grads = map(jnp.asarray, batches[0])
    after, _ = sparse_optimizers.update(
        name, before, slots, ids, grads, RATE, mask=jnp.zeros(N, bool)
    )
    np.testing.assert_array_equal(after, before)


@pytest.mark.parametrize("name", ["adagrad", "adam"])
def test_the_contents_of_the_scratch_have_no_effect(name, table, batches):
    want, slots = run(name, table, batches)
    ids, grads = map(jnp.asarray, batches[0])
    want = sparse_optimizers.update(name, want, slots, ids, grads, RATE)[0]
    before, slots = run(name, table, batches)
    slots["scratch"] = jnp.asarray(np.random.default_rng(2).integers(-9, 99, V), jnp.int32)
    np.testing.assert_array_equal(
        sparse_optimizers.update(name, before, slots, ids, grads, RATE)[0], want
    )


@pytest.mark.parametrize("name", sparse_optimizers.OPTIMIZERS)
def test_a_zero_gradient_does_not_change_a_new_row(name, table):
    got, _ = run(name, table, [(np.arange(4, dtype=np.int32), np.zeros((4, D), np.float32))])
    np.testing.assert_array_equal(got, table)


@pytest.mark.parametrize("name", sparse_optimizers.OPTIMIZERS)
def test_a_table_of_scalars_is_updated_like_a_table_of_width_one(name, table, batches):
    wide, _ = run(name, table[:, :1], [(ids, g[:, :1]) for ids, g in batches])
    flat, _ = run(name, table[:, 0], [(ids, g[:, 0]) for ids, g in batches])
    np.testing.assert_array_equal(flat, wide[:, 0])


@pytest.mark.parametrize("name", sparse_optimizers.OPTIMIZERS)
def test_a_bfloat16_table_keeps_its_dtype_and_float32_state(name, table, batches):
    got, slots = run(name, table.astype(jnp.bfloat16), batches)
    assert got.dtype == jnp.bfloat16
    assert all(s.dtype in (jnp.float32, jnp.int32) for s in slots.values())
    want = reference(name, table, batches)
    np.testing.assert_allclose(got.astype(np.float32), want, rtol=0.05, atol=0.05)


@pytest.mark.parametrize("name", sparse_optimizers.OPTIMIZERS)
def test_the_work_of_a_compiled_step_does_not_depend_on_the_size_of_the_table(name):
    def flops_and_temporaries(rows):
        table = jax.ShapeDtypeStruct((rows, D), jnp.float32)
        slots = jax.eval_shape(functools.partial(sparse_optimizers.init, name), table)
        ids = jax.ShapeDtypeStruct((N,), jnp.int32)
        grads = jax.ShapeDtypeStruct((N, D), jnp.float32)
        step = jax.jit(functools.partial(sparse_optimizers.update, name), donate_argnums=(0, 1))
        compiled = step.lower(table, slots, ids, grads, RATE).compile()
        memory = compiled.memory_analysis()
        return compiled.cost_analysis()["flops"], memory.temp_size_in_bytes

    assert flops_and_temporaries(100) == flops_and_temporaries(1_000_000)


@pytest.mark.parametrize("name", sparse_optimizers.OPTIMIZERS)
@pytest.mark.parametrize("devices", [2, 8])
def test_shards_that_mask_the_ids_of_others_together_equal_the_whole_table(
    name, devices, table, batches, monkeypatch
):
    monkeypatch.setattr(sparse_optimizers, "SORTED_ROWS", 7)  # traced for TPUs, too
    mesh = sharding.make_mesh(devices=jax.devices()[:devices])
    rows = V // devices

    def local(table, slots, ids, grads):
        own = ids - rows * jax.lax.axis_index(sharding.EVERYWHERE)
        mask = (own >= 0) & (own < rows)
        return sparse_optimizers.update(name, table, slots, own, grads, RATE, mask=mask)

    whole = jnp.asarray(table)
    slots = sparse_optimizers.init(name, whole)
    specs = jax.tree.map(lambda s: sharding.TABLE if s.ndim else P(), slots)
    step = jax.jit(
        jax.shard_map(
            local,
            mesh=mesh,
            in_specs=(sharding.TABLE, specs, P(), P()),
            out_specs=(sharding.TABLE, specs),
        )
    )
    for ids, grads in batches:
        whole, slots = step(whole, slots, ids, grads)
    want, _ = run(name, table, batches)
    np.testing.assert_allclose(whole, want, rtol=1e-6, atol=1e-6)


def test_an_unknown_optimizer_is_rejected_by_name(table):
    table = jnp.asarray(table)
    with pytest.raises(ValueError, match="'rmsprop' is not one of sgd, adagrad, adam"):
        sparse_optimizers.init("rmsprop", table)
    with pytest.raises(ValueError, match="'rmsprop' is not one of sgd, adagrad, adam"):
        sparse_optimizers.update("rmsprop", table, {}, jnp.zeros(1, int), table[:1], RATE)


def test_stochastic_rounding_is_right_on_average_and_keeps_exact_numbers():
    x = jnp.full(20_000, 1 + 1 / 512, jnp.float32)  # a quarter of the way from 1 to 1 + 1 / 128
    rounded = np.asarray(sparse_optimizers.stochastic_round(x, jax.random.key(0)), np.float32)
    assert set(rounded) == {np.float32(1), np.float32(1 + 1 / 128)}
    np.testing.assert_allclose(np.mean(rounded > 1), 0.25, atol=0.02)
    exact = jnp.asarray([0.0, -0.0, -1.5, 3e38, jnp.inf, -jnp.inf, jnp.nan], jnp.bfloat16)
    kept = sparse_optimizers.stochastic_round(exact.astype(jnp.float32), jax.random.key(1))
    np.testing.assert_array_equal(kept.astype(np.float32), exact.astype(np.float32))


@pytest.mark.parametrize("name", sparse_optimizers.OPTIMIZERS)
def test_small_steps_on_a_bfloat16_table_add_up_only_with_stochastic_rounding(name):
    """200 steps of 1/1000 from 1: each is less than half of the distance to the next number."""
    start = jnp.ones((V, 64), jnp.bfloat16)
    ids = jnp.arange(V, dtype=jnp.int32)
    grads = jnp.ones((V, 64))
    step = jax.jit(functools.partial(sparse_optimizers.update, name))
    moved = {}
    for rounding in (False, True):
        table, slots = start, sparse_optimizers.init(name, start)
        for i in range(200):
            if name == "adagrad":
                slots["accumulator"] = jnp.zeros(V)
            key = jax.random.key(i) if rounding else None
            table, slots = step(table, slots, ids, grads, 1e-3, key=key)
        moved[rounding] = float(jnp.mean(1 - table.astype(jnp.float32)))
    assert moved[False] == 0
    np.testing.assert_allclose(moved[True], 0.2, rtol=0.05)


@pytest.mark.parametrize("rows", [N, 7, 1])
@pytest.mark.parametrize("name", ["adagrad", "adam"])
def test_sums_by_sorting_are_those_by_scratch_cells(name, rows, table, batches, monkeypatch):
    """Of runs of 1 to 24 equal ids, with dropped ones at both ends; in one part or in several."""
    monkeypatch.setattr(sparse_optimizers, "SORTED_ROWS", rows)
    rng = np.random.default_rng(5)
    ids = [np.repeat([3, V, -1, 8], 6), np.full(N, 7), np.arange(N), rng.integers(-2, V + 2, N)]
    slots = sparse_optimizers.init(name, jnp.asarray(table))
    for some, (_, grads) in zip(ids, batches, strict=True):
        arguments = (name, jnp.asarray(table), slots, jnp.asarray(some, jnp.int32))
        arguments += jnp.asarray(grads), RATE
        want, want_slots = sparse_optimizers.update(*arguments, sort=False)
        got, got_slots = sparse_optimizers.update(*arguments, sort=True)
        np.testing.assert_allclose(got, want, rtol=1e-5, atol=1e-6)
        for key in set(got_slots) - {"scratch"}:
            np.testing.assert_allclose(got_slots[key], want_slots[key], rtol=1e-5, atol=1e-7)


@pytest.mark.parametrize("rows", [1 << 14, 300])
def test_a_sorted_step_with_many_equal_ids_has_the_same_bits_each_time(rows, table, monkeypatch):
    monkeypatch.setattr(sparse_optimizers, "SORTED_ROWS", rows)
    rng = np.random.default_rng(2)
    ids = jnp.asarray(rng.integers(0, 2, 5000), jnp.int32)
    grads = jnp.asarray(rng.normal(size=(5000, D)), jnp.float32)
    slots = sparse_optimizers.init("adagrad", jnp.asarray(table))
    update = jax.jit(functools.partial(sparse_optimizers.update, "adagrad", sort=True))
    one, other = (update(jnp.asarray(table), slots, ids, grads, RATE)[0] for _ in range(2))
    np.testing.assert_array_equal(one, other)


@pytest.mark.parametrize("name", sparse_optimizers.OPTIMIZERS)
def test_a_packed_table_is_updated_to_the_same_bits(name):
    rng = np.random.default_rng(3)
    plain = jnp.asarray(rng.normal(size=(V, 32)), jnp.float32)
    forms = [plain, packed.pack(plain)]
    slots = [sparse_optimizers.init(name, form) for form in forms]
    for _ in range(3):
        ids = jnp.asarray(rng.integers(-1, V + 1, N), jnp.int32)
        grads = jnp.asarray(rng.normal(size=(N, 32)), jnp.float32)
        for k in range(2):
            step = sparse_optimizers.update(name, forms[k], slots[k], ids, grads, RATE, sort=True)
            forms[k], slots[k] = step
    np.testing.assert_array_equal(packed.plain(forms[1]), forms[0])
    for key, want in slots[0].items():
        np.testing.assert_array_equal(packed.plain(slots[1][key]), want)
