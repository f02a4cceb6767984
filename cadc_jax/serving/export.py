"""A trained model for other programs: embeddings, vocabularies and parameters, or a SavedModel.

export.json        arm, network and its sizes, features and where each begins
vocabularies/      raw values by id - 1, as in the prepared table; statistics.json beside them
model.npz          (or model.safetensors) `tables/user` [U, D], `tables/item` [I, D],
                   `tables/features` [V, E], `content/...` of users and items, `params/...`
saved_model.pb ... (SavedModel) the signature `serving_default`, of B rows
manifest.json      checksums, as of any artefact
"""

import json
import pathlib
import shutil
from collections.abc import Callable, Mapping
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from flax import linen as nn

from cadc_jax.errors import CadcError, ConfigError
from cadc_jax.evaluation.scorers import dot_products
from cadc_jax.models import embeddings
from cadc_jax.models.scoring import predict
from cadc_jax.run.arms import POPULARITY
from cadc_jax.run.formats import EXPORT
from cadc_jax.runtime import artifacts, durable, manifest
from cadc_jax.runtime.artifacts import Artifact
from cadc_jax.runtime.host_tensorflow import leave_accelerators
from cadc_jax.serving.trained import Trained


def write_export(trained: Trained, out: pathlib.Path, form: str) -> Artifact:
    """Writes a trained model to the folder `out`, whole or not at all.

    Args:
      trained: a network, or the factors alone.
      out: the folder, which must not exist yet.
      form: one of FORMS.

    Raises:
      ConfigError: if the format is unknown, the folder exists, or there is nothing to export.
    """
    if form not in FORMS:
        raise ConfigError(f"--format={form}: must be one of {', '.join(FORMS)}")
    durable.check_new(out)
    if trained.arm is POPULARITY:
        raise ConfigError(
            f"--arm={POPULARITY.name}: there is no model to export; see items/count.npy"
        )
    about = describe(trained)
    settings = {"stage": EXPORT, "format": manifest.FORMAT, "form": form, **about}

    def write_files(folder: pathlib.Path) -> Mapping[str, Any]:
        FORMS[form](trained, folder)
        shutil.copytree(trained.prepared / "vocabularies", folder / "vocabularies")
        shutil.copy(trained.prepared / "statistics.json", folder)
        durable.write_json(folder / "export.json", about)
        sizes = {name: list(np.shape(table)) for name, table in trained.tables.items()}
        return {"tables": sizes, "parameters": sum(map(np.size, jax.tree.leaves(trained.params)))}

    artifacts.write_artifact(out, settings, write_files)
    return artifacts.open_artifact(out)


def describe(trained: Trained) -> dict[str, Any]:
    """What another program needs to know besides the arrays."""
    schema = trained.table.schema
    groups = {
        "user": schema.user_content,
        "row": schema.context,
        "item": schema.item_content,
    }
    names = [f"{kind}.{name}" for kind, group in groups.items() for name in group.categorical]
    names += [f"item.{name}" for name in schema.item_content.bags]
    sizes = sum((group.vocabulary_sizes for group in groups.values()), ())
    sizes += schema.item_content.bag_sizes
    offsets = embeddings.stacked_offsets(sizes or (0,)).tolist()
    network = trained.network
    return {
        "arm": trained.arm.name,
        "model": trained.model,
        "network": None if network is None else _fields(network),
        "trained": trained.path.name,
        "validation": trained.validation,
        "task": schema.task,
        "users": schema.num_users,
        "items": schema.num_items,
        "row_dense": list(schema.context.dense),
        "row_categorical": list(schema.context.categorical),
        "row_offsets": offsets[len(schema.user_content.categorical) :][
            : len(schema.context.categorical)
        ],
        "features": dict(zip(names, offsets, strict=False)),
    }


