"""Alternating least squares against dense float64 references."""

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
from cadc_jax.factorization import als
from cadc_jax.factorization.als import ALSConfig
from cadc_jax.factorization.als_solver import half_step
from cadc_jax.factorization.factors import Factors
from cadc_jax.factorization.interactions import Interactions
from cadc_jax.runtime.checkpoints import Checkpoints
from cadc_jax.runtime.interrupts import Stopped
from tests.factorization import reference

U, I, D = 40, 30, 6  # noqa: E741 (the letters of the package)
KEY = jax.random.key(0)
IMPLICIT = ALSConfig(factors=D, regularization=0.5, alpha=2.0, iterations=3, chunk=64)
EXPLICIT = dataclasses.replace(
    IMPLICIT, feedback="explicit", solver="exact", regularization=0.1, frequency_exponent=1.0
)


@pytest.fixture(scope="module")
def matrix():
    return reference.dense(*reference.sparse_data(U, I), U, I)


@pytest.fixture(scope="module")
def interactions():
    user, item, value = reference.sparse_data(U, I)
    return Interactions.from_rows(user, item, U, I, value)


def solve_users(interactions, config, fixed, start=None, mean=0.0, mesh=None):
    """Users solved from `start` [U, K] with the items `fixed` [I, K]; in the order of their ids."""
    users, items = als._prepare(interactions, config, als._one_device() if mesh is None else mesh)
    start = np.zeros((U, fixed.shape[1])) if start is None else start
    table = als._table(users, jnp.asarray(start, jnp.float32), config)
    fixed = als._table(items, jnp.asarray(fixed, jnp.float32), config)
    solved, loss = als._solve(users, table, items, fixed, config, mean)
    return np.asarray(solved[users.layout.position]), float(loss)


def random_tables(width=D, seed=1):
    rng = np.random.default_rng(seed)
    return rng.normal(size=(U, width)), rng.normal(size=(I, width))


def test_exact_half_step_solves_the_normal_equations(interactions, matrix):
    _, item = random_tables()
    config = dataclasses.replace(IMPLICIT, solver="exact")
    got, _ = solve_users(interactions, config, item)
    want = reference.implicit_half_step(matrix, item, np.full(U, 0.5), alpha=2.0)
    np.testing.assert_allclose(got, want, rtol=1e-4, atol=1e-4)


@pytest.mark.parametrize("steps", [1, 3])
def test_cg_half_step_equals_textbook_conjugate_gradients(steps, interactions, matrix):
    user, item = random_tables()
    config = dataclasses.replace(IMPLICIT, cg_steps=steps)
    got, _ = solve_users(interactions, config, item, user)
    want = reference.implicit_cg_half_step(matrix, item, user, np.full(U, 0.5), 2.0, steps)
    np.testing.assert_allclose(got, want, rtol=1e-3, atol=1e-3)


def test_cg_with_enough_steps_is_exact(interactions, matrix):
    _, item = random_tables()
    got, _ = solve_users(interactions, dataclasses.replace(IMPLICIT, cg_steps=15), item)
    want = reference.implicit_half_step(matrix, item, np.full(U, 0.5), alpha=2.0)
    np.testing.assert_allclose(got, want, rtol=1e-3, atol=1e-3)


@pytest.mark.filterwarnings("ignore:OpenBLAS")
def test_cg_half_step_equals_implicit_from_the_same_start(interactions, matrix):
    peer = pytest.importorskip("implicit.cpu.als")
    import scipy.sparse

    user, item = (table.astype(np.float32) for table in random_tables())
    model = peer.AlternatingLeastSquares(factors=D, regularization=0.5, num_threads=1)
    want = user.copy()
    # implicit's confidence is alpha * value, ours 1 + alpha * value
    confidence = scipy.sparse.csr_matrix(np.where(matrix > 0, 1 + 2.0 * matrix, 0), dtype="f4")
    model.solver(confidence, want, item, 0.5, num_threads=1)
    got, _ = solve_users(interactions, IMPLICIT, item, user)
    seen = matrix.any(1)  # implicit leaves out rows that have no entry, or zeroes them
    np.testing.assert_allclose(got[seen], want[seen], rtol=2e-3, atol=2e-3)


