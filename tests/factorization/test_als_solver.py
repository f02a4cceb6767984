"""A half-step of ALS against dense float64 references, and the programs that it compiles to."""

import dataclasses

import jax
import numpy as np
import pytest
import scipy.sparse
from jax.sharding import Mesh

from cadc_jax.factorization import als
from cadc_jax.factorization.als import ALSConfig
from cadc_jax.factorization.als_solver import HalfStepConfig, half_step
from cadc_jax.factorization.interactions import Interactions
from tests.factorization import reference
from tests.factorization.reference import I, U

D = 6
IMPLICIT = ALSConfig(
    factors=D, regularization=0.5 / reference.noise_unit(2.0), alpha=2.0, chunk=64
)  # a penalty of 0.5 for every row
EXACT = dataclasses.replace(IMPLICIT, solver="exact")
EXPLICIT = dataclasses.replace(
    EXACT, feedback="explicit", regularization=0.1, frequency_exponent=1.0
)


def random_tables(width=D):
    rng = np.random.default_rng(1)
    return tuple(rng.normal(size=(size, width)).astype(np.float32) for size in (U, I))


def solve_users(interactions, config, items, start=None, mean=0.0, mesh=None):
    """Users [U, K] solved from `start` with the items [I, K] fixed, and the objective there."""
    solved, fixed = als.prepare(interactions, config, mesh)
    table = solved.empty_table() if start is None else solved.table(start)
    static = HalfStepConfig(
        *(config.feedback, config.solver, config.cg_steps, solved.layout.chunk_rows)
    )
    table, loss = half_step(
        table,
        solved.data,
        fixed.table(items),
        fixed.data.regularization,
        np.float32(config.alpha),
        np.float32(mean),
        static,
        solved.mesh,
    )
    return np.asarray(solved.rows(table)), float(loss)


def test_an_exact_half_step_solves_the_normal_equations(interactions, matrix):
    _, item = random_tables()
    got, _ = solve_users(interactions, EXACT, item)
    want = reference.implicit_half_step(matrix, item, np.full(U, 0.5), alpha=2.0)
    np.testing.assert_allclose(got, want, rtol=1e-4, atol=1e-4)


@pytest.mark.parametrize("steps", [1, 3])
def test_a_cg_half_step_equals_textbook_conjugate_gradients(steps, interactions, matrix):
    user, item = random_tables()
    config = dataclasses.replace(IMPLICIT, cg_steps=steps)
    got, _ = solve_users(interactions, config, item, user)
    want = reference.implicit_cg_half_step(matrix, item, user, np.full(U, 0.5), 2.0, steps)
    np.testing.assert_allclose(got, want, rtol=1e-3, atol=1e-3)


def test_enough_steps_of_conjugate_gradients_are_exact(interactions, matrix):
    _, item = random_tables()
    got, _ = solve_users(interactions, dataclasses.replace(IMPLICIT, cg_steps=15), item)
    want = reference.implicit_half_step(matrix, item, np.full(U, 0.5), alpha=2.0)
    np.testing.assert_allclose(got, want, rtol=1e-3, atol=1e-3)


@pytest.mark.filterwarnings("ignore:OpenBLAS")
def test_a_cg_half_step_equals_that_of_the_package_implicit(interactions, matrix):
    peer = pytest.importorskip("implicit.cpu.als")
    user, item = random_tables()
    model = peer.AlternatingLeastSquares(factors=D, regularization=0.5, num_threads=1)
    want = user.copy()
    # implicit's confidence is alpha * value, ours 1 + alpha * value
    confidence = scipy.sparse.csr_matrix(np.where(matrix > 0, 1 + 2.0 * matrix, 0), dtype="f4")
    model.solver(confidence, want, item, 0.5, num_threads=1)
    got, _ = solve_users(interactions, IMPLICIT, item, user)
    seen = matrix.any(1)  # implicit skips rows without entries, or sets them to 0
    np.testing.assert_allclose(got[seen], want[seen], rtol=2e-3, atol=2e-3)


def test_an_explicit_half_step_solves_factors_and_biases_together(interactions, matrix):
    _, item = random_tables(D + 1)
    penalty = 0.1 * (matrix != 0).sum(1)
    got, _ = solve_users(interactions, EXPLICIT, item, mean=2.5)
    factors, bias = reference.explicit_half_step(matrix, item[:, :D], item[:, D], 2.5, penalty)
    np.testing.assert_allclose(got[:, :D], factors, rtol=1e-3, atol=1e-3)
    np.testing.assert_allclose(got[:, D], bias, rtol=1e-3, atol=1e-3)


@pytest.mark.parametrize("config", [IMPLICIT, EXACT], ids=["cg", "exact"])
def test_the_objective_is_that_of_the_solved_rows_and_the_fixed_ones(config, interactions, matrix):
    user, item = random_tables()
    solved, loss = solve_users(interactions, config, item, user)
    penalties = np.full(U, 0.5), np.full(I, 0.5)
    want = reference.implicit_objective(matrix, np.float64(solved), item, *penalties, alpha=2.0)
    assert loss == pytest.approx(want, rel=1e-4)


@pytest.mark.parametrize("fixed_side", ["gathered", "sharded"])
@pytest.mark.parametrize("config", [IMPLICIT, EXACT], ids=["cg", "exact"])
def test_eight_devices_solve_the_rows_of_one(config, fixed_side, interactions):
    user, item = random_tables()
    want, want_loss = solve_users(interactions, config, item, user)
    mesh = Mesh(np.array(jax.devices()).reshape(-1, 2), ("data", "model"))
    config = dataclasses.replace(config, fixed_side=fixed_side)
    got, loss = solve_users(interactions, config, item, user, mesh=mesh)
    np.testing.assert_allclose(got, want, rtol=1e-3, atol=1e-4)
    assert loss == pytest.approx(want_loss, rel=1e-4)


@pytest.fixture(scope="module")
def wide():
    rng = np.random.default_rng(0)
    return Interactions.from_rows(rng.integers(0, 900, 8000), rng.integers(0, 700, 8000), 900, 700)


def compile_half_step(interactions, fixed_side, devices):
    """The program that solves the users, and the rows of the items' table."""
    config = dataclasses.replace(IMPLICIT, factors=16, chunk=256, fixed_side=fixed_side)
    mesh = Mesh(np.array(jax.devices()[:devices]), ("data",))
    users, items = als.prepare(interactions, config, mesh)
    lowered = als.lower_half_step(users, users.empty_table(), items, items.empty_table())
    return lowered.compile(), items.layout.table_rows


def test_only_the_gathered_form_holds_the_whole_fixed_table_on_a_device(wide):
    sharded, rows = compile_half_step(wide, "sharded", 8)
    gathered, _ = compile_half_step(wide, "gathered", 8)
    assert f"f32[{rows},16]" in gathered.as_text()
    assert f"f32[{rows},16]" not in sharded.as_text()


def test_the_memory_of_a_device_falls_with_the_number_of_devices(wide):
    def size(devices):
        memory = compile_half_step(wide, "sharded", devices)[0].memory_analysis()
        return memory.argument_size_in_bytes + memory.output_size_in_bytes

    assert size(8) < 0.6 * size(4) < 0.36 * size(2)
