"""What imports what: no TensorFlow where JAX is enough, and one direction through the package."""

import ast
import graphlib
import importlib
import pathlib
import subprocess
import sys

import pytest

import cadc_jax
from cadc_jax.run.arms import ARMS

ROOT = pathlib.Path(cadc_jax.__file__).parent
LAYERS = (  # each may import itself and the ones before it
    ("errors",),
    ("runtime",),
    ("metrics", "sharding", "sparse_optimizers", "tables"),
    ("data",),
    ("beam", "resident"),
    ("factorization",),
    ("models",),
    ("evaluation",),
    ("training",),
    ("cost", "tuning"),
    ("configuration", "report", "run"),
    ("serving",),
    ("experiment", "library", "drafting"),
    ("study",),
    ("cli",),
    ("main",),
)
LAYER_OF = {name: number for number, layer in enumerate(LAYERS) for name in layer}


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
        "cadc_jax.data.pipeline",
        "cadc_jax.data.user_item_candidates",
        "cadc_jax.data.sampling",
        "cadc_jax.data.readers.tfds_reader",
        "cadc_jax.evaluation.evaluate",
        "cadc_jax.run.stages",
        "cadc_jax.main",
        "cadc_jax.library",
    ],
)
def test_what_needs_jax_alone_does_not_import_tensorflow(module):
    code = f"import sys, {module}; sys.exit('tensorflow' in sys.modules)"
    assert subprocess.run([sys.executable, "-c", code]).returncode == 0


def test_the_functions_on_plain_arrays_need_no_configurations():
    code = "import sys, cadc_jax.library; sys.exit('ml_collections' in sys.modules)"
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


FILES = sorted(ROOT.rglob("*.py"))


def module_of(file):
    """The name of a module of the package, such as 'data.table'; '' is the package itself."""
    return ".".join(file.relative_to(ROOT).with_suffix("").parts).removesuffix("__init__")


@pytest.mark.parametrize("file", FILES, ids=module_of)
def test_imports_go_one_way(file):
    own = module_of(file).split(".")[0]
    if own:
        wrong = [x for x in imported(file) if LAYER_OF.get(x.split(".")[0], 0) > LAYER_OF[own]]
        assert not wrong


# Modules of JAX and its friends that change without notice; also all with a part like '_src'.
NOT_PUBLIC = ("jaxlib", "jax.lib", "jax.interpreters", "jax.extend", "jax.api_util")
CHECKED = [*FILES, *(ROOT.parent / "benchmarks").rglob("*.py")]


def private_imports(tree):
    """(node, name) for each import of a module or name that another package keeps to itself."""
    for node in ast.walk(tree):
        if isinstance(node, ast.Import):
            names = [alias.name for alias in node.names]
        elif isinstance(node, ast.ImportFrom) and not node.level:
            names = [f"{node.module}.{alias.name}" for alias in node.names]
        else:
            continue
        for name in names:
            hidden = any(part.startswith("_") and part[:2] != "__" for part in name.split("."))
            foreign = name.split(".")[0] not in ("cadc_jax", "__future__")
            listed = any(name == module or name.startswith(f"{module}.") for module in NOT_PUBLIC)
            if foreign and (hidden or listed):
                yield node, name


@pytest.mark.parametrize("file", CHECKED, ids=lambda file: f"{file.parent.name}/{file.name}")
def test_private_names_of_other_packages_are_imported_in_one_guarded_place_alone(file):
    tree = ast.parse(file.read_text())
    found = list(private_imports(tree))
    if file != ROOT / "runtime" / "distributed.py":
        assert not found
        return
    assert [name for _, name in found] == ["jax._src.distributed"]
    guards = [block for block in ast.walk(tree) if isinstance(block, ast.Try)]
    (guard,) = (block for block in guards if found[0][0] in ast.walk(block))
    caught = ast.unparse(guard.handlers[0].type)
    assert "ImportError" in caught and "AttributeError" in caught


@pytest.mark.parametrize(
    "code, name",
    [
        ("import jax._src.core", "jax._src.core"),
        ("from jax._src import core", "jax._src.core"),
        ("from jax import _src", "jax._src"),
        ("from jax.interpreters import mlir", "jax.interpreters.mlir"),
        ("def f():\n    import jaxlib.xla_client", "jaxlib.xla_client"),
        ("from optax._src import base", "optax._src.base"),
    ],
)
def test_a_private_import_is_found(code, name):
    assert [found for _, found in private_imports(ast.parse(code))] == [name]


def test_no_module_imports_itself_by_way_of_others():
    modules = {module_of(file): file for file in FILES if module_of(file)}
    graph = {}
    for name, file in modules.items():
        found = {x if x in modules else x.rpartition(".")[0] for x in imported(file)}
        graph[name] = {x for x in found if x in modules and x != name}
    graphlib.TopologicalSorter(graph).prepare()  # raises CycleError


def test_configurations_stop_above_training():
    for file in FILES:
        if LAYER_OF.get(module_of(file).split(".")[0], 99) < LAYER_OF["configuration"]:
            assert "ml_collections" not in file.read_text(), file


def test_one_package_imports_beam():
    users = {file.parent.name for file in FILES if "import apache_beam" in file.read_text()}
    users |= {file.parent.name for file in FILES if "from apache_beam" in file.read_text()}
    assert users == {"beam"}


def test_at_most_ten_modules_stand_in_the_root():
    assert len(list(ROOT.glob("*.py"))) <= 10


def test_only_the_registry_knows_the_name_of_an_arm():
    words = ("sample", "full")  # also a stage and a ranking
    names = [f'"{name}"' for name in ARMS if name not in words]
    users = {module_of(file) for file in FILES if any(name in file.read_text() for name in names)}
    assert users <= {"run.arms", "cli.doctor"}  # the doctor's trial configures one