def test_explicit_half_step_solves_factors_and_biases_together(interactions, matrix):
    _, item = random_tables(D + 1)
    counts = (matrix != 0).sum(1)
    got, _ = solve_users(interactions, EXPLICIT, item, mean=2.5)
    factors, bias = reference.explicit_half_step(matrix, item[:, :D], item[:, D], 2.5, 0.1 * counts)
    np.testing.assert_allclose(got[:, :D], factors, rtol=1e-3, atol=1e-3)
    np.testing.assert_allclose(got[:, D], bias, rtol=1e-3, atol=1e-3)


def test_a_negative_value_is_a_confident_dislike():
    x = Interactions.from_rows([0, 0, 1], [0, 1, 1], 2, 2, [2.0, -3.0, 1.0])
    matrix = np.array([[2.0, -3.0], [0.0, 1.0]])
    config = dataclasses.replace(IMPLICIT, factors=2, solver="exact", iterations=2)
    factors, losses = als.fit(x, config, KEY)
    half = np.full(2, 0.5)
    want = reference.implicit_objective(matrix, *np_tables(factors), half, half, 2.0)
    np.testing.assert_allclose(losses[-1], want, rtol=1e-4)
    np.testing.assert_allclose(
        factors.item, reference.implicit_half_step(matrix.T, np_tables(factors)[0], half, 2.0), 1e-4
    )


def np_tables(factors):
    return np.asarray(factors.user, np.float64), np.asarray(factors.item, np.float64)


@pytest.mark.parametrize("solver", ["cg", "exact"])
@pytest.mark.parametrize("exponent", [0.0, 0.7])
def test_reported_objective_is_that_of_the_factors(solver, exponent, interactions, matrix):
    config = dataclasses.replace(IMPLICIT, solver=solver, frequency_exponent=exponent)
    factors, losses = als.fit(interactions, config, KEY)
    seen = matrix != 0
    user_lambda = 0.5 * (seen.sum(1) + I / 2.0) ** exponent
    item_lambda = 0.5 * (seen.sum(0) + U / 2.0) ** exponent
    want = reference.implicit_objective(matrix, *np_tables(factors), user_lambda, item_lambda, 2.0)
    np.testing.assert_allclose(losses[-1], want, rtol=1e-4)


@pytest.mark.parametrize("solver", ["cg", "exact"])
def test_reported_explicit_objective_is_that_of_the_factors(solver, interactions, matrix):
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


@settings(deadline=None, max_examples=4)
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


def test_empty_rows_stay_zero_and_never_nan(interactions, matrix):
    for base in (IMPLICIT, EXPLICIT):
        for solver in ("cg", "exact"):
            factors, _ = als.fit(interactions, dataclasses.replace(base, solver=solver), KEY)
            assert not np.asarray(factors.user)[~matrix.any(1)].any()
            assert not np.asarray(factors.item)[~matrix.any(0)].any()


def test_chunk_size_changes_nothing(interactions):
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
def test_many_devices_equal_one(base, devices, fixed_side, interactions):
    want, want_losses = als.fit(interactions, base, KEY)
    mesh = Mesh(np.array(jax.devices()[:devices]).reshape(-1, 2), ("data", "model"))
    config = dataclasses.replace(base, fixed_side=fixed_side)
    got, losses = als.fit(interactions, config, KEY, mesh=mesh)
    np.testing.assert_allclose(losses, want_losses, rtol=1e-4)
    np.testing.assert_allclose(got.user, want.user, rtol=1e-3, atol=1e-3)
    np.testing.assert_allclose(got.item, want.item, rtol=1e-3, atol=1e-3)


def compiled(interactions, config, devices):
    """The program of the user half-step."""
    mesh = Mesh(np.array(jax.devices()[:devices]), ("data",))
    users, items = als._prepare(interactions, config, mesh)
    zeros = np.zeros((interactions.num_users, config.factors), np.float32)
    other = np.zeros((interactions.num_items, config.factors), np.float32)
    user = als._table(users, jnp.asarray(zeros), config)
    item = als._table(items, jnp.asarray(other), config)
    arguments = als._arguments(users, user, items, item, config, 0.0)
    return half_step.lower(*arguments).compile(), items.layout


@pytest.fixture(scope="module")
def wide():
    rng = np.random.default_rng(0)
    return Interactions.from_rows(rng.integers(0, 900, 8000), rng.integers(0, 700, 8000), 900, 700)


