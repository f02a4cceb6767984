"""ALS fits and folding in, against dense float64 references."""

import dataclasses
import itertools

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from hypothesis import example, given, settings
from hypothesis import strategies as st
from jax.sharding import Mesh

from cadc_jax.errors import ConfigError
from cadc_jax.factorization import als, als_solver
from cadc_jax.factorization.als import ALSConfig
from cadc_jax.factorization.factors import Factors
from cadc_jax.factorization.interactions import Interactions, make_layout
from cadc_jax.runtime.checkpoints import Checkpoints
from cadc_jax.runtime.interrupts import Stopped
from cadc_jax.tables import packed
from tests.factorization import reference
from tests.factorization.reference import I, U

D = 6
KEY = jax.random.key(0)
IMPLICIT = ALSConfig(
    factors=D, regularization=0.5 / reference.noise_unit(2.0), alpha=2.0, iterations=3, chunk=64
)  # a penalty of 0.5 for every row
EXPLICIT = dataclasses.replace(
    IMPLICIT, feedback="explicit", solver="exact", regularization=0.1, frequency_exponent=1.0
)


def scaled(seen, exponent):
    """The penalties of the rows of a matrix of booleans, with alpha = 2, for a mean of 0.5."""
    rows, columns = seen.sum(1), seen.sum(0)
    rows_mean, columns_mean = rows[rows > 0].mean(), columns[columns > 0].mean()
    of_rows, of_columns = (columns > 0).sum() / 2.0, (rows > 0).sum() / 2.0
    mean = np.sqrt((rows_mean + of_rows) * (columns_mean + of_columns))
    return 0.5 * ((rows + of_rows) / mean) ** exponent


def np_tables(factors):
    return np.asarray(factors.user, np.float64), np.asarray(factors.item, np.float64)


@pytest.mark.parametrize("devices", [1, 4])
def test_a_table_gives_back_the_rows_that_were_put_in(devices, interactions):
    mesh = Mesh(np.array(jax.devices()[:devices]), ("data",))
    rows = np.random.default_rng(0).normal(size=(U, D)).astype(np.float32)
    users, _ = als.prepare(interactions, IMPLICIT, mesh)
    table = users.table(rows)
    assert table.shape == users.empty_table().shape == (users.layout.table_rows, D)
    assert len(table.addressable_shards) == devices
    np.testing.assert_array_equal(users.rows(table), rows)
    unused = np.delete(np.asarray(table), users.layout.position, axis=0)
    assert not unused.any() and not np.asarray(users.empty_table()).any()


@pytest.mark.parametrize("devices", [1, 4])
def test_a_side_may_have_long_rows_alone(devices):
    """Three items that all users have, in chunks of a few entries."""
    mesh = Mesh(np.array(jax.devices()[:devices]), ("data",))
    pairs = Interactions.from_rows(np.repeat(np.arange(60), 3), np.tile(np.arange(3), 60), 60, 3)
    found = []
    for chunk in (16, 4096):
        config = dataclasses.replace(IMPLICIT, chunk=chunk)
        found.append(np_tables(als.fit(pairs, config, KEY, mesh=mesh)[0]))
    _, items = als.prepare(pairs, dataclasses.replace(IMPLICIT, chunk=16), mesh)
    assert items.layout.long_rows >= 3
    for one, other in zip(*found, strict=True):
        np.testing.assert_allclose(one, other, rtol=1e-3, atol=1e-5)


def test_frequency_scales_the_regularization_of_each_row(interactions, matrix):
    config = dataclasses.replace(IMPLICIT, frequency_exponent=0.7)
    users, items = als.prepare(interactions, config)
    for side, seen in ((users, matrix != 0), (items, matrix.T != 0)):
        found = np.asarray(side.data.regularization)[side.layout.position]
        np.testing.assert_allclose(found, scaled(seen, 0.7), rtol=1e-6)
    users, _ = als.prepare(interactions, EXPLICIT)
    found = np.asarray(users.data.regularization)[users.layout.position]
    np.testing.assert_allclose(found, 0.1 * (matrix != 0).sum(1).clip(1), rtol=1e-6)


