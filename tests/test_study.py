"""The study: its statistics, rules and rivals, and that a killed one goes on where it was."""

import dataclasses
import gzip

import numpy as np
import pytest
import scipy.sparse
import scipy.stats
import sklearn.metrics

from benchmarks import paired, rivals, selection, study, study_report
from benchmarks.study import Cell
from cadc_jax.data.table import open_table, read_columns
from cadc_jax.evaluation import evaluate
from cadc_jax.run import stages
from tests import study_faults

# Statistics.


def test_the_interval_over_users_is_that_of_the_paired_t_test():
    rng = np.random.default_rng(0)
    ours, theirs = rng.random((3, 50)), rng.random((2, 50))
    found = paired.over_users(ours, theirs)
    expected = scipy.stats.ttest_rel(ours.mean(0), theirs.mean(0)).confidence_interval(0.95)
    assert found == pytest.approx((ours.mean() - theirs.mean(), expected.low, expected.high))


def test_the_interval_of_three_users_by_hand():
    """Differences 1, 2, 3: mean 2, standard error 1 / sqrt(3), t of two degrees 4.3027."""
    found = paired.over_users(np.array([[2.0, 4.0, 6.0]]), np.array([[1.0, 2.0, 3.0]]))
    assert found == pytest.approx((2, 2 - 4.3027 / 3**0.5, 2 + 4.3027 / 3**0.5), abs=1e-4)
    assert found.verdict == "="


def test_a_single_user_has_no_interval():
    found = paired.over_users(np.ones((2, 1)), np.zeros((2, 1)))
    assert found.mean == 1 and np.isnan(found.low) and found.verdict == "="


def test_what_all_users_share_cancels_out():
    """Users differ far more from each other than the two scorers do."""
    of_user = np.random.default_rng(0).normal(size=1000) * 100
    better = of_user + 0.1 + np.random.default_rng(1).normal(size=1000) * 0.1
    assert paired.over_users(better[None], of_user[None]).verdict == "better"
    assert paired.over_users(of_user[None], better[None]).verdict == "worse"


def scored_rows(n=300, seeds=2):
    rng = np.random.default_rng(0)
    labels = (rng.random(n) < 0.3).astype(np.float32)
    scores = np.round(rng.normal(size=(seeds, n)) + labels, 1)  # with ties
    return labels, scores


def test_auc_is_that_of_scikit_learn_with_ties():
    labels, scores = scored_rows()
    assert paired.auc(labels, scores[0]) == pytest.approx(
        sklearn.metrics.roc_auc_score(labels, scores[0])
    )
    assert np.isnan(paired.auc(np.ones(5), np.arange(5.0)))


def test_the_difference_of_aucs_has_the_variance_of_delong():
    """Against the definition: means over all pairs of a click and another row."""
    labels, (ours, theirs) = scored_rows()
    click = labels > 0

    def wins(scores):
        gap = scores[click][:, None] - scores[~click][None]
        return (gap > 0) + (gap == 0) / 2

    difference = wins(ours) - wins(theirs)
    variance = difference.mean(1).var(ddof=1) / click.sum()
    variance += difference.mean(0).var(ddof=1) / (~click).sum()
    mean, reach = difference.mean(), 1.959964 * variance**0.5
    found = paired.over_rows(labels, ours[None], theirs[None])
    assert found == pytest.approx((mean, mean - reach, mean + reach))


def test_aucs_of_several_seeds_are_averaged():
    labels, scores = scored_rows(seeds=4)
    found = paired.over_rows(labels, scores[:3], scores[3:])
    aucs = [sklearn.metrics.roc_auc_score(labels, x) for x in scores]
    assert found.mean == pytest.approx(np.mean(aucs[:3]) - aucs[3])


