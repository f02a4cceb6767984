"""Raw ids: known ones, unknown ones and what cannot be an id, found without JAX."""

import subprocess
import sys

import numpy as np
import pytest

from cadc_jax.data.vocabulary import Vocabulary, cross
from cadc_jax.errors import ConfigError
from cadc_jax.serving import raw_ids
from cadc_jax.serving.raw_ids import RawIds, UnknownIdError
from tests.program import ROOT

WORDS = RawIds("item", Vocabulary(np.array(["jam", "tea", "toast"])), (), False)


def test_a_raw_id_has_the_id_of_its_place():
    assert [WORDS.id_of(raw) for raw in ("jam", "toast", "ham")] == [1, 3, 0]
    assert WORDS.known_ids_of(["tea", "jam"], 5).tolist() == [2, 1]


def test_an_unknown_id_is_named_with_a_similar_one():
    with pytest.raises(UnknownIdError, match="item 'toas': not among the 3 items.*mean 'toast'"):
        WORDS.known_id_of("toas")


@pytest.mark.parametrize(
    ("raws", "message"),
    [
        ([], "items: give 1 to 2 of them, not 0"),
        (["jam", "tea", "toast"], "give 1 to 2 of them, not 3"),
        (["jam", "jam"], "item 'jam': is there twice"),
        (["jam", "x"], "item 'x': not among"),
    ],
)
def test_lists_that_cannot_be_used_are_refused(raws, message):
    with pytest.raises(ConfigError, match=message):
        WORDS.known_ids_of(raws, 2)


def test_crossed_ids_have_a_value_for_each_column():
    columns = [np.array(["a", "b"]), np.array(["1", "2"])]
    crossed = RawIds("item", Vocabulary(np.sort(cross(columns))), ("x", "y"), False)
    assert crossed.split("a,1,b,2") == ["a,1", "b,2"]
    assert sorted(crossed.id_of(raw) for raw in ("a,1", "b,2")) == [1, 2]
    with pytest.raises(ConfigError, match="item 'a': a item is a value of each of x,y"):
        crossed.id_of("a")


def test_a_folder_is_asked_before_anything_is_loaded(ranking_run, click_run):
    raw_ids.check_known(ranking_run, "user", "ann07")
    raw_ids.check_known(ranking_run, "item", "7,12")
    with pytest.raises(UnknownIdError, match="user 'ann7': .*, did you mean 'ann"):
        raw_ids.check_known(ranking_run, "user", "ann7")
    small = click_run.parent / "compressed"
    (ids,) = raw_ids.in_folder(small, "user")
    raw_ids.check_known(small, "user", str(ids.of(np.array([1]))[0]))
    with pytest.raises(UnknownIdError, match="user '0': not among"):
        raw_ids.check_known(small, "user", "0")
    with pytest.raises(ConfigError, match="hexadecimal"):
        raw_ids.check_known(small, "user", "xyz")


def test_it_takes_no_jax():
    code = "import sys, cadc_jax.serving.raw_ids; sys.exit('jax' in sys.modules)"
    assert subprocess.run([sys.executable, "-c", code], cwd=ROOT).returncode == 0