def test_without_an_exponent_explicit_rows_are_penalised_as_a_mean_row(interactions, matrix):
    users, items = als.prepare(interactions, dataclasses.replace(EXPLICIT, frequency_exponent=0.0))
    for side, counts in ((users, (matrix != 0).sum(1)), (items, (matrix != 0).sum(0))):
        found = np.asarray(side.data.regularization)[side.layout.position]
        np.testing.assert_allclose(found, 0.1 * counts[counts > 0].mean(), rtol=1e-6)


@pytest.mark.parametrize("exponent", [0.0, 0.7])
@pytest.mark.parametrize("base", [IMPLICIT, EXPLICIT], ids=["implicit", "explicit"])
def test_users_and_items_that_no_row_has_change_no_penalty(base, exponent):
    user, item, _ = reference.sparse_data()
    config = dataclasses.replace(base, frequency_exponent=exponent)
    few, many = (
        als.regularization(x, config, x.extent)
        for x in (Interactions.from_rows(user, item, *sizes) for sizes in ((U, I), (7 * U, 9 * I)))
    )
    np.testing.assert_allclose(many[0][:U], few[0], rtol=1e-12)
    np.testing.assert_allclose(many[1][:I], few[1], rtol=1e-12)


@pytest.mark.parametrize("exponent", [0.0, 1.0])
def test_copies_of_a_log_side_by_side_are_penalised_as_the_log(exponent):
    """Each copy has its own users and items, so a mean row of it stays what it was."""
    user, item, _ = reference.sparse_data()
    shift = np.arange(5)[:, None]
    wide = Interactions.from_rows(
        (user + U * shift).ravel(), (item + I * shift).ravel(), 5 * U, 5 * I
    )
    one = Interactions.from_rows(user, item, U, I)
    config = dataclasses.replace(IMPLICIT, frequency_exponent=exponent)
    means = []
    for matrix in (one, wide):
        users, items = als.regularization(matrix, config, matrix.extent)
        seen = matrix.by_user.counts > 0, matrix.by_item.counts > 0
        means.append(users[seen[0]].mean() * items[seen[1]].mean())
    assert means[1] == pytest.approx(means[0])


def test_a_fit_is_made_of_half_steps_that_can_be_run_one_by_one(interactions):
    config = dataclasses.replace(IMPLICIT, iterations=1)
    start = np.random.default_rng(0).normal(size=(I, D)).astype(np.float32)
    init = Factors(np.zeros((U, D), np.float32), start)
    want, losses = als.fit(interactions, config, KEY, init=init)
    users, items = als.prepare(interactions, config)
    item = items.table(start * (interactions.by_item.counts > 0)[:, None])
    user, _ = als.half_step(users, users.empty_table(), items, item)
    item, loss = als.half_step(items, item, users, user)
    np.testing.assert_array_equal(users.rows(user), want.user)
    np.testing.assert_array_equal(items.rows(item), want.item)
    assert float(loss) == losses[0]


def test_a_lowered_half_step_has_the_results_of_the_one_that_runs(interactions):
    users, items = als.prepare(interactions, IMPLICIT)
    item = items.table(np.ones((I, D), np.float32))
    lowered = als.lower_half_step(users, users.empty_table(), items, item)
    solved, loss = lowered.out_info
    want, want_loss = als.half_step(users, users.empty_table(), items, item)
    assert (solved.shape, solved.dtype, loss.shape) == (want.shape, want.dtype, want_loss.shape)


def test_a_negative_value_is_a_confident_dislike():
    x = Interactions.from_rows([0, 0, 1], [0, 1, 1], 2, 2, [2.0, -3.0, 1.0])
    matrix = np.array([[2.0, -3.0], [0.0, 1.0]])
    config = dataclasses.replace(
        IMPLICIT,
        factors=2,
        solver="exact",
        iterations=2,
        regularization=0.5 / (np.sqrt(2.0) * x.extent.noise),
    )
    factors, losses = als.fit(x, config, KEY)
    half = np.full(2, 0.5)
    want = reference.implicit_objective(matrix, *np_tables(factors), half, half, 2.0)
    np.testing.assert_allclose(losses[-1], want, rtol=1e-4)
    np.testing.assert_allclose(
        factors.item, reference.implicit_half_step(matrix.T, np_tables(factors)[0], half, 2.0), 1e-4
    )


