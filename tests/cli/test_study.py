"""The flags of 'cadc study'."""

import pathlib
import sys

import pytest
from absl.testing import flagsaver

from cadc_jax import main
from cadc_jax.cli import parse
from cadc_jax.errors import ConfigError
from cadc_jax.study import command
from cadc_jax.study.cells import RIVALS
from tests.program import CRITEO, ROOT

# ml_collections loads the file of a configuration in an old way.
pytestmark = pytest.mark.filterwarnings("ignore:the load_module:DeprecationWarning")


@pytest.fixture
def given(monkeypatch):
    """Runs the command line of a study, and returns what it would do."""
    for name in ("OMP_NUM_THREADS", "OPENBLAS_NUM_THREADS", "XLA_PYTHON_CLIENT_PREALLOCATE"):
        monkeypatch.setenv(name, "1")  # the command sets those that are not set
    calls = []
    monkeypatch.setattr(command, "run", lambda *arguments: calls.append(arguments))

    def run(*words):
        argv = ["cadc", "study", *words]
        monkeypatch.setattr(sys, "argv", argv)  # where the fields of a configuration are read from
        with flagsaver.flagsaver():
            main.main(parse.parse(argv, "", main.COMMANDS))
        return calls.pop()

    return run


def test_a_study_has_the_arms_and_models_of_its_configuration_and_all_rivals(given):
    configs, options, out, *_ = given(f"--config={CRITEO}")
    assert list(configs) == ["criteo"] and out == pathlib.Path("workdir/study/criteo")
    assert (options.arms, options.models, list(options.rivals)) == ([], [], list(RIVALS))
    assert (options.rates, options.seeds, options.quick) == ((1.0, 0.1, 0.01), 5, False)


def test_a_quick_study_is_small_unless_flags_say_otherwise(given):
    _, options, out, *_ = given(f"--config={CRITEO}", "--quick")
    assert (options.rates, options.seeds, options.quick) == ((0.1,), 1, True)
    assert out == pathlib.Path("workdir/study/criteo-quick")
    _, options, *_ = given(f"--config={CRITEO}", "--quick", "--rates=1,0.5", "--rivals=none")
    assert (options.rates, options.rivals) == ([1.0, 0.5], [])


def test_further_configurations_have_the_fields_of_the_command_line(given):
    other = ROOT / "configs/movielens_1m.py"
    words = (f"--config={CRITEO}", f"--with={other},configs/epinions.py")
    configs, *_ = given(*words, "--config.train.patience=9")
    assert list(configs) == ["criteo", "movielens_1m", "epinions"]
    assert [config.train.patience for config in configs.values()] == [9, 9, 9]
    (sweeps,) = {tuple(given(*words, "--sweep=a=1,2", "--sweep=b=3")[1].sweeps)}
    assert sweeps == ("a=1,2", "b=3")


@pytest.mark.parametrize(
    ("words", "why"),
    [
        (["--arms=frosty"], "--arms: 'frosty' is not one of full, sample, cadc_frozen"),
        (["--models=dlrm,none"], "--models: 'none' is not one of dlrm, dcn, two_tower"),
        (["--rivals=best"], "--rivals: 'best' is not one of popularity, mf_alone, mf_refreshed"),
        (["--selections=none"], "--selections: 'none' is not one of per_user"),
        (["--rates=0.5,2"], "--rates=2: must be above 0 and at most 1"),
        (["--rates=all"], "--rates=all: must be above 0"),
        (["--selection_rates=0"], "--selection_rates=0: must be above 0"),
        (["--with=configs/epinion.py"], "no such file, did you mean 'configs/epinions.py'?"),
        ([f"--with={CRITEO}"], "two configurations have the same config.name"),
        (["--workdir=x"], "--workdir: 'cadc study' has no such option"),
    ],
)
def test_a_wrong_option_is_named(given, words, why):
    with pytest.raises(ConfigError) as error:
        given(f"--config={CRITEO}", *words)
    assert why in str(error.value)


@pytest.mark.parametrize(
    ("words", "why"),
    [
        (["study", "--seeds=0"], "flag --seeds=0"),
        (["study", "--jobs=0"], "flag --jobs=0"),
        (["run", "--config.rate=(0.1,0.01)"], "for several rates: cadc study --config=FILE"),
    ],
)
def test_a_flag_that_cannot_be_read_is_one_line(words, why, capsys, monkeypatch):
    monkeypatch.setattr(sys, "argv", words)
    with flagsaver.flagsaver(), pytest.raises(SystemExit):
        parse.parse(["cadc", words[0], f"--config={CRITEO}", *words[1:]], "", main.COMMANDS)
    (line,) = capsys.readouterr().err.splitlines()
    assert why in line


def test_several_rates_for_a_run_are_an_error_that_names_the_study():
    with flagsaver.flagsaver(), pytest.raises(ConfigError, match="study takes it"):
        words = ["cadc", "run", f"--config={CRITEO}", "--rates=0.1,0.01"]
        main.main(parse.parse(words, "", main.COMMANDS))