def test_delongs_interval_is_about_as_wide_as_the_bootstraps():
    labels, (ours, theirs) = scored_rows(1000)
    found = paired.over_rows(labels, ours[None], theirs[None])
    rng = np.random.default_rng(1)
    drawn = [rng.integers(0, 1000, 1000) for _ in range(400)]
    resampled = [paired.auc(labels[d], ours[d]) - paired.auc(labels[d], theirs[d]) for d in drawn]
    width = np.diff(np.percentile(resampled, [2.5, 97.5]))[0]
    assert found.high - found.low == pytest.approx(width, rel=0.15)


def test_the_best_possible_auc_is_the_share_of_pairs_in_order():
    p = np.array([0.1, 0.5, 0.5, 0.9, 0.3])
    weight = p[:, None] * (1 - p)[None]
    order = (p[:, None] > p[None]) + (p[:, None] == p[None]) / 2
    off = ~np.eye(5, dtype=bool)
    expected = (weight * order)[off].sum() / weight[off].sum()
    assert paired.bayes_auc(p) == pytest.approx(expected)


def test_the_best_possible_auc_is_what_the_probabilities_get_on_drawn_labels():
    rng = np.random.default_rng(0)
    p = rng.random(200_000)
    labels = rng.random(200_000) < p
    assert paired.bayes_auc(p) == pytest.approx(paired.auc(labels, p), abs=0.003)


def test_a_factorisation_is_paid_back_by_what_trainings_save():
    assert paired.break_even(30, full=12, sampled=2) == 3
    assert paired.break_even(30, full=2, sampled=2) == np.inf


def test_deciles_hold_a_tenth_each_and_keep_equal_sizes_together():
    assert np.bincount(paired.deciles(np.arange(200))).tolist() == [20] * 10
    assert len(set(paired.deciles(np.array([1] * 50 + [2] * 50)))) == 2


# Rules that choose rows.

RNG = np.random.default_rng(0)
USER = RNG.integers(1, 40, 1000)
ITEM = RNG.zipf(1.5, 1000).clip(max=50)
TIME = RNG.integers(0, 300, 1000)
LOSS = RNG.random(1000)


def chosen(rule, count=137, seed=0):
    return selection.choose(rule, count, seed, USER, ITEM, TIME, LOSS)


@pytest.mark.parametrize("rule", selection.RULES)
def test_a_rule_keeps_as_many_rows_as_it_is_told_in_order_and_again(rule):
    for count in (1, 137, 1000):
        ids = chosen(rule, count)
        assert len(ids) == count and np.all(np.diff(ids) > 0)
        np.testing.assert_array_equal(ids, chosen(rule, count))


@pytest.mark.parametrize("rule", ["per_user", "popularity", "inverse_propensity"])
def test_rules_that_draw_depend_on_the_seed(rule):
    assert set(chosen(rule)) != set(chosen(rule, seed=1))


def test_per_user_keeps_everybodys_share_to_one_row():
    share = np.bincount(USER) * 137 / 1000
    kept = np.bincount(USER[chosen("per_user")], minlength=len(share))
    assert np.all(np.abs(kept - share) < 1)


def test_per_user_is_fair_to_every_row():
    times = np.bincount(np.concatenate([chosen("per_user", 100, s) for s in range(400)]))
    assert scipy.stats.chisquare(times).pvalue > 0.01


def test_weights_are_those_of_the_draws():
    """Of a heavy and nine light rows, one is drawn: the heavy one with probability 9 / 18."""
    weight = np.array([9.0] + [1.0] * 9)
    heavy = sum(0 in selection.weighted(weight, 1, seed) for seed in range(2000))
    assert scipy.stats.binomtest(heavy, 2000, 0.5).pvalue > 0.01


def test_popular_items_gain_by_one_rule_and_lose_by_the_other():
    def mean_count(rule):
        return np.bincount(ITEM)[ITEM[chosen(rule)]].mean()

    everything = np.bincount(ITEM)[ITEM].mean()
    assert mean_count("inverse_propensity") < everything < mean_count("popularity")


