"""What a run needs, on paper: memory, bytes between devices, arithmetic and time. A model.

Nothing is computed on a device. Shapes of parameters, optimizer state and tables are those that the
training step itself would make (`jax.eval_shape`), placed by the planner that training uses; matrix
products are counted in the traced step, and residuals in its traced gradient. What is left is
arithmetic on shapes, said beside each formula. All figures are of one device, the fullest one.

`docs/scale.md` tells how to read the result, and how near compiled programs come to it.
"""

from cadc_jax.cost.factorization import als, sgd_factorization
from cadc_jax.cost.model import (
    EFFICIENCY,
    HARDWARE,
    Cost,
    Hardware,
    Sizes,
    hardware,
    sizes_of,
    text,
)
from cadc_jax.cost.training import (
    batch_shapes,
    content_shapes,
    place,
    product_flops,
    table_shapes,
    training,
)

__all__ = [
    "EFFICIENCY",
    "HARDWARE",
    "Cost",
    "Hardware",
    "Sizes",
    "als",
    "batch_shapes",
    "content_shapes",
    "hardware",
    "place",
    "product_flops",
    "sgd_factorization",
    "sizes_of",
    "table_shapes",
    "text",
    "training",
]
