"""An estimate of what a run needs: memory, bytes between devices, arithmetic and time.

Nothing is computed on a device. Parameters, optimizer state and tables have the shapes that the
training step itself would make (`jax.eval_shape`), and the placement that training would choose.
Matrix products and kernels are counted in the traced step, and activations in its traced gradient.
Everything else is arithmetic on shapes. All figures are of one device, the fullest one.

`docs/scale.md` explains how to read the result, and how close compiled programs come to it.
"""

from cadc_jax.cost.autoencoder import autoencoder, autoencoder_phases
from cadc_jax.cost.factorization import als, sgd_factorization
from cadc_jax.cost.model import (
    HARDWARE,
    LAUNCH,
    MEASURED,
    SHARE,
    Cost,
    Hardware,
    Sizes,
    hardware,
    sizes_of,
    text,
)
from cadc_jax.cost.trace import launches, product_flops
from cadc_jax.cost.training import (
    batch_shapes,
    content_shapes,
    place,
    table_shapes,
    training,
)

__all__ = [
    "HARDWARE",
    "LAUNCH",
    "MEASURED",
    "SHARE",
    "Cost",
    "Hardware",
    "Sizes",
    "als",
    "autoencoder",
    "autoencoder_phases",
    "batch_shapes",
    "content_shapes",
    "hardware",
    "launches",
    "place",
    "product_flops",
    "sgd_factorization",
    "sizes_of",
    "table_shapes",
    "text",
    "training",
]