def test_the_most_recent_rows_are_the_latest_and_the_hardest_have_the_highest_loss():
    ids = chosen("recent")
    assert TIME[ids].min() >= np.delete(TIME, ids).max()
    ids = chosen("hardest")
    assert LOSS[ids].min() > np.delete(LOSS, ids).max()


def test_of_rows_at_the_same_time_the_later_ones_are_recent():
    assert selection.recent(np.array([5, 5, 5, 1]), 2).tolist() == [1, 2]


# Rivals.


def matrix(users=30, items=8):
    dense = np.random.default_rng(0).random((users, items)) < 0.3
    return scipy.sparse.csr_matrix(dense.astype(np.float32))


def test_ease_is_the_ridge_regression_of_each_item_on_the_others():
    x = matrix().toarray().astype(np.float64)
    found = rivals.ease(matrix(), 2.0)
    for item in range(x.shape[1]):
        others = np.delete(x, item, axis=1)
        gram = others.T @ others + 2.0 * np.eye(others.shape[1])
        expected = np.insert(np.linalg.solve(gram, others.T @ x[:, item]), item, 0)
        np.testing.assert_allclose(found[:, item], expected, atol=1e-5)


@pytest.mark.parametrize("sparse", [False, True])
def test_scores_of_own_and_of_shared_candidates_are_rows_of_x_b(sparse):
    b = np.random.default_rng(1).random((8, 8)).astype(np.float32)
    score = rivals.scorer(matrix(), scipy.sparse.csr_matrix(b) if sparse else b)
    expected = matrix().toarray() @ b
    user, own = np.array([3, 1]), np.array([[2, 5], [0, 7]])
    np.testing.assert_allclose(
        score({"user": user, "item": own}), expected[user[:, None], own], rtol=1e-5
    )
    shared = np.arange(8)[None]
    np.testing.assert_allclose(score({"user": user, "item": shared}), expected[user], rtol=1e-5)


@pytest.mark.filterwarnings("ignore:Method expects CSR")  # which the library warns itself of
def test_neighbours_by_cosine_are_those_of_a_dense_product():
    pytest.importorskip("implicit")
    x = matrix().toarray()
    norm = np.maximum(np.linalg.norm(x, axis=0), 1e-9)
    options, score = next(rivals.neighbour_candidates(matrix()))
    assert options == {"kind": "cosine", "K": 20}  # which is all items
    found = score({"user": np.arange(30), "item": np.arange(8)[None]})
    np.testing.assert_allclose(found, x @ (x.T @ x / norm / norm[:, None]), atol=1e-4)


# Results on disk, and workers.

CELLS = [Cell("synthetic", "full", "dlrm", seed=seed) for seed in range(4)]


def test_a_line_that_was_cut_off_is_forgotten(tmp_path):
    path, of = tmp_path / "results.csv", study.Study(tmp_path)
    for cell in CELLS[:2]:
        study.append_result(path, study.failure(of, cell, "it\nbroke, 'so'"))
    whole = path.read_bytes()
    path.write_bytes(whole + b"synthetic,full,dl")
    rows = study.read_results(path)
    assert [study.cell_of(row) for row in rows] == CELLS[:2]
    assert rows[0]["error"] == "it broke, 'so'"
    assert path.read_bytes() == whole


def test_the_last_row_of_a_cell_counts(tmp_path):
    path, of = tmp_path / "results.csv", study.Study(tmp_path)
    for status in ("failed", "ok"):
        study.append_result(path, study.failure(of, CELLS[0], "") | {"status": status, "auc": 0.5})
    (row,) = study.read_results(path)
    assert row["status"] == "ok" and row["auc"] == 0.5


