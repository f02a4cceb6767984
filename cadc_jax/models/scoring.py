"""Scores of a trained network, as a pure jitted function of its parameters and tables."""

import functools
from collections.abc import Mapping
from typing import Any, cast

import jax
import jax.numpy as jnp
from flax import linen as nn

from cadc_jax.models import embeddings
from cadc_jax.models.embeddings import Batch, Content, HostBatch, Tables, lookup_ids, model_inputs
from cadc_jax.models.two_tower import TwoTower


@functools.partial(jax.jit, static_argnames=("model", "devices"))
def predict(
    model: nn.Module,
    params: Any,
    tables: Tables,
    content: Content,
    batch: HostBatch,
    devices: int = 1,
) -> jax.Array:
    """Logits [B, G] float32 of a batch, computed in full float32 on every backend.

    Args:
      model: the network.
      params: its parameters.
      tables: all embedding tables, trained and frozen.
      content: features of users and items.
      batch: `user` [B], `item` [B, G] (or [1, G], shared by all users), `dense` and `categorical`.
      devices: number of devices that the batch is split over.
    """
    arrays: Batch = {name: jnp.asarray(x) for name, x in batch.items()}
    if shares_items(model, arrays["item"].size, len(content.item_categorical), devices):
        arrays = embeddings.with_all_items(content, arrays)
    rows = embeddings.take_rows(tables, lookup_ids(content, arrays))
    with jax.default_matmul_precision("float32"):
        logits = model.apply(params, model_inputs(as_float32(rows), content, arrays))
    return cast(jax.Array, logits)  # only with mutable variables would it be a pair


def parameter_shapes(
    model: nn.Module,
    tables: Mapping[str, jax.ShapeDtypeStruct],
    content: Content,
    dense: int,
) -> Any:
    """Shapes and dtypes of a network's parameters; computes nothing.

    Args:
      model: the network.
      tables: shapes and dtypes of all embedding tables.
      content: features of users and items.
      dense: number of dense features of a row.
    """
    one = jnp.zeros((1,), jnp.int32)

    def parameters(tables: Tables, content: Content) -> Any:
        batch = {
            "user": one,
            "item": one[:, None],
            "dense": jnp.zeros((1, dense)),
            "categorical": jnp.zeros((1, len(content.context_offsets)), jnp.int32),
        }
        rows = embeddings.take_rows(tables, lookup_ids(content, batch))
        return model.init(jax.random.key(0), model_inputs(as_float32(rows), content, batch))

    return jax.eval_shape(parameters, tables, content)


def shares_items(model: nn.Module, asked: int, num_items: int, devices: int = 1) -> bool:
    """Whether to compute the vectors of all items once, and take a batch's from these.

    The item vector of a two-tower network does not depend on the user. A batch with sampled
    negatives asks for most items several times, so this gives the same scores and gradients for
    less work.

    Args:
      model: the network.
      asked: items of all rows that go through the network at a time, repeats counted.
      num_items: I; every device would compute all of them.
      devices: number of devices that the rows are split over.
    """
    return isinstance(model, TwoTower) and 2 * num_items * devices <= asked


def as_float32(rows: Tables) -> dict[str, jax.Array]:
    """Rows of bfloat16 tables as float32; networks compute from these."""
    return {name: x.astype(jnp.float32) for name, x in rows.items()}
