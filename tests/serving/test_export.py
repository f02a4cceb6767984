"""Exported models: every format gives the scores of the model, and nothing else is needed."""

import json

import numpy as np
import pytest

from cadc_jax import configuration
from cadc_jax.data.table import read_text
from cadc_jax.errors import ConfigError
from cadc_jax.models import scoring
from cadc_jax.models.embeddings import Content
from cadc_jax.runtime import artifacts
from cadc_jax.serving import export, trained


@pytest.fixture(scope="module")
def clicks(click_run):
    return trained.open_trained(click_run)


@pytest.fixture(scope="module")
def shop(ranking_run):
    return trained.open_trained(ranking_run, arm="cadc_frozen")


def some_rows(model, count=7):
    """Rows as a model takes them, and their scores [B]."""
    if model.table.schema.task == "click":
        names = ("user", "item", "dense", "categorical")
        rows = {name: np.array(model.table.splits["test"][name][:count]) for name in names}
    else:
        rng = np.random.default_rng(0)
        rows = {
            "user": rng.integers(0, model.table.schema.num_users, count, np.int32),
            "item": rng.integers(0, model.table.schema.num_items, count, np.int32),
            "dense": np.zeros((count, 0), np.float32),
            "categorical": np.zeros((count, 0), np.int32),
        }
    batch = {**rows, "item": rows["item"][:, None]}
    return rows, np.asarray(trained.make_scorer(model).score(batch))[:, 0]


def load(folder, form):
    if form == "npz":
        return dict(np.load(folder / "model.npz"))
    import safetensors.numpy

    return safetensors.numpy.load_file(folder / "model.safetensors")


def nested(flat, prefix):
    tree = {}
    for path, x in flat.items():
        if path.startswith(prefix):
            *above, name = path.removeprefix(prefix).split("/")
            at = tree
            for part in above:
                at = at.setdefault(part, {})
            at[name] = x
    return tree


@pytest.mark.parametrize("form", ["npz", "safetensors"])
@pytest.mark.parametrize("which", ["clicks", "shop"])
def test_the_arrays_alone_give_the_scores(request, tmp_path, which, form):
    model = request.getfixturevalue(which)
    export.write_export(model, tmp_path / "out", form)
    arrays = load(tmp_path / "out", form)
    about = json.loads((tmp_path / "out/export.json").read_text())
    network = configuration.MODELS[about["model"]](
        **{name: tuple(x) if isinstance(x, list) else x for name, x in about["network"].items()}
    )
    rows, expected = some_rows(model)
    batch = {**rows, "item": rows["item"][:, None]}
    content = Content(**nested(arrays, "content/"))
    params = {"params": nested(arrays, "params/")}
    scores = scoring.predict(network, params, nested(arrays, "tables/"), content, batch)
    np.testing.assert_allclose(scores[:, 0], expected, rtol=1e-5, atol=1e-6)


@pytest.mark.parametrize("which", ["clicks", "shop"])
def test_a_saved_model_gives_the_scores_of_any_number_of_rows(request, tmp_path, which):
    import tensorflow as tf

    model = request.getfixturevalue(which)
    export.write_export(model, tmp_path / "out", "savedmodel")
    loaded = tf.saved_model.load(str(tmp_path / "out"))
    serve = loaded.signatures["serving_default"]
    for count in (1, 2, 7):
        rows, expected = some_rows(model, count)
        scores = serve(**{name: tf.constant(x) for name, x in rows.items()})["score"]
        np.testing.assert_allclose(scores, expected, rtol=1e-4, atol=1e-5)


def test_factors_alone_are_exported_with_their_biases(click_run, tmp_path):
    model = trained.open_trained(click_run, arm="mf_alone")
    made = export.write_export(model, tmp_path / "out", "npz")
    arrays = np.load(made.path / "model.npz")
    assert sorted(arrays) == ["tables/item", "tables/user"]
    rows, expected = some_rows(model)
    user, item = arrays["tables/user"][rows["user"]], arrays["tables/item"][rows["item"]]
    np.testing.assert_allclose((user * item).sum(1), expected, rtol=1e-5, atol=1e-6)


def test_raw_ids_and_the_places_of_features_go_along(shop, tmp_path):
    made = export.write_export(shop, tmp_path / "out", "npz")
    users = read_text(made.path / "vocabularies/user").tolist()
    arrays = np.load(made.path / "model.npz")
    assert users[0] == "ann00"
    assert arrays["tables/user"].shape[0] == 1 + len(users)  # id 0 is no user of the log's
    about = json.loads((made.path / "export.json").read_text())
    (feature,) = about["features"]
    tags = read_text(made.path / "vocabularies" / feature).tolist()
    assert tags == ["blue", "green", "red"]
    assert arrays["tables/features"].shape[0] == about["features"][feature] + 1 + len(tags)


def test_an_export_is_an_artefact_and_never_overwrites(shop, tmp_path):
    made = export.write_export(shop, tmp_path / "out", "npz")
    assert artifacts.open_artifact(made.path, verify=True).facts["parameters"] > 0
    with pytest.raises(ConfigError, match="the folder exists"):
        export.write_export(shop, tmp_path / "out", "npz")


def test_what_cannot_be_exported_is_said_in_a_line(ranking_run, shop, tmp_path):
    with pytest.raises(ConfigError, match="--format=onnx: must be one of npz, safetensors"):
        export.write_export(shop, tmp_path / "out", "onnx")
    with pytest.raises(ConfigError, match="no model to export"):
        export.write_export(
            trained.open_trained(ranking_run, arm="popularity"), tmp_path / "out", "npz"
        )
