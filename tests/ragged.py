"""`jax.lax.ragged_all_to_all` on CPUs, for which XLA has none, by its documentation."""

import jax.numpy as jnp
from jax import lax

WRONG = 0xFFFFFFFF  # where a device did not expect what it is sent; bits of a NaN


def ragged_all_to_all(
    operand, output, input_offsets, send_sizes, output_offsets, recv_sizes, *, axis_name
):
    """Every device gets everything, and takes what is for it."""
    own = lax.axis_index(axis_name)
    operands = lax.all_gather(operand, axis_name)
    begins, sizes, places = (
        lax.all_gather(x, axis_name)[:, own] for x in (input_offsets, send_sizes, output_offsets)
    )
    slot = jnp.arange(len(output))
    for sender, rows in enumerate(operands):
        nth = slot - places[sender]
        sent = rows.at[begins[sender] + nth].get(mode="fill", fill_value=WRONG)
        sent = jnp.where(sizes[sender] == recv_sizes[sender], sent, jnp.asarray(WRONG, sent.dtype))
        here = (nth >= 0) & (nth < sizes[sender])
        output = jnp.where(here[:, None], sent, output)
    return output
