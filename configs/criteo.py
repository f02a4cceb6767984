"""Criteo display advertising (Kaggle format): DLRM on a 10 % sample, with factors of all rows.

    python -m cadc_jax.main --config=configs/criteo.py --config.data.path=/path/to/train.txt

Without a path and without `criteo/train.txt` in $CADC_DATA_DIR, it runs on synthetic rows in the
same format. The logs name neither users nor items: columns C7 and C11 stand in for them. Choose
again for your own data. The file is in order of time, and its last seventh is the test split.
"""

from cadc_jax.configuration import default_config


def get_config():
    config = default_config()
    config.name = "criteo"
    config.models = ("dlrm",)

    data = config.data
    data.source = "criteo"
    data.folder = "criteo/train.txt"
    data.task = "click"
    data.split = "order"
    data.validation = 1 / 14
    data.test = 1 / 7
    data.min_count = 4
    data.user_features = ("C7",)
    data.item_features = ("C11",)
    data.log_dense = True

    config.factorization = "sgd"  # the paper's model, which weighs clicks against impressions
    config.sgd.factors = 14  # plus two biases: the width of DLRM's embeddings
    config.sgd.negatives = 1  # none are drawn, as rows have labels
    config.sgd.epochs = 20
    config.sgd.learning_rate = 0.2
    config.sgd.regularization = 0.05

    config.dlrm.embedding_dim = 16
    config.dlrm.bottom = (32,)
    config.dlrm.top = (64, 32)
    config.train.batch_rows = 1024
    config.train.learning_rate = 2e-3
    config.train.table_optimizer = "adagrad"
    config.train.table_learning_rate = 0.05
    config.train.l2 = 0.003
    config.evaluation.max_rows = 1 << 20  # of the millions that validate
    return config