@pytest.mark.parametrize("solver", ["cg", "exact"])
@pytest.mark.parametrize("exponent", [0.0, 0.7])
def test_the_reported_objective_is_that_of_the_factors(solver, exponent, interactions, matrix):
    config = dataclasses.replace(IMPLICIT, solver=solver, frequency_exponent=exponent)
    factors, losses = als.fit(interactions, config, KEY)
    seen = matrix != 0
    user_lambda, item_lambda = scaled(seen, exponent), scaled(seen.T, exponent)
    want = reference.implicit_objective(matrix, *np_tables(factors), user_lambda, item_lambda, 2.0)
    np.testing.assert_allclose(losses[-1], want, rtol=1e-4)


@pytest.mark.parametrize("solver", ["cg", "exact"])
def test_the_reported_explicit_objective_is_that_of_the_factors(solver, interactions, matrix):
    factors, losses = als.fit(interactions, dataclasses.replace(EXPLICIT, solver=solver), KEY)
    seen = matrix != 0
    want = reference.explicit_objective(
        matrix, factors, 0.1 * seen.sum(1).clip(1), 0.1 * seen.sum(0).clip(1)
    )
    np.testing.assert_allclose(losses[-1], want, rtol=1e-4)


@pytest.mark.parametrize("base", [IMPLICIT, EXPLICIT], ids=["implicit", "explicit"])
@pytest.mark.parametrize("solver", ["cg", "exact"])
def test_the_objective_falls_at_every_iteration(base, solver, interactions):
    config = dataclasses.replace(base, solver=solver, iterations=12)
    _, losses = als.fit(interactions, config, KEY)
    assert np.all(np.diff(losses) < 1e-5 * losses[:-1])


patterns = st.sets(st.tuples(st.integers(0, U - 1), st.integers(0, I - 1)), min_size=1, max_size=60)


@pytest.mark.slow
@settings(max_examples=4)
@given(pattern=patterns, dense_row=st.booleans(), repeats=st.integers(1, 3))
@example(pattern={(2, 3)}, dense_row=False, repeats=1)
def test_any_pattern_gives_finite_factors_and_a_falling_objective(pattern, dense_row, repeats):
    user, item = map(np.array, zip(*sorted(pattern), strict=True))
    if dense_row:
        user, item = np.append(user, np.full(I, 5)), np.append(item, np.arange(I))
    user, item = np.tile(user, repeats), np.tile(item, repeats)
    x = Interactions.from_rows(user, item, U, I)
    matrix = reference.dense(user, item, np.ones(len(user)), U, I)
    for base in (IMPLICIT, EXPLICIT):
        factors, losses = als.fit(x, dataclasses.replace(base, chunk=1000), KEY)
        assert np.all(np.isfinite(losses))
        assert np.all(np.diff(losses) <= 1e-4 * np.abs(losses[:-1]) + 1e-4)
        for table, empty in zip(np_tables(factors), (~matrix.any(1), ~matrix.any(0)), strict=True):
            assert np.all(np.isfinite(table))
            assert not table[empty].any()


def test_rows_without_entries_are_zero(interactions, matrix):
    for base in (IMPLICIT, EXPLICIT):
        for solver in ("cg", "exact"):
            factors, _ = als.fit(interactions, dataclasses.replace(base, solver=solver), KEY)
            assert not np.asarray(factors.user)[~matrix.any(1)].any()
            assert not np.asarray(factors.item)[~matrix.any(0)].any()


def test_the_chunk_size_does_not_change_the_factors(interactions):
    want, _ = als.fit(interactions, IMPLICIT, KEY)
    for chunk in (33, 4096):
        got, _ = als.fit(interactions, dataclasses.replace(IMPLICIT, chunk=chunk), KEY)
        np.testing.assert_allclose(got.user, want.user, rtol=1e-3, atol=1e-4)


