"""Criteo display advertising (Kaggle format) on an accelerator: a larger DLRM, in large batches.

    cadc run --config=configs/criteo_accelerator.py --config.data.path=/path/to/train.txt

`configs/criteo.py` is made for a CPU. This one takes batches of 16,384 rows, multiplies in bfloat16
and has the network of the Kaggle benchmark (arXiv 1906.00091). Its learning rates were not tuned on
the real log. Users, items, splits and synthetic rows are those of `configs/criteo.py`.
"""

from cadc_jax.configuration import default_config


def get_config():
    config = default_config()
    config.name = "criteo_accelerator"
    config.models = ("dlrm",)

    data = config.data
    data.source = "criteo"
    data.folder = "criteo/train.txt"
    data.task = "click"
    data.split = "order"
    data.validation = 1 / 14
    data.test = 1 / 7
    data.max_vocabulary = 1 << 21
    data.min_count = 4
    data.user_features = ("C7",)
    data.item_features = ("C11",)
    data.log_dense = True

    config.factorization = "sgd"
    config.sgd.factors = 14  # plus two biases: the width of DLRM's embeddings
    config.sgd.negatives = 1
    config.sgd.epochs = 5
    config.sgd.batch_rows = 1 << 15
    config.sgd.learning_rate = 0.2
    config.sgd.regularization = 0.05

    config.dlrm.embedding_dim = 16
    config.dlrm.bottom = (512, 256, 64)
    config.dlrm.top = (512, 256)
    config.train.batch_rows = 16384
    config.train.compute_dtype = "bfloat16"
    config.train.learning_rate = 2e-3
    config.train.table_optimizer = "adagrad"
    config.train.table_learning_rate = 0.05
    config.train.l2 = 0.003
    config.evaluation.max_rows = 1 << 20  # of the millions that validate
    return config
