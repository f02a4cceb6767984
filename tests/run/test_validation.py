import numpy as np
import pytest

from cadc_jax.data.table import open_table
from cadc_jax.evaluation import evaluate, scorers
from cadc_jax.run import stages, validation
from cadc_jax.run.context import Run
from tests.small_runs import click_config, quiet, ranking_config


def prepared(config, workdir):
    run = Run(config, workdir, quiet)
    return run, open_table(stages.prepare_stage(run, stages.raw_data(run)).path)


def test_clicks_are_validated_by_their_auc(tmp_path):
    run, table = prepared(click_config(), tmp_path)
    metric, quality = validation.of_table(run, table)
    scorer = scorers.popularity(table)
    rows = table.splits["validation"]
    assert metric == "auc"
    assert quality(scorer) == evaluate.evaluate_clicks(scorer, rows)["auc"]
    run.config.evaluation.max_rows = 40
    few = {name: x[np.arange(40) * len(rows["label"]) // 40] for name, x in rows.items()}
    thinned = validation.of_table(run, table).quality(scorer)
    assert thinned == evaluate.evaluate_clicks(scorer, few)["auc"]


@pytest.mark.parametrize(("ranking", "name"), [("full", "ndcg@5"), ("sampled", "ndcg@5/1+20")])
def test_rankings_are_validated_as_networks_are(tmp_path, ranking, name):
    config = ranking_config(tmp_path / "raw")
    config.evaluation.update(ranking=ranking, k=(5, 10))
    run, table = prepared(config, tmp_path / "work")
    metric, quality = validation.of_table(run, table)
    scorer = scorers.popularity(table)
    assert metric == name
    if ranking == "full":
        expected = evaluate.rank_users(scorer, table, "validation").quality((5,))["ndcg@5"]
    else:
        ranks = evaluate.ranks_sampled(scorer, table.splits["validation"])
        expected = evaluate.sampled_quality(ranks, (5,), 20)[name]
    assert quality(scorer) == pytest.approx(expected, rel=1e-6)


def test_users_may_be_drawn_but_no_more_than_configured(tmp_path):
    config = ranking_config(tmp_path / "raw")
    config.evaluation.update(ranking="full", max_users=12)
    run, table = prepared(config, tmp_path / "work")
    scorer = scorers.popularity(table)
    for most, users in ((0, 12), (20, 12), (7, 7)):
        expected = evaluate.rank_users(scorer, table, "validation", users).quality((10,))["ndcg@10"]
        assert validation.of_table(run, table, most).quality(scorer) == pytest.approx(expected)


def test_clicks_of_one_label_tell_nothing(tmp_path):
    run, table = prepared(click_config(), tmp_path)
    assert validation.tells(table)
    label = table.splits["validation"]["label"]
    table.splits["validation"]["label"] = np.ones_like(label)
    assert not validation.tells(table)
    _, ranking = prepared(ranking_config(tmp_path / "raw"), tmp_path / "work")
    assert validation.tells(ranking)
