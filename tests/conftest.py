"""Quiet libraries, eight devices on the CPU, and finished runs, for all tests."""

import os
import subprocess

os.environ.setdefault("TF_CPP_MIN_LOG_LEVEL", "3")
os.environ.setdefault("TF_ENABLE_ONEDNN_OPTS", "0")

import hypothesis
import jax
import numpy as np
import pytest

jax.config.update("jax_num_cpu_devices", 8)

# A first call compiles, so that no deadline fits; fixed examples make a failure repeatable.
hypothesis.settings.register_profile("default", deadline=None, derandomize=True, max_examples=50)
hypothesis.settings.load_profile("default")


@pytest.fixture
def small_disk(tmp_path):
    """A file system of 2 MB."""
    path = tmp_path / "disk"
    path.mkdir()
    mount = ["mount", "-t", "tmpfs", "-o", "size=2m", "tmpfs", str(path)]
    if subprocess.run(mount, capture_output=True).returncode:
        pytest.skip("a small file system cannot be mounted here")
    yield path
    subprocess.run(["umount", "-l", str(path)], check=True)


@pytest.fixture(scope="session")
def ranking_run(tmp_path_factory):
    """A finished small run of the ranking task, of customers and products with titles and tags."""
    path = tmp_path_factory.mktemp("ranking")
    return _finished(ranking_config(path / "raw"), path / "work")


@pytest.fixture(scope="session")
def click_run(tmp_path_factory):
    """A finished small run on synthetic clicks in Criteo's format, and its compressed data set."""
    from cadc_jax import experiment

    path = tmp_path_factory.mktemp("click")
    workdir = _finished(click_config(), path / "work")
    run = experiment.Run(click_config(), workdir, say=lambda line: None)
    experiment.compress(run, path / "compressed")
    return workdir


def _finished(config, workdir):
    from cadc_jax import experiment

    experiment.run(experiment.Run(config, workdir, say=lambda line: None))
    return workdir


def ranking_config(folder):
    from cadc_jax import configuration

    rng = np.random.default_rng(0)
    pairs = rng.permutation(np.unique(rng.integers(0, [40, 60], (900, 2)), axis=0))
    folder.mkdir()
    log = "".join(f"ann{user:02},{item}\n" for user, item in pairs)
    (folder / "log.csv").write_text("customer,product\n" + log)
    products = "".join(f"{i},Product {i},{'red|green' if i % 2 else 'blue'}\n" for i in range(60))
    (folder / "products.csv").write_text("product,name,tags\n" + products)
    config = configuration.default_config()
    config.name, config.rate, config.arms = "shop", 0.25, ("sample", "cadc_frozen")
    config.data.update(path=str(folder), train_file="log.csv", num_negatives=20)
    config.data.columns.update(user="customer", item="product")
    config.data.item_content.update(file="products.csv", id="product", title="name", bags=("tags",))
    config.als.update(factors=8, iterations=2)
    config.two_tower.hidden = (8,)
    config.train.update(batch_rows=64, max_evaluations=1, negatives=2)
    return config


def click_config():
    from cadc_jax import configuration

    config = configuration.default_config()
    config.name, config.rate, config.models = "clicks", 0.25, ("dlrm",)
    config.arms = ("cadc_frozen",)
    config.data.update(
        source="criteo", folder="none", task="click", split="order", synthetic_rows=3000
    )
    config.data.update(user_features=("C7",), item_features=("C11",), log_dense=True)
    config.factorization = "sgd"
    config.sgd.update(factors=6, negatives=1, epochs=1)
    config.dlrm.update(embedding_dim=8, bottom=(8,), top=(8,))
    config.train.update(batch_rows=256, max_evaluations=1)
    return config
