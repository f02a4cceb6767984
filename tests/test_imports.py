import subprocess
import sys

import pytest


@pytest.mark.parametrize(
    "modules",
    [
        "cadc_jax",
        "cadc_jax.factorization.als, cadc_jax.factorization.sgd, cadc_jax.factorization.topk",
        "cadc_jax.models.dlrm, cadc_jax.models.two_tower, cadc_jax.training.loop",
        "cadc_jax.configuration, cadc_jax.data.sampling, cadc_jax.evaluation",
    ],
)
def test_what_needs_jax_alone_does_not_import_tensorflow(modules):
    code = f"import sys, {modules}; sys.exit('tensorflow' in sys.modules)"
    assert subprocess.run([sys.executable, "-c", code]).returncode == 0
