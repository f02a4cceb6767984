import numpy as np
import pytest

from cadc_jax.tuning import space
from cadc_jax.tuning.space import Axis

FACTOR = Axis("regularization", (1.0, 0.5), 2.0, 0.1, 8.0, (0.25, 4.0))
DIFFERENCE = Axis("exponent", (0.0, 0.5), 0.5, 0.0, 1.0, (0.0, 1.0), linear=True)
AXES = (FACTOR, DIFFERENCE)


def test_a_grid_begins_with_the_first_value_of_each_axis():
    assert space.grid(AXES) == [(1.0, 0.0), (1.0, 0.5), (0.5, 0.0), (0.5, 0.5)]


def test_drawn_trials_depend_on_the_seed_and_stay_within_their_bounds():
    found = space.drawn(AXES, 200, seed=3)
    assert found[:20] == space.drawn(AXES, 20, seed=3) != space.drawn(AXES, 20, seed=4)
    values = np.array(found)
    assert 0.25 <= values[:, 0].min() and values[:, 0].max() <= 4
    assert 0 <= values[:, 1].min() and values[:, 1].max() <= 1
    assert np.median(values[:, 0]) == pytest.approx(1, rel=0.3)  # evenly in logarithms
    assert np.median(values[:, 1]) == pytest.approx(0.5, rel=0.3)


def test_neighbours_differ_by_a_step_and_stay_within_the_bounds():
    assert space.beside(AXES, (1.0, 0.5), []) == [(2.0, 0.5), (0.5, 0.5), (1.0, 1.0), (1.0, 0.0)]
    assert space.beside(AXES, (8.0, 0.0), [(8.0, 0.0)]) == [(4.0, 0.0), (8.0, 0.5)]


def test_once_all_neighbours_are_known_there_are_nearer_ones():
    known = [(1.0, 0.5), *space.beside(AXES, (1.0, 0.5), [])]
    near = space.beside(AXES, (1.0, 0.5), known)
    assert near == [(1.414, 0.5), (0.7071, 0.5), (1.0, 0.75), (1.0, 0.25)]
    assert space.beside(AXES, (1.0, 0.5), [*known, *near]) == []


def test_what_is_as_good_as_known_is_not_tried_again():
    known = [(1.0, 0.5), (1.99, 0.5), (0.5, 0.5), (1.0, 1.0), (1.0, 0.0)]
    assert (2.0, 0.5) not in space.beside(AXES, (1.0, 0.5), known)


def test_a_choice_has_no_values_beside_its_own():
    axes = (space.choice("factors", (32, 64)), FACTOR)
    assert {trial[0] for trial in space.drawn(axes, 50, seed=0)} == {32, 64}
    assert {trial[0] for trial in space.beside(axes, (32, 1.0), [(32, 1.0)])} == {32}