def test_the_sharded_form_gathers_no_table(wide):
    config = dataclasses.replace(IMPLICIT, factors=16, chunk=256, fixed_side="sharded")
    program, layout = compiled(wide, config, 8)
    whole = f"f32[{layout.table_rows},16]"
    assert whole not in program.as_text()
    gathered, _ = compiled(wide, dataclasses.replace(config, fixed_side="gathered"), 8)
    assert whole in gathered.as_text()


def test_memory_of_a_device_falls_with_their_number(wide):
    config = dataclasses.replace(IMPLICIT, factors=16, chunk=256, fixed_side="sharded")

    def size(devices):
        memory = compiled(wide, config, devices)[0].memory_analysis()
        return memory.argument_size_in_bytes + memory.output_size_in_bytes

    assert size(8) < 0.6 * size(4) < 0.36 * size(2)


def test_two_programs_serve_all_iterations_and_a_second_fit(interactions):
    config = dataclasses.replace(IMPLICIT, chunk=48)  # shapes no other test has
    half_step.clear_cache()
    als.fit(interactions, config, KEY)
    assert half_step._cache_size() == 2
    other = dataclasses.replace(config, regularization=1.0, alpha=5.0, iterations=5)
    als.fit(interactions, other, jax.random.key(1))
    assert half_step._cache_size() == 2


def test_the_same_key_gives_the_same_factors_and_another_key_others(interactions):
    first, _ = als.fit(interactions, IMPLICIT, KEY)
    again, _ = als.fit(interactions, IMPLICIT, KEY)
    other, _ = als.fit(interactions, IMPLICIT, jax.random.key(1))
    np.testing.assert_array_equal(first.user, again.user)
    assert not np.allclose(first.user, other.user)


def test_bfloat16_tables_stay_near_float32(interactions):
    want, want_losses = als.fit(interactions, IMPLICIT, KEY)
    got, losses = als.fit(interactions, dataclasses.replace(IMPLICIT, dtype="bfloat16"), KEY)
    assert got.user.dtype == got.item.dtype == jnp.bfloat16
    np.testing.assert_allclose(losses, want_losses, rtol=0.02)


def test_fit_stops_when_the_objective_no_longer_improves(interactions):
    config = dataclasses.replace(IMPLICIT, iterations=50, tolerance=0.01)
    _, losses = als.fit(interactions, config, KEY)
    assert 1 < len(losses) < 50
    assert losses[-2] - losses[-1] < 0.01 * losses[-2]
    assert np.all(losses[:-2] - losses[1:-1] >= 0.01 * losses[:-2])


def test_progress_is_called_once_an_iteration(interactions):
    calls = []
    _, losses = als.fit(interactions, IMPLICIT, KEY, progress=lambda *call: calls.append(call))
    assert [call[0] for call in calls] == [1, 2, 3]
    assert [call[1] for call in calls] == list(losses)
    assert np.all(np.diff([call[2] for call in calls]) > 0)


@pytest.mark.parametrize("base", [IMPLICIT, EXPLICIT], ids=["implicit", "explicit"])
def test_a_fit_that_goes_on_from_factors_is_one_that_never_stopped(base, interactions):
    want, want_losses = als.fit(interactions, dataclasses.replace(base, iterations=5), KEY)
    first, _ = als.fit(interactions, dataclasses.replace(base, iterations=2), KEY)
    other_key = jax.random.key(1)  # nothing is drawn
    got, losses = als.fit(interactions, base, other_key, init=first)
    np.testing.assert_allclose(losses, want_losses[2:], rtol=1e-5)
    np.testing.assert_allclose(got.user, want.user, rtol=1e-3, atol=1e-4)
    np.testing.assert_allclose(got.item, want.item, rtol=1e-3, atol=1e-4)


def test_a_fit_that_goes_on_with_more_rows_reaches_their_optimum_in_the_same_basis(interactions):
    user, item, value = reference.sparse_data(U, I)
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


def test_factors_of_other_sizes_are_no_start(interactions):
    other = Factors(jnp.zeros((U, D)), jnp.zeros((I + 1, D)))
    with pytest.raises(ConfigError, match=rf"init has factors of shapes .*\({I + 1}, {D}\)"):
        als.fit(interactions, IMPLICIT, KEY, init=other)


