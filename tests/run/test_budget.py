"""A compressed data set of at most so many bytes: what is chosen for it."""

import pytest

from cadc_jax import experiment
from cadc_jax.errors import ConfigError
from cadc_jax.run import budget, compressed, compressed_sizes
from tests.small_runs import quiet, ranking_config


@pytest.mark.parametrize(
    ("text", "size"),
    [("20MB", 20_000_000), ("1.5 GB", 1_500_000_000), ("3000", 3000), ("7kb", 7000), ("9B", 9)],
)
def test_a_size_has_a_unit_or_is_in_bytes(text, size):
    assert budget.parse_bytes(text) == size


@pytest.mark.parametrize("text", ["", "MB", "-1MB", "0", "20 apples", "0.1B", "nan"])
def test_what_is_no_size_is_refused(text):
    with pytest.raises(ConfigError, match="must be a size such as 20MB"):
        budget.parse_bytes(text)


@pytest.fixture(scope="module")
def shop(tmp_path_factory):
    """A run of the ranking task, and the folder for what it makes."""
    path = tmp_path_factory.mktemp("budget")
    config = ranking_config(path / "raw")
    config.als.factors, config.factor_rows = 64, "unsampled"
    return experiment.Run(config, path / "work", quiet), path


def trained_on(folder):
    """Bytes of what training reads of a compressed data set, and its configuration."""
    given = compressed.open_compressed(folder)
    parts = compressed_sizes.sizes(given.made)
    size = sum(parts[name] for name in ("kept rows", "factors", "content and vocabularies"))
    return size - (folder / "manifest.json").stat().st_size, given.config


def test_a_smaller_budget_is_kept_by_a_lower_rank_fewer_bits_or_a_lower_rate(shop):
    run, path = shop
    sizes = []
    for size in (12_000, 6_900):
        experiment.compress(run, path / str(size), size)
        found, config = trained_on(path / str(size))
        assert found <= size
        sizes.append(found)
        assert config.als.factors <= 64 and config.factor_bits <= 8 and config.rate <= 0.25
    assert sizes[1] < sizes[0]
    assert (config.als.factors, config.factor_bits, config.rate) != (64, 8, 0.25)


def test_the_choice_is_the_best_on_the_validation_split_of_those_that_fit(shop):
    run, path = shop
    lines = []
    loud = experiment.Run(run.config, run.workdir, lines.append)
    experiment.compress(loud, path / "best", 20_000)
    tried = [line for line in lines if "[ compress] rank" in line and "too large" not in line]
    (chosen,) = (line for line in lines if "chosen" in line)
    best = max(float(line.split()[-1]) for line in tried)
    assert len(tried) > 2 and float(chosen.split()[-1]) == best


def test_if_nothing_fits_it_says_what_is_needed(shop):
    run, path = shop
    with pytest.raises(ConfigError, match="nothing fits 1,000 bytes: content .* needed"):
        experiment.compress(run, path / "none", 1000)
    assert not (path / "none").exists()
