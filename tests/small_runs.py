"""Small configurations of both tasks, and runs of them."""

import numpy as np

from cadc_jax import configuration


def quiet(line):
    """Shows nothing."""
    del line


def finished(config, workdir):
    """Runs the experiment; returns its work folder."""
    from cadc_jax import experiment

    experiment.run(experiment.Run(config, workdir, say=quiet))
    return workdir


def ranking_config(folder, users=40, items=60):
    """Customers and products with titles and tags, written to `folder`."""
    rng = np.random.default_rng(0)
    pairs = rng.permutation(np.unique(rng.integers(0, [users, items], (900, 2)), axis=0))
    folder.mkdir()
    log = "".join(f"ann{user:02},{item}\n" for user, item in pairs)
    (folder / "log.csv").write_text("customer,product\n" + log)
    tags = ("blue", "red|green")
    products = "".join(f"{i},Product {i},{tags[i % 2]}\n" for i in range(items))
    (folder / "products.csv").write_text("product,name,tags\n" + products)
    config = configuration.default_config()
    config.name, config.rate, config.arms = "shop", 0.25, ("sample", "cadc_frozen")
    config.data.update(path=str(folder), train_file="log.csv", num_negatives=20)
    config.data.columns.update(user="customer", item="product")
    config.data.item_content.update(file="products.csv", id="product", title="name", bags=("tags",))
    config.als.update(factors=8, iterations=2, regularization=1.0, alpha=9.0)
    config.autoencoder.regularization = 0.35
    config.two_tower.hidden = (8,)
    config.train.update(batch_rows=64, max_evaluations=1, negatives=2)
    return config


def click_config():
    """Synthetic clicks in Criteo's format."""
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