@pytest.mark.parametrize("fixed_side", ["gathered", "sharded"])
@pytest.mark.parametrize(
    ("base", "devices"),
    [(IMPLICIT, 2), (IMPLICIT, 4), (IMPLICIT, 8), (EXPLICIT, 4)],
    ids=["implicit-2", "implicit-4", "implicit-8", "explicit-4"],
)
def test_many_devices_give_the_factors_of_one(base, devices, fixed_side, interactions):
    want, want_losses = als.fit(interactions, base, KEY)
    mesh = Mesh(np.array(jax.devices()[:devices]).reshape(-1, 2), ("data", "model"))
    config = dataclasses.replace(base, fixed_side=fixed_side)
    got, losses = als.fit(interactions, config, KEY, mesh=mesh)
    np.testing.assert_allclose(losses, want_losses, rtol=1e-4)
    np.testing.assert_allclose(got.user, want.user, rtol=1e-3, atol=1e-3)
    np.testing.assert_allclose(got.item, want.item, rtol=1e-3, atol=1e-3)


def test_two_programs_serve_all_iterations_and_a_second_fit(interactions):
    config = dataclasses.replace(IMPLICIT, chunk=48)  # shapes no other test has
    als_solver.half_step.clear_cache()
    als.fit(interactions, config, KEY)
    assert als_solver.half_step._cache_size() == 2
    other = dataclasses.replace(config, regularization=1.0, alpha=5.0, iterations=5)
    als.fit(interactions, other, jax.random.key(1))
    assert als_solver.half_step._cache_size() == 2


def test_the_same_key_gives_the_same_factors_and_another_key_others(interactions):
    first, _ = als.fit(interactions, IMPLICIT, KEY)
    again, _ = als.fit(interactions, IMPLICIT, KEY)
    other, _ = als.fit(interactions, IMPLICIT, jax.random.key(1))
    np.testing.assert_array_equal(first.user, again.user)
    assert not np.allclose(first.user, other.user)


def test_bfloat16_tables_give_nearly_the_losses_of_float32(interactions):
    want, want_losses = als.fit(interactions, IMPLICIT, KEY)
    got, losses = als.fit(interactions, dataclasses.replace(IMPLICIT, dtype="bfloat16"), KEY)
    assert got.user.dtype == got.item.dtype == jnp.bfloat16
    np.testing.assert_allclose(losses, want_losses, rtol=0.02)


def test_a_fit_stops_once_an_iteration_improves_less_than_the_tolerance(interactions):
    config = dataclasses.replace(IMPLICIT, iterations=50, tolerance=0.01)
    _, losses = als.fit(interactions, config, KEY)
    assert 1 < len(losses) < 50
    assert losses[-2] - losses[-1] < 0.01 * losses[-2]
    assert np.all(losses[:-2] - losses[1:-1] >= 0.01 * losses[:-2])


def test_progress_is_called_after_each_iteration(interactions):
    calls = []
    _, losses = als.fit(interactions, IMPLICIT, KEY, progress=lambda *call: calls.append(call))
    assert [call[0] for call in calls] == [1, 2, 3]
    assert [call[1] for call in calls] == list(losses)
    assert np.all(np.diff([call[2] for call in calls]) > 0)


@pytest.mark.parametrize("base", [IMPLICIT, EXPLICIT], ids=["implicit", "explicit"])
def test_a_fit_from_the_factors_of_another_continues_it(base, interactions):
    want, want_losses = als.fit(interactions, dataclasses.replace(base, iterations=5), KEY)
    first, _ = als.fit(interactions, dataclasses.replace(base, iterations=2), KEY)
    other_key = jax.random.key(1)  # has no effect
    got, losses = als.fit(interactions, base, other_key, init=first)
    np.testing.assert_allclose(losses, want_losses[2:], rtol=1e-5)
    np.testing.assert_allclose(got.user, want.user, rtol=1e-3, atol=1e-4)
    np.testing.assert_allclose(got.item, want.item, rtol=1e-3, atol=1e-4)