def test_explicit_feedback_refuses_factors_without_biases(interactions):
    factors = Factors(jnp.zeros((U, D)), jnp.zeros((I, D)))
    for call in (
        lambda: als.fit(interactions, EXPLICIT, KEY, init=factors),
        lambda: als.fold_in(factors, interactions, EXPLICIT),
    ):
        with pytest.raises(ConfigError, match="feedback='explicit' needs factors with biases"):
            call()


@pytest.mark.parametrize("side", ["user", "item"])
def test_fold_in_of_the_training_rows_is_the_exact_half_step(side, interactions, matrix):
    factors, _ = als.fit(interactions, dataclasses.replace(IMPLICIT, frequency_exponent=0.5), KEY)
    config = dataclasses.replace(IMPLICIT, frequency_exponent=0.5)
    got, bias = als.fold_in(factors, interactions, config, side=side)
    user, item = np_tables(factors)
    rows, fixed = (matrix, item) if side == "user" else (matrix.T, user)
    penalty = 0.5 * ((rows != 0).sum(1) + rows.shape[1] / 2.0) ** 0.5
    np.testing.assert_allclose(
        got, reference.implicit_half_step(rows, fixed, penalty, 2.0), rtol=1e-3, atol=1e-4
    )
    assert bias is None


def test_explicit_fold_in_repeats_the_last_half_step_of_the_fit(interactions):
    factors, _ = als.fit(interactions, EXPLICIT, KEY)
    got, bias = als.fold_in(factors, interactions, EXPLICIT, side="item")
    np.testing.assert_allclose(got, factors.item, rtol=1e-3, atol=1e-4)
    np.testing.assert_allclose(bias, factors.item_bias, rtol=1e-3, atol=1e-4)


def test_fold_in_of_a_few_new_users(interactions):
    factors, _ = als.fit(interactions, IMPLICIT, KEY)
    new = Interactions.from_rows([0, 0, 2], [3, 4, 5], 3, I)
    got, _ = als.fold_in(factors, new, IMPLICIT)
    matrix = reference.dense([0, 0, 2], [3, 4, 5], 1.0, 3, I)
    want = reference.implicit_half_step(matrix, np_tables(factors)[1], np.full(3, 0.5), 2.0)
    np.testing.assert_allclose(got, want, rtol=1e-3, atol=1e-4)


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"solver": "lu"}, "als.solver='lu': choose one of cg, exact"),
        ({"feedback": "clicks"}, "feedback='clicks'"),
        ({"dtype": "float16"}, "dtype='float16'"),
        ({"regularization": 0.0}, "als.regularization=0.0: must be above 0"),
        ({"factors": 0}, "als.factors=0: must be above 0"),
    ],
)
def test_a_config_that_cannot_work_is_refused(change, message):
    with pytest.raises(ConfigError, match=message):
        ALSConfig(**change)


def test_nothing_to_factorise_is_refused():
    with pytest.raises(ConfigError, match="no interactions"):
        als.fit(Interactions.from_rows([], [], 2, 2), IMPLICIT, KEY)


def test_fold_in_refuses_another_number_of_known_rows(interactions):
    factors = Factors(jnp.zeros((U, D)), jnp.zeros((I + 1, D)))
    with pytest.raises(ConfigError, match=f"{I} known rows, the model has {I + 1}"):
        als.fold_in(factors, interactions, IMPLICIT)


@pytest.mark.parametrize("base", [IMPLICIT, EXPLICIT], ids=["implicit", "explicit"])
@pytest.mark.parametrize("dtype, devices", [("float32", 1), ("bfloat16", 1), ("float32", 8)])
def test_a_fit_resumed_after_any_iteration_is_bit_for_bit_an_undisturbed_one(
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


def test_a_fit_goes_on_on_other_devices(interactions, tmp_path):
    want, want_losses = als.fit(interactions, IMPLICIT, KEY)
    calls = itertools.count()
    with Checkpoints(tmp_path, stop=lambda: next(calls) >= 2) as saved, pytest.raises(Stopped):
        als.fit(interactions, IMPLICIT, KEY, saved=saved)
    with Checkpoints(tmp_path) as saved:
        mesh = Mesh(np.array(jax.devices()), ("data",))
        got, losses = als.fit(interactions, IMPLICIT, KEY, mesh=mesh, saved=saved)
    np.testing.assert_allclose(losses, want_losses, rtol=1e-4)
    np.testing.assert_allclose(got.item, want.item, rtol=1e-3, atol=1e-3)