def test_a_killed_cell_is_noted_and_done_by_the_next_run_alone(tmp_path, capsys):
    of = study.Study(tmp_path)
    rows = study.work(of, [CELLS[:1], CELLS[1:]], 1, study_faults.run)
    assert [row["status"] for row in rows] == ["ok", "failed", "failed", "skipped"]
    assert rows[1]["error"] == "ValueError: broken" and "exit code 9" in rows[2]["error"]
    (tmp_path / "again").touch()
    for file in tmp_path.glob("run-*"):
        file.unlink()
    rows = study.work(of, [CELLS], 1, study_faults.run)
    assert [row["status"] for row in rows] == ["ok", "ok", "ok", "skipped"]
    assert {file.name.split("-")[1] for file in tmp_path.glob("run-*")} == {"1", "2"}
    assert "4 cells, 2 of them done before" in capsys.readouterr().out


def test_other_settings_do_not_take_over_results(tmp_path):
    assert study.Study(tmp_path).settings(CELLS[0]) != study.Study(tmp_path, True).settings(
        CELLS[0]
    )


def test_the_plan_has_every_cell_once_and_no_duplicate_of_full():
    phases = study.plan(
        ["epinions", "synthetic"],
        [1.0, 0.1],
        ["random", "frozen"],
        ["dlrm"],
        2,
        ["recent"],
        [0.1],
    )
    cells = [cell for phase in phases for cell in phase]
    assert len(cells) == len(set(cells))
    assert Cell("epinions", "random", "dlrm", "uniform", 1.0) not in cells
    assert Cell("epinions", "frozen", "dlrm", "uniform", 1.0, 1) in cells
    assert Cell("synthetic", "random", "dlrm", "recent", 0.1, 1) in cells
    assert not any(
        c.arm == "ease" or c.selection == "fold_in" for c in cells if c.data != "epinions"
    )


def test_baselines_may_be_left_out():
    phases = study.plan(
        *(["ml-1m"], [0.1], ["frozen"], ["two_tower"], 2, [], [0.1]), baselines=["mf_alone"]
    )
    cells = [cell for phase in phases for cell in phase]
    assert {(cell.arm, cell.selection) for cell in cells} == {
        ("mf_alone", ""),
        ("frozen", "uniform"),
    }


def test_factors_of_the_unsampled_rows_go_with_every_way_to_choose_some(tmp_path):
    of = study.Study(tmp_path)
    uniform = Cell("ml-1m", "frozen", "two_tower", "uniform", 0.1)
    for change in ({}, {"selection": "hardest"}):
        assert of.config(dataclasses.replace(uniform, **change)).factor_rows == "unsampled"
    for change in ({"selection": "fold_in"}, {"rate": 1.0}, {"selection": "", "rate": 1.0}):
        assert of.config(dataclasses.replace(uniform, **change)).factor_rows == "all"


def test_the_time_left_follows_what_cells_took():
    left = [Cell("synthetic", "full", "dlrm", seed=1)]
    row = dataclasses.asdict(left[0]) | {"status": "ok", "cell_s": 500.0}
    assert study.Pace([row], jobs=2).left(left) == pytest.approx(250)


@pytest.mark.parametrize(
    ("arguments", "why"),
    [
        (["--data=ml"], "'ml' is not one of"),
        (["--rates=2"], "a rate of 2"),
        (["--seeds=0"], "at least 1"),
    ],
)
def test_a_wrong_option_is_named(arguments, why, capsys):
    with pytest.raises(SystemExit):
        study.parse(arguments)
    assert why in capsys.readouterr().err


# Real cells, of tiny data.


class Tiny(study.Study):
    """The studies of clicks and of Epinions, made small."""

    def config(self, cell):
        config = super().config(cell)
        config.data.path = str(self.out / "raw")
        config.data.num_negatives = 20
        config.data.synthetic_rows = 4000
        config.als.update(factors=8, iterations=2)
        config.train.update(batch_rows=64, max_evaluations=1, evaluation_steps=5)
        config.evaluation.max_users = 30
        return config


def quiet(line):
    del line