def test_a_fit_with_more_rows_keeps_the_basis_of_the_factors_it_starts_from(interactions):
    user, item, value = reference.sparse_data()
    fewer = np.arange(len(user)) % 10 != 0
    part = Interactions.from_rows(user[fewer], item[fewer], U, I, value[fewer])
    config = dataclasses.replace(IMPLICIT, iterations=30)
    start, _ = als.fit(part, config, KEY)
    got, losses = als.fit(
        interactions, dataclasses.replace(IMPLICIT, iterations=3), KEY, init=start
    )
    _, scratch = als.fit(interactions, config, KEY)
    assert losses[-1] < 1.01 * scratch[-1]
    cosine = np.sum(got.item * start.item) / np.linalg.norm(got.item) / np.linalg.norm(start.item)
    assert cosine > 0.9


def test_a_fit_does_not_start_from_factors_of_other_sizes(interactions):
    other = Factors(jnp.zeros((U, D)), jnp.zeros((I + 1, D)))
    with pytest.raises(ConfigError, match=rf"init has factors of shapes .*\({I + 1}, {D}\)"):
        als.fit(interactions, IMPLICIT, KEY, init=other)


def test_explicit_feedback_rejects_factors_without_biases(interactions):
    factors = Factors(jnp.zeros((U, D)), jnp.zeros((I, D)))
    for call in (
        lambda: als.fit(interactions, EXPLICIT, KEY, init=factors),
        lambda: als.fold_in(factors, interactions, EXPLICIT, extent=interactions.extent),
    ):
        with pytest.raises(ConfigError, match="feedback='explicit' needs factors with biases"):
            call()


@pytest.mark.parametrize("side", ["user", "item"])
def test_folding_in_the_training_rows_is_an_exact_half_step(side, interactions, matrix):
    factors, _ = als.fit(interactions, dataclasses.replace(IMPLICIT, frequency_exponent=0.5), KEY)
    config = dataclasses.replace(IMPLICIT, frequency_exponent=0.5)
    got, bias = als.fold_in(factors, interactions, config, extent=interactions.extent, side=side)
    user, item = np_tables(factors)
    rows, fixed = (matrix, item) if side == "user" else (matrix.T, user)
    penalty = scaled(rows != 0, 0.5)
    np.testing.assert_allclose(
        got, reference.implicit_half_step(rows, fixed, penalty, 2.0), rtol=1e-3, atol=1e-4
    )
    assert bias is None


def test_explicit_folding_in_repeats_the_last_half_step_of_the_fit(interactions):
    factors, _ = als.fit(interactions, EXPLICIT, KEY)
    got, bias = als.fold_in(
        factors, interactions, EXPLICIT, extent=interactions.extent, side="item"
    )
    np.testing.assert_allclose(got, factors.item, rtol=1e-3, atol=1e-4)
    np.testing.assert_allclose(bias, factors.item_bias, rtol=1e-3, atol=1e-4)


def test_a_few_new_users_are_folded_in_exactly(interactions):
    factors, _ = als.fit(interactions, IMPLICIT, KEY)
    new = Interactions.from_rows([0, 0, 2], [3, 4, 5], 3, I)
    got, _ = als.fold_in(factors, new, IMPLICIT, extent=interactions.extent)
    matrix = reference.dense([0, 0, 2], [3, 4, 5], 1.0, 3, I)
    want = reference.implicit_half_step(matrix, np_tables(factors)[1], np.full(3, 0.5), 2.0)
    np.testing.assert_allclose(got, want, rtol=1e-3, atol=1e-4)


@pytest.mark.parametrize("exponent", [0.0, 0.5, 1.0])
@pytest.mark.parametrize("base", [IMPLICIT, EXPLICIT], ids=["implicit", "explicit"])
def test_a_user_folded_in_alone_has_the_vector_it_has_among_all(base, exponent, interactions):
    config = dataclasses.replace(base, frequency_exponent=exponent)
    factors, _ = als.fit(interactions, config, KEY)
    user, item, value = reference.sparse_data()
    everyone, _ = als.fold_in(factors, interactions, config, extent=interactions.extent)
    for one in (7, 20):
        rows = user == one
        alone = Interactions.from_rows(np.zeros(rows.sum(), int), item[rows], 1, I, value[rows])
        got, _ = als.fold_in(factors, alone, config, extent=interactions.extent)
        np.testing.assert_allclose(got[0], everyone[one], rtol=1e-4, atol=1e-5)


