"""`cadc plan`: the sizes that it uses, and those that it asks for."""

import pytest

from cadc_jax import configuration
from cadc_jax.errors import ArtifactError, ConfigError
from cadc_jax.run import bundled_configs, planning, stages
from cadc_jax.run.context import Run


def plan(tmp_path, name="criteo_terabyte", hardware="v5e", **given):
    """The plan of a bundled configuration on 4 devices."""
    said = []
    planning.plan(Run(bundled_configs.config(name), tmp_path, said.append), 4, hardware, given)
    return said[0]


def test_hashed_columns_bound_the_sizes_of_criteo(tmp_path):
    text = plan(tmp_path, rows=4_000_000_000)
    assert "4,000,000,000 training rows, 4,194,305 users" in text
    assert "100,663,320 other" in text  # 24 columns of 2^22 values and one unknown
    assert "cadc_frozen: 400,000,000 rows" in text


@pytest.mark.parametrize(
    ("hardware", "said"),
    [("h200", "measured on one H200.\n"), ("v5e", "on one H200; of v5e none was measured.\n")],
)
def test_the_plan_says_on_what_its_seconds_were_checked(tmp_path, hardware, said):
    text = plan(tmp_path, hardware=hardware, rows=4_000_000_000)
    assert said in text


def test_rows_that_are_too_many_for_the_device_stream(tmp_path):
    many, few = (plan(tmp_path, rows=rows) for rows in (4_000_000_000, 400_000_000))
    assert "rows stream from the host" in many and "    training rows" not in many
    assert "rows stream from the host" not in few and "    training rows" in few


def test_the_memory_of_a_host_falls_with_their_number(tmp_path):
    said, config = [], bundled_configs.config("criteo_terabyte")
    config.factorization = "als"
    for hosts in (1, 2, 4):
        run = Run(config, tmp_path, said.append)
        planning.plan(run, 4, "v5e", {"rows": 4_000_000_000}, hosts)
    entries = ["160.00 GB", "40.00 GB", "20.00 GB"]
    for text, size in zip(said, entries, strict=True):
        assert f"{'entries that it packs':36} {size:>10}" in text
    assert " on 4 x v5e. A" in said[0] and " on 4 x v5e of 2 hosts. A" in said[1]


def test_hosts_have_as_many_devices_each(tmp_path):
    run = Run(bundled_configs.config("criteo_terabyte"), tmp_path, print)
    with pytest.raises(ConfigError, match="--hosts=3: --devices=4 is not a multiple of it"):
        planning.plan(run, 4, "v5e", {"rows": 4_000_000_000}, 3)


@pytest.mark.parametrize("method", ["als", "autoencoder", "sgd"])
def test_every_factorisation_is_planned(tmp_path, method):
    said, config = [], bundled_configs.config("criteo_terabyte")
    config.factorization = method
    planning.plan(Run(config, tmp_path, said.append), 4, "v5e", {"rows": 4_000_000_000})
    assert f"factorize, {method}: {config[method].factors} factors" in said[0]


def test_a_prepared_table_gives_the_sizes(tmp_path):
    config = bundled_configs.config("criteo")
    config.data.synthetic_rows = 3000
    config.data.folder = "nothing/there"
    said = []
    run = Run(config, tmp_path, said.append)
    table = stages.prepare_stage(run, stages.raw_data(run))
    planning.plan(run, 1, "cpu", {})
    assert str(table.path) in said[-1]
    assert f"{table.facts['rows']['train']:,} training rows" in said[-1]
    planning.plan(run, 1, "cpu", {"rows": 12_345})
    assert "12,345 training rows" in said[-1] and "changed by options" in said[-1]


@pytest.mark.parametrize(
    ("name", "given", "message"),
    [
        ("criteo_terabyte", {}, "give --rows=N, or run with --stage=prepare"),
        ("epinions", {"rows": 10}, "give --num_users=N, --num_items=N"),
        ("movielens_1m", {"rows": 10}, "--stage=prepare first"),
        ("criteo_terabyte", {"rows": 10, "hardware": "v9"}, "hardware='v9': must be one of v5e"),
    ],
)
def test_sizes_that_are_not_known_are_asked_for(tmp_path, name, given, message):
    with pytest.raises(ConfigError, match=message):
        plan(tmp_path, name, **given)


def test_a_damaged_table_is_named_and_not_planned_with(tmp_path):
    damaged = tmp_path / "prepare" / "0" / "manifest.json"
    damaged.parent.mkdir(parents=True)
    damaged.write_text("{")
    with pytest.raises(ArtifactError, match=f"{damaged.parent}: not a whole artefact"):
        plan(tmp_path, "criteo", rows=10)


def test_a_configuration_without_features_has_no_feature_rows(tmp_path):
    said = []
    config = configuration.default_config()
    config.train.negatives = 4
    run = Run(config, tmp_path, said.append)
    planning.plan(run, 1, "cpu", {"rows": 5, "num_users": 3, "num_items": 2})
    assert "5 training rows, 3 users, 2 items, 0 other feature values" in said[0]