@pytest.fixture(scope="module")
def tiny(tmp_path_factory):
    """(study, cells, rows) of a log of 40 users and 60 items."""
    out = tmp_path_factory.mktemp("study")
    rng = np.random.default_rng(0)
    pairs = rng.permutation(np.unique(rng.integers(0, [40, 60], (900, 2)), axis=0))
    (out / "raw").mkdir()
    lines = "".join(f"{user},{item}\n" for user, item in pairs)
    (out / "raw" / "interactions.csv.gz").write_bytes(
        gzip.compress(f"user_id,item_id\n{lines}".encode())
    )
    cells = [
        Cell("epinions", "popularity"),
        Cell("epinions", "mf_alone"),
        Cell("epinions", "mf_alone", seed=1),
        Cell("epinions", "ease"),
        Cell("epinions", "mf_alone", selection="fold_in"),
        Cell("epinions", "full", "two_tower"),
        Cell("epinions", "frozen", "two_tower", "uniform", 0.25),
    ]
    of = Tiny(out)
    return of, cells, [study.run_cell(of, cell, quiet) for cell in cells]


def of_cell(tiny, *cell):
    return tiny[2][tiny[1].index(Cell("epinions", *cell))]


def test_what_is_kept_of_each_user_gives_the_metric_of_all(tiny):
    (report,) = [study_report._gather(tiny[0].out, "epinions", tiny[2])]
    assert len(report.places) == 30
    for group in report.groups.values():
        assert group.values.mean(1) == pytest.approx(group.of("ndcg"), abs=1e-6)
    seeds = report.baseline("mf_alone").rows
    assert [row["seed"] for row in seeds] == [0, 1]
    assert seeds[0]["prepared"] == seeds[1]["prepared"]
    assert seeds[0]["evaluation"] != seeds[1]["evaluation"]


def test_differences_among_few_candidates_are_those_of_the_metrics(tiny):
    (report,) = [study_report._gather(tiny[0].out, "epinions", tiny[2])]
    header, *lines = study_report.among_few(report)
    line = next(line for line in lines if line[0] == study_report.NAMES["frozen"])
    frozen, mf = (
        np.mean([r["ndcg_sampled"] for r in tiny[2] if (r["arm"], r["selection"]) == of])
        for of in (("frozen", "uniform"), ("mf_alone", ""))
    )
    shown = line[header.index("NDCG@10 (1+K) against MF alone")]
    assert float(shown.split()[0]) == pytest.approx(frozen - mf, abs=6e-5)


def test_another_selection_keeps_as_many_rows_as_the_uniform_one(tiny):
    of, row = tiny[0], of_cell(tiny, "frozen", "two_tower", "uniform", 0.25)
    cell = Cell("epinions", "frozen", "two_tower", "hardest", 0.25)
    run = stages.Run(of.config(cell), of.out / "work" / "epinions", quiet, verify=False)
    prepared = stages.prepare_stage(run, of.out / "raw")
    factors = stages.factorize_stage(run, prepared)
    found = study.chosen_sample(run, cell, prepared)
    assert found.facts["rows"] == row["rows_used"] > 0
    ids, train = np.load(found.path / "row.npy"), open_table(prepared.path).splits["train"]
    np.testing.assert_array_equal(np.load(found.path / "item.npy"), train["item"][ids])
    loss = study.proxy_loss(run.config, factors, train)
    assert loss[ids].min() >= np.delete(loss, ids).max()


def test_folded_in_users_leave_the_others_as_they_would_be_without_them(tiny):
    """Hidden users' factors are those that the items give them, and not 0."""
    work = tiny[0].out / "work" / "epinions"
    prepared = open_table(work / "prepare" / of_cell(tiny, "popularity")["prepared"])
    hidden = selection.hidden_users(prepared.schema.num_users, 0)
    hidden[0] = False
    assert hidden.any()
    found = [read_columns(path) for path in (work / "factorize").iterdir()]
    user = [columns["user"] for columns in found]
    assert all(np.abs(table[hidden]).sum(1).min() > 0 for table in user)