def arrays(trained: Trained) -> dict[str, np.ndarray]:
    """All arrays of the model, by path."""
    tree: dict[str, Any] = {"tables": dict(trained.tables)}
    if trained.network is not None:
        content = embeddings.content_of(trained.table)
        tree["content"] = {
            name: getattr(content, name)
            for name in content.__dataclass_fields__
            if getattr(content, name) is not None
        }
        tree["params"] = trained.params["params"]
    found, _ = jax.tree_util.tree_flatten_with_path(tree)
    return {"/".join(str(part.key) for part in path): np.asarray(x) for path, x in found}


def _npz(trained: Trained, folder: pathlib.Path) -> None:
    found = arrays(trained)
    for name, x in found.items():
        if x.dtype == jnp.bfloat16:  # which NumPy does not know
            found[name] = x.astype(np.float32)
    # NumPy's types take any name for its option allow_pickle; ours have a slash.
    np.savez(folder / "model.npz", **found)  # type: ignore[arg-type]


def _safetensors(trained: Trained, folder: pathlib.Path) -> None:
    import safetensors.numpy

    found = {name: np.asarray(x, order="C") for name, x in arrays(trained).items()}
    about = {"format": "np", "cadc": json.dumps(describe(trained))}
    safetensors.numpy.save_file(found, folder / "model.safetensors", about)


def _savedmodel(trained: Trained, folder: pathlib.Path) -> None:
    """The scores of B rows as a TensorFlow graph.

    The signature takes `user` [B] int32, `item` [B] int32, and of a network `dense` [B, F] float32
    and `categorical` [B, C] int32, the row's own features, encoded as in the prepared table (of the
    ranking task F and C are 0). It returns `score` [B] float32.
    """
    import tensorflow as tf
    from jax.experimental import jax2tf

    leave_accelerators()
    schema = trained.table.schema
    of_rows = schema.task == "click"
    num_dense = len(schema.context.dense) if of_rows else 0
    num_categorical = len(schema.context.categorical) if of_rows else 0
    network = trained.network
    content = None if network is None else embeddings.content_of(trained.table)

    def scores(state, *rows):
        def of_row(user, item, dense, categorical):  # one row: no shape in the models is unknown
            batch = {
                "user": user[None],
                "item": item[None, None],
                "dense": dense[None],
                "categorical": categorical[None],
            }
            params, tables, content = state
            if network is None:
                return dot_products(tables, batch)[0, 0]
            return predict(network, params, tables, content, batch)[0, 0]

        return jax.vmap(of_row)(*rows)

    state = jax.tree.map(np.asarray, (trained.params, dict(trained.tables), content))
    leaves, structure = jax.tree.flatten(state)
    module = tf.Module()
    module.leaves = [tf.Variable(x, trainable=False) for x in leaves]
    converted = jax2tf.convert(
        lambda leaves, *rows: scores(jax.tree.unflatten(structure, leaves), *rows),
        polymorphic_shapes=[None, "(b,)", "(b,)", "(b, _)", "(b, _)"],
        with_gradient=False,
    )

    def serve(user, item, dense, categorical):
        return {"score": converted(module.leaves, user, item, dense, categorical)}

    signature = [
        tf.TensorSpec([None], tf.int32, "user"),
        tf.TensorSpec([None], tf.int32, "item"),
        tf.TensorSpec([None, num_dense], tf.float32, "dense"),
        tf.TensorSpec([None, num_categorical], tf.int32, "categorical"),
    ]
    module.serve = tf.function(serve, input_signature=signature, autograph=False)
    try:
        tf.saved_model.save(module, str(folder), signatures={"serving_default": module.serve})
    except tf.errors.OpError as error:
        raise CadcError(f"TensorFlow cannot save the model: {error.message}") from None


FORMS: Mapping[str, Callable[[Trained, pathlib.Path], None]] = {
    "npz": _npz,
    "safetensors": _safetensors,
    "savedmodel": _savedmodel,
}


def _fields(network: nn.Module) -> dict[str, Any]:
    names = [name for name in network.__dataclass_fields__ if name not in ("parent", "name")]
    return {name: getattr(network, name) for name in names}
