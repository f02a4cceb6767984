"""What programs for one TPU chip show: no table is moved, one sort, full float32 in scores."""

import pytest

pytestmark = pytest.mark.slow


def test_a_step_on_narrow_tables_copies_none_of_them_and_sorts_ids_once(compiled):
    found = compiled("training-adagrad", "v5e", 1, 64)
    assert not found["moved_tables"]
    assert found["temporaries"] < found["tables"] / 4
    assert found["received"] == found["expected"] == 0
    assert found["sorts"].count(24 * 8192) == 1  # the ids of all features of the batch


@pytest.mark.parametrize("program", ["scoring", "grid"])
def test_scores_are_computed_in_float32_without_moving_a_table(compiled, program):
    found = compiled(program, "v5e", 1, 64)
    assert not found["moved_tables"]
    assert found["bfloat16"] == 0
