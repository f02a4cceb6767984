"""What manifests hold, and what becomes of data sets of other versions."""

import pathlib

import pytest

from cadc_jax import experiment
from cadc_jax.errors import ArtifactError
from cadc_jax.run import compressed, formats
from cadc_jax.run.context import Run
from cadc_jax.runtime import manifest
from tests.small_runs import quiet

KEPT = pathlib.Path(__file__).parents[1] / "formats"
VERSIONS = sorted(int(path.name) for path in KEPT.iterdir() if path.is_dir())


def test_a_data_set_of_every_version_is_kept():
    assert VERSIONS == list(range(2, manifest.FORMAT + 1))


@pytest.mark.parametrize("version", VERSIONS[:-1])
def test_older_data_sets_are_refused_with_what_to_do(version):
    with pytest.raises(ArtifactError) as caught:
        compressed.open_compressed(KEPT / str(version))
    assert str(caught.value) == (
        f"{KEPT / str(version)}: artefact format {version}, this version reads {manifest.FORMAT}: "
        "delete the folder and compress again with this version"
    )


def test_a_data_set_of_this_version_is_trained_from(tmp_path):
    given = compressed.open_compressed(KEPT / str(manifest.FORMAT))
    assert given.made.facts["facts"]["sample"]["rows"] == 12
    experiment.train_from(Run(given.config, tmp_path, quiet), given)
    assert (tmp_path / "report.md").exists()


@pytest.mark.parametrize(
    ("stage", "settings", "facts", "fault"),
    [
        ("sample", {"prepared": "x", "rate": "1"}, {"rows": 1}, "settings.rate is no number"),
        ("sample", {"prepared": "x", "rate": 1}, {}, "facts.rows is missing"),
        ("factorize", {"prepared": "x", "method": "als", "config": {}}, {}, "facts.losses"),
    ],
)
def test_a_manifest_that_its_stage_does_not_write_is_refused(
    tmp_path, stage, settings, facts, fault
):
    settings = {"stage": stage, "format": manifest.FORMAT, **settings}
    manifest.write(tmp_path, settings, facts, 1.0)
    with pytest.raises(ArtifactError, match=fault):
        formats.open_stage(tmp_path)


def test_what_other_stages_write_is_not_checked(tmp_path):
    manifest.write(tmp_path, {"stage": "other", "format": manifest.FORMAT}, {"x": 1}, 1.0)
    assert formats.open_stage(tmp_path).facts == {"x": 1}
