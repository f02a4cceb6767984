"""Scalars of a training run for TensorBoard."""

from collections.abc import Callable, Mapping
from pathlib import Path

from cadc_jax.runtime.host_tensorflow import leave_accelerators


def recorder(folder: str | Path) -> Callable[[Mapping[str, float]], None]:
    """A function for `FitOptions.record`: writes all entries except `step` as scalars.

    Args:
      folder: folder of event files; made if it does not exist.
    """
    import tensorflow as tf  # slow to import; training does without

    leave_accelerators()

    # `tf.summary.scalar` would want TensorBoard itself to be installed.
    plugin = tf.compat.v1.SummaryMetadata.PluginData(plugin_name="scalars")
    metadata = tf.compat.v1.SummaryMetadata(plugin_data=plugin)
    writer = tf.summary.create_file_writer(str(folder))

    def record(entry: Mapping[str, float]) -> None:
        with writer.as_default(step=entry["step"]):
            for name, value in entry.items():
                if name != "step":
                    tf.summary.write(name, tf.constant(value, tf.float32), metadata=metadata)
        writer.flush()

    return record