def test_a_user_folded_in_into_a_converged_fit_has_the_vector_of_the_fit(interactions):
    config = dataclasses.replace(
        IMPLICIT, solver="exact", frequency_exponent=1.0, iterations=300, regularization=1.0
    )
    factors, _ = als.fit(interactions, config, KEY)
    user, item, value = reference.sparse_data()
    rows = user == 20
    alone = Interactions.from_rows(np.zeros(rows.sum(), int), item[rows], 1, I, value[rows])
    got, _ = als.fold_in(factors, alone, config, extent=interactions.extent)
    np.testing.assert_allclose(got[0], factors.user[20], rtol=1e-2, atol=1e-3)


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"solver": "lu"}, "als.solver='lu': must be one of cg, exact"),
        ({"solver": "cholesky"}, "als.solver='cholesky': is now called 'exact'"),
        ({"feedback": "clicks"}, "als.feedback='clicks': must be one of implicit, explicit"),
        ({"dtype": "float16"}, "als.dtype='float16': must be one of float32, bfloat16"),
        ({"fixed_side": "split"}, "als.fixed_side='split': must be one of gathered, sharded"),
        ({"regularization": 0.0}, "als.regularization=0.0: must be above 0"),
        ({"factors": 0}, "als.factors=0: must be above 0"),
        ({"iterations": 0}, "als.iterations=0: must be above 0"),
        ({"cg_steps": 0}, "als.cg_steps=0: must be above 0"),
        ({"alpha": float("nan")}, "als.alpha=nan: must be above 0"),
    ],
)
def test_a_config_that_cannot_work_is_rejected(change, message):
    with pytest.raises(ConfigError, match=message):
        ALSConfig(**change)


def test_folding_in_rejects_an_unknown_side(interactions):
    factors = Factors(jnp.zeros((U, D)), jnp.zeros((I, D)))
    with pytest.raises(ConfigError, match="side='users': must be one of user, item"):
        als.fold_in(factors, interactions, IMPLICIT, extent=interactions.extent, side="users")


def test_explicit_tables_have_a_column_for_the_bias():
    assert (IMPLICIT.width, EXPLICIT.width) == (D, D + 1)


def test_a_cpu_gathers_what_its_cache_holds_unless_the_size_is_set():
    assert als.chunking(ALSConfig(factors=64), "cpu").entries * 64 * 4 == 2**19
    assert als.chunking(ALSConfig(factors=10_000), "cpu").entries == 256
    assert als.chunking(ALSConfig(chunk=100), "cpu").entries == 100