def test_ease_says_what_it_chose_and_too_many_items_are_skipped(tiny, monkeypatch):
    assert "regularization" in of_cell(tiny, "ease")["chosen"]
    monkeypatch.setattr(rivals, "EASE_ITEMS", 10)
    with pytest.raises(study.SkipCell, match="items are more than 10"):
        study.run_cell(tiny[0], Cell("epinions", "ease"), quiet)


def test_a_log_without_time_has_no_most_recent_rows(tiny):
    cell = Cell("epinions", "frozen", "two_tower", "recent", 0.25)
    with pytest.raises(study.SkipCell, match="no timestamps"):
        study.run_cell(tiny[0], cell, quiet)


def test_the_report_stands_alone_and_has_every_part(tiny):
    rows = [*tiny[2], study.failure(tiny[0], Cell("epinions", "item_knn"), "why <not>")]
    made = study_report.write(tiny[0].out, rows, "this machine", "python study.py")
    text = (tiny[0].out / "report.html").read_text()
    for part in ("this machine", "against MF alone", "<svg", "Users the factorisation did not see"):
        assert part in text
    for part in ("paid back after", "why &lt;not&gt;", "EASE", "By activity"):
        assert part in text
    for outside in ("<script", "src=", "<link"):
        assert outside not in text
    assert "CADC, frozen" in study_report.summary(made)
    (mf, full) = [r for r in study_report.json_rows(made) if ", uniform" in r["case"]]
    assert mf["peer_name"] == "MF alone" and full["peer"] == pytest.approx(
        of_cell(tiny, "full", "two_tower")["ndcg"]
    )


def test_of_made_up_clicks_the_truth_of_the_test_rows_is_known(tmp_path):
    """It predicts their labels as well as it says it can; no model was trained on these."""
    of = Tiny(tmp_path)
    rows = [study.run_cell(of, Cell("synthetic", arm), quiet) for arm in ("popularity", "mf_alone")]
    report = study_report._gather(tmp_path, "synthetic", rows)
    assert paired.auc(report.labels, report.truth) == pytest.approx(
        paired.bayes_auc(report.truth), abs=0.05
    )
    assert report.quality(report.baseline("mf_alone"), report.labels >= 0) == pytest.approx(
        rows[1]["auc"], abs=1e-5
    )
    assert "true probabilities" in study_report._page([report], [], 2, "", "")


def test_the_time_of_a_movielens_row_is_that_of_its_rating(tmp_path):
    movielens = pytest.importorskip("tests.data.readers.test_movielens")
    ratings = [(u, i, 100 * u + i) for u in range(1, 7) for i in range(1, 9) if (u + i) % 4]
    lines = "".join(f"{u}\t{i}\t5\t{t}\n" for u, i, t in ratings)
    users = "".join(f"{u}|30|F|none|00000\n" for u in range(1, 7))
    items = "".join(movielens.item_100k(i, f"Film {i} (1999)", "Drama") + "\n" for i in range(1, 9))
    movielens.write(tmp_path, "100k", u_data=lines, u_user=users, u_item=items)
    config = study.Study(tmp_path).config(Cell("ml-100k", "popularity"))
    config.data.update(path=str(tmp_path), num_negatives=1)
    run = stages.Run(config, tmp_path / "work", quiet)
    prepared = stages.prepare_stage(run, tmp_path)
    table = open_table(prepared.path)
    train = table.splits["train"]
    names = read_columns(prepared.path / "vocabularies")
    expected = 100 * names["user"][train["user"] - 1] + names["item"][train["item"] - 1]
    np.testing.assert_array_equal(study.times(config, prepared.path, table), expected)


def test_ndcg_is_that_of_the_evaluation():
    ranks = np.array([0, 1, 9, 10, 500])
    expected = evaluate.of_ranks(ranks, study_report.K)[f"ndcg@{study_report.K}"]
    assert study_report.ndcg(ranks).mean() == pytest.approx(expected)
