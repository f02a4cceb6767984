"""What imports what: no TensorFlow where JAX is enough, and one direction through the package."""

import ast
import importlib
import pathlib
import subprocess
import sys

import pytest

import cadc_jax

ROOT = pathlib.Path(cadc_jax.__file__).parent
ORDER = ("data", "factorization", "models", "training")  # each may import those before it
ABOVE = {"cli", "configuration", "experiment", "library", "main", "report", "run", "serving"}


@pytest.mark.parametrize(
    "module",
    [
        "cadc_jax",
        "cadc_jax.factorization.als",
        "cadc_jax.factorization.sgd",
        "cadc_jax.factorization.topk",
        "cadc_jax.models.dlrm",
        "cadc_jax.models.two_tower",
        "cadc_jax.training.loop",
        "cadc_jax.configuration",
        "cadc_jax.data.user_item_candidates",
        "cadc_jax.data.sampling",
        "cadc_jax.data.readers.tfds_reader",
        "cadc_jax.evaluation.evaluate",
    ],
)
def test_what_needs_jax_alone_does_not_import_tensorflow(module):
    code = f"import sys, {module}; sys.exit('tensorflow' in sys.modules)"
    assert subprocess.run([sys.executable, "-c", code]).returncode == 0


def test_type_checkers_see_every_public_name_where_it_is():
    tree = ast.parse(pathlib.Path(cadc_jax.__file__).read_text())
    (block,) = (node for node in tree.body if isinstance(node, ast.If))
    seen = {alias.asname: (node.module, alias.name) for node in block.body for alias in node.names}
    assert set(seen) == set(cadc_jax.__all__)
    for public, (module, name) in seen.items():
        assert getattr(cadc_jax, public) is getattr(importlib.import_module(module), name)


def imported(file):
    """Names of the modules of the package that a file imports, such as 'data.table'."""
    for node in ast.walk(ast.parse(file.read_text())):
        if isinstance(node, ast.Import):
            names = [alias.name for alias in node.names]
        elif isinstance(node, ast.ImportFrom):
            names = [f"{node.module}.{alias.name}" for alias in node.names]
        else:
            continue
        yield from (
            name.removeprefix("cadc_jax.") for name in names if name.startswith("cadc_jax.")
        )


@pytest.mark.parametrize("folder", ORDER)
def test_imports_go_one_way(folder):
    later = ABOVE | set(ORDER[ORDER.index(folder) + 1 :])
    files = sorted((ROOT / folder).glob("*.py"))
    assert len(files) > 1
    for file in files:
        wrong = [name for name in imported(file) if name.split(".")[0] in later]
        assert not wrong, f"{file.name} imports {wrong}"


def test_configurations_stop_at_the_experiment():
    files = [file for folder in ORDER for file in (ROOT / folder).glob("*.py")]
    files += [*(ROOT / "evaluation").glob("*.py"), ROOT / "metrics.py", ROOT / "sharding.py"]
    for file in files:
        assert "ml_collections" not in file.read_text(), file