@pytest.mark.parametrize(("width", "stored"), [(16, 128), (64, 128), (128, 128), (129, 256)])
def test_the_room_for_gathered_rows_counts_what_fills_up_the_lanes_of_a_tpu(width, stored):
    entries = {
        platform: als.chunking(ALSConfig(factors=width), platform).entries
        for platform in ("gpu", "tpu")
    }
    assert entries == {"gpu": 2**29 // (4 * width), "tpu": 2**29 // (4 * stored)}


@pytest.mark.parametrize("rank", [16, 64, 128])
@pytest.mark.parametrize("solver", ["cg", "exact"])
@pytest.mark.parametrize("platform", ["gpu", "tpu"])
def test_an_accelerator_has_few_loop_bodies(rank, solver, platform):
    config = ALSConfig(factors=rank, solver=solver)
    chunking, rng = als.chunking(config, platform), np.random.default_rng(0)
    bodies = 0
    for rows in (138_000, 27_000):  # 20 M entries, with the long tail of MovieLens 20M
        counts = np.maximum(1, 20e6 * rng.dirichlet(np.full(rows, 0.5))).astype(np.int64)
        layout = make_layout(counts, chunking)
        assert layout.long_rows == 0
        bodies += layout.chunks
    assert bodies <= 64


@pytest.mark.parametrize("platform", ["gpu", "tpu"])
def test_exact_solves_bound_the_matrices_of_a_chunk(platform):
    for factors in (16, 64, 128, 256):
        chunking = als.chunking(ALSConfig(factors=factors, solver="exact"), platform)
        layout = make_layout(np.full(3_000_000, 2), chunking)
        row, system = (packed.stored_width(n, platform) for n in (factors, factors + 1))
        assert layout.chunk_rows * factors * system <= 2 * chunking.entries * row
        assert layout.segments * factors * system <= 2 * chunking.entries * row


@pytest.mark.parametrize("solve", [als_solver.solve_by_cholesky, als_solver.solve_by_elimination])
@pytest.mark.parametrize("width", [1, 7, 64])
def test_exact_solves_are_those_of_numpy(solve, width):
    rng = np.random.default_rng(0)
    rows = rng.normal(size=(5, 2 * width, width))
    matrix = np.float32(np.einsum("nlk,nlm->nkm", rows, rows) + np.eye(width))
    b = np.float32(rng.normal(size=(5, width)))
    want = np.linalg.solve(np.float64(matrix), np.float64(b)[..., None])[..., 0]
    np.testing.assert_allclose(jax.jit(solve)(matrix, b), want, rtol=1e-3, atol=1e-5)


def test_a_fit_without_interactions_is_rejected():
    with pytest.raises(ConfigError, match="no interactions"):
        als.fit(Interactions.from_rows([], [], 2, 2), IMPLICIT, KEY)


def test_folding_in_rejects_another_number_of_known_rows(interactions):
    factors = Factors(jnp.zeros((U, D)), jnp.zeros((I + 1, D)))
    with pytest.raises(ConfigError, match=f"{I} known rows, the model has {I + 1}"):
        als.fold_in(factors, interactions, IMPLICIT, extent=interactions.extent)


@pytest.mark.parametrize("base", [IMPLICIT, EXPLICIT], ids=["implicit", "explicit"])
@pytest.mark.parametrize("dtype, devices", [("float32", 1), ("bfloat16", 1), ("float32", 8)])
def test_a_fit_resumed_after_any_iteration_gives_the_same_bits(
    base, dtype, devices, interactions, tmp_path
):
    config = dataclasses.replace(base, dtype=dtype, iterations=4)
    mesh = Mesh(np.array(jax.devices()[:devices]), ("data",))
    want, want_losses = als.fit(interactions, config, KEY, mesh=mesh)
    for done in (0, 1, 3):
        calls = itertools.count()
        with Checkpoints(tmp_path / str(done), stop=lambda: next(calls) >= done) as saved:  # noqa: B023
            with pytest.raises(Stopped):
                als.fit(interactions, config, KEY, mesh=mesh, saved=saved)
        assert saved.newest == done
        with Checkpoints(tmp_path / str(done)) as saved:
            got, losses = als.fit(interactions, config, KEY, mesh=mesh, saved=saved)
        np.testing.assert_array_equal(losses, want_losses)
        jax.tree.map(np.testing.assert_array_equal, got, want)


def test_a_fit_resumes_on_other_devices(interactions, tmp_path):
    want, want_losses = als.fit(interactions, IMPLICIT, KEY)
    calls = itertools.count()
    with Checkpoints(tmp_path, stop=lambda: next(calls) >= 2) as saved, pytest.raises(Stopped):
        als.fit(interactions, IMPLICIT, KEY, saved=saved)
    with Checkpoints(tmp_path) as saved:
        mesh = Mesh(np.array(jax.devices()), ("data",))
        got, losses = als.fit(interactions, IMPLICIT, KEY, mesh=mesh, saved=saved)
    np.testing.assert_allclose(losses, want_losses, rtol=1e-4)
    np.testing.assert_allclose(got.item, want.item, rtol=1e-3, atol=1e-3)
