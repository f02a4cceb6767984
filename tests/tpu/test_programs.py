"""What programs for one TPU chip show: no table is moved, one sort, full float32 in scores."""

import pytest

pytestmark = pytest.mark.slow


def test_a_step_on_narrow_tables_copies_none_of_them_and_sorts_ids_once(compiled):
    found = compiled("training-adagrad", "v5e", 1, 64)
    assert not found["moved_tables"]
    assert found["temporaries"] < found["tables"] / 4
    assert found["received"] == found["expected"] == 0
    assert found["sorts"].count(24 * 8192) == 1  # the ids of all features of the batch


@pytest.mark.parametrize(
    ("solver", "chip", "chips", "width"),
    [("cg", "v5e", 1, 64), ("exact", "v5e", 1, 64), ("cg", "v5p", 4, 128)],
)
def test_a_half_step_of_als_receives_what_the_cost_model_says(compiled, solver, chip, chips, width):
    found = compiled(f"als-{solver}", chip, chips, width)
    assert not found["moved_tables"]
    assert found["bfloat16"] == 0
    assert found["received"] == pytest.approx(found["expected"], rel=0.05)


@pytest.mark.parametrize(("program", "width"), [("training-frozen", 64), ("training-adagrad", 16)])
def test_a_step_on_a_slice_receives_what_the_cost_model_says(compiled, program, width):
    found = compiled(program, "v5p", 4, width)
    assert not found["moved_tables"]
    assert found["temporaries"] < found["tables"] / 4
    assert found["received"] == pytest.approx(found["expected"], rel=0.05)


@pytest.mark.parametrize("program", ["scoring", "grid"])
def test_scores_are_computed_in_float32_without_moving_a_table(compiled, program):
    found = compiled(program, "v5e", 1, 64)
    assert not found["moved_tables"]
    assert found["bfloat16"] == 0
