"""Any log that the readers accept makes a whole run: a report, or one line that says why not."""

import collections
import csv
import dataclasses
import json
import math
import pathlib
import re
import tempfile

import hypothesis
import jax
import numpy as np
import pytest
from hypothesis import strategies as st
from ml_collections import ConfigDict

from cadc_jax import configuration, experiment
from cadc_jax.data import prepare, splits
from cadc_jax.data.negatives import pair_keys
from cadc_jax.data.raw import SPLITS, TEST, TRAIN, VALIDATION
from cadc_jax.data.readers import registry
from cadc_jax.data.table import open_table
from cadc_jax.errors import ConfigError, DataError
from cadc_jax.run.arms import TRAINED
from cadc_jax.training.step import DRAWN, LOSSES
from tests.small_runs import quiet

INTEGERS = (0, -1, 7, 2**40, 12)
TEXTS = ("ann", "Ann ", "3.5", 'b"c,d', "Zoë")
FILES = {TRAIN: "train.csv", VALIDATION: "validation.csv", TEST: "test.csv"}
FEW_EXAMPLES = hypothesis.settings(
    max_examples=8, deadline=None, derandomize=True, database=None, phases=["generate"]
)
MANY_EXAMPLES = hypothesis.settings(FEW_EXAMPLES, max_examples=16)


@dataclasses.dataclass(frozen=True)
class Row:
    """A line of a log. User and item are places in INTEGERS or TEXTS; `fold` names the file."""

    user: int
    item: int
    timestamp: int = 0
    value: float = 1.0
    label: int = 1
    fold: int = TRAIN


@dataclasses.dataclass(frozen=True)
class Job:
    """A log, and what is done with it.

    Attributes:
      rows: the lines, in the order of the files.
      columns: which of timestamp, value and label the files have; with labels it is a click log.
      ids: INTEGERS or TEXTS.
      rule: how rows are split; for 'given' each fold has a file of its own.
      factorization: 'als', 'als explicit' (learns the values), 'autoencoder' or 'sgd'.
      arm: the network that is trained.
      model: its kind.
      loss: of training.
      num_negatives: unseen items that each held-out item is ranked among.
      factor_rows: as in the configuration.
      searched: whether the configuration lacks the numbers that a search then chooses.
      data: further settings of the data.
    """

    rows: tuple[Row, ...]
    columns: frozenset[str]
    ids: tuple = INTEGERS
    rule: str = "leave_one_out"
    factorization: str = "als"
    arm: str = "cadc_frozen"
    model: str = "two_tower"
    loss: str = "bce"
    num_negatives: int = 0
    factor_rows: str = "all"
    searched: bool = False
    data: tuple[tuple[str, object], ...] = ()

    @property
    def is_ranking(self) -> bool:
        return "label" not in self.columns

    def latest(self) -> dict[tuple[int, int], int]:
        """(user, item) -> place of its latest row; equal times go by place."""
        timed = "timestamp" in self.columns
        places = sorted(range(len(self.rows)), key=lambda n: timed * self.rows[n].timestamp)
        return {(self.rows[n].user, self.rows[n].item): n for n in places}


def write(job: Job, folder: pathlib.Path) -> ConfigDict:
    """Writes the files of a log; returns the configuration of its run, as small as can be."""
    names = ["user_id", "item_id", "place", *sorted(job.columns)]
    given = job.rule == "given"
    folds = sorted({TRAIN, *(row.fold for row in job.rows)}) if given else [TRAIN]
    for fold in folds:
        with open(folder / FILES[fold], "w", newline="") as file:
            lines = csv.writer(file)
            lines.writerow(names)
            for place, row in enumerate(job.rows):
                if row.fold == fold or not given:
                    ids = job.ids[row.user], f"i{row.item}" if job.ids is TEXTS else row.item
                    lines.writerow([*ids, place, *(getattr(row, name) for name in names[3:])])
    config = configuration.default_config()
    config.update(name="any", rate=0.5, models=(job.model,), arms=(job.arm,))
    config.data.update(path=str(folder), num_negatives=job.num_negatives, split=job.rule)
    config.data.update(validation=0.25, test=0.25, **dict(job.data))
    config.data.task = "ranking" if job.is_ranking else "click"
    config.data.update({f"{SPLITS[fold]}_file": FILES[fold] for fold in folds})
    config.data.columns.update({name: name for name in job.columns})
    config.factorization, config.factor_rows = job.factorization.split()[0], job.factor_rows
    config.als.update(factors=2, iterations=1)
    config.als.feedback = "explicit" if "explicit" in job.factorization else "implicit"
    config.autoencoder.update(factors=2, passes=2, cg_steps=1, start_rounds=1)
    if not job.searched:
        config.als.update(regularization=1.0, alpha=9.0)
        config.autoencoder.regularization = 0.35
    config.sgd.update(factors=2, epochs=1)
    config.two_tower.hidden = (2,)
    config.dlrm.update(embedding_dim=2, bottom=(2,), top=(2,))
    config.train.update(batch_rows=8, max_evaluations=1, steps_per_call=1, loss=job.loss)
    config.train.negatives = int(job.is_ranking and job.loss in DRAWN)
    return config


@pytest.fixture(autouse=True)
def shared_programs(monkeypatch):
    """The jobs share compiled programs; a run forgets them, so as to time each arm alone."""
    monkeypatch.setattr(jax, "clear_caches", lambda: None)


def outcome(job: Job) -> str:
    """Runs a job and checks what it leaves: 'report', or the error in one line."""
    with tempfile.TemporaryDirectory() as name:
        folder = pathlib.Path(name)
        run = experiment.Run(write(job, folder), folder / "work", say=quiet, cores=True)
        try:
            experiment.run(run)
        except (ConfigError, DataError) as error:
            assert re.fullmatch(r".{20,}", str(error)), "an error is one line that says why"
            return str(error)
        left_out = job.rule == "users" and not TRAINED[job.arm].scores_held_out_users
        refreshed = job.factor_rows == "unsampled"
        assert_sound_report(run.workdir, arms=3 - left_out + refreshed)
        if job.is_ranking:
            assert_nothing_leaks(run.workdir)
        return "report"


def assert_sound_report(workdir: pathlib.Path, arms: int) -> None:
    def refuse(text: str) -> None:
        raise AssertionError(f"{text} is no JSON")

    results = json.loads((workdir / "results.json").read_text(), parse_constant=refuse)
    assert len(results["rows"]) == arms  # popularity, factors, the network
    for row in results["rows"]:
        assert all(map(math.isfinite, row["metrics"].values()))
        assert all(value >= 0 for value in row["seconds"].values())
    assert not re.search(r"\b(nan|inf)\b", (workdir / "report.md").read_text(), re.IGNORECASE)


def assert_nothing_leaks(workdir: pathlib.Path) -> None:
    """No held-out pair is trained on, nor known when negatives are drawn."""
    (path,) = (workdir / "prepare").iterdir()
    table = open_table(path)
    parts = table.splits.items()
    keys = {name: pair_keys(x["user"], x["item"], 1 << 20) for name, x in parts}
    train, validation, test = (keys.pop(name) for name in SPLITS)
    known = pair_keys(*table.known_pairs(), 1 << 20)
    assert sorted(np.concatenate([train, *keys.values()])) == list(known)
    assert not np.isin(np.concatenate([validation, test]), known).any()
    assert not np.isin(list(keys.values()), train).any()


# Named logs.

GRID = [(user, item) for user in range(3) for item in range(5) if item != user]
ALL = frozenset({"timestamp", "value"})
CLICKS = frozenset({"timestamp", "label"})


def with_folds(rows):
    """Of every six rows one validates and one tests."""
    folds = (TRAIN, TRAIN, VALIDATION, TRAIN, TRAIN, TEST)
    return tuple(
        dataclasses.replace(row, fold=folds[place % 6], timestamp=row.timestamp or place)
        for place, row in enumerate(rows)
    )


def grid(**fields):
    return with_folds(Row(user, item, **fields) for user, item in GRID)


TIMES_EQUAL = tuple(dataclasses.replace(row, timestamp=3) for row in grid())
RATED = tuple(
    dataclasses.replace(row, value=float(1 + place % 4)) for place, row in enumerate(grid())
)
BOTH_LABELS = tuple(
    dataclasses.replace(row, label=int(place % 3 > 0)) for place, row in enumerate(grid())
)
LOGS = {
    "an ordinary log": Job(grid(), ALL),
    "no column but the ids": Job(grid(), frozenset()),
    "repeated pairs": Job(with_folds((*grid(), *grid()[::-1])), ALL),
    "one pair": Job(with_folds([Row(0, 0)] * 12), ALL),
    "one user": Job(with_folds(Row(0, n % 5) for n in range(12)), ALL),
    "one item": Job(with_folds(Row(n % 5, 0) for n in range(12)), ALL),
    "users with one row": Job(with_folds(Row(n, n) for n in range(5)), ALL),
    "equal times": Job(TIMES_EQUAL, ALL),
    "equal values": Job(grid(value=0.0), ALL, factorization="als explicit"),
    "negative values": Job(grid(value=-2.5), ALL, factorization="als explicit"),
    "text": Job(grid(), ALL, TEXTS, factorization="sgd"),
    "users who know all": Job(
        with_folds(Row(user, item) for user in range(3) for item in range(4)), ALL, num_negatives=1
    ),
    "one row": Job((Row(0, 0),), ALL),
    "no validation file": Job(
        tuple(dataclasses.replace(row, fold=row.fold & TEST) for row in grid()), ALL
    ),
    "clicks": Job(BOTH_LABELS, CLICKS),
    "clicks of text": Job(BOTH_LABELS, CLICKS, TEXTS, factorization="sgd"),
    "repeated clicks": Job(with_folds((*BOTH_LABELS, *BOTH_LABELS)), CLICKS),
    "clicks alone": Job(grid(), CLICKS),
    "no click": Job(grid(label=0), CLICKS),
    "without numbers": Job(grid(), ALL, searched=True),
    "one user without numbers": Job(
        with_folds(Row(0, n % 5) for n in range(12)), ALL, searched=True
    ),
    "clicks without numbers": Job(BOTH_LABELS, CLICKS, searched=True),
    "encoded without numbers": Job(grid(), ALL, factorization="autoencoder", searched=True),
    "encoded": Job(grid(), ALL, factorization="autoencoder", factor_rows="unsampled"),
    "encoded clicks": Job(BOTH_LABELS, CLICKS, factorization="autoencoder"),
    "one item, encoded": Job(
        with_folds(Row(n % 5, 0) for n in range(12)), ALL, factorization="autoencoder"
    ),
    "values that count": Job(RATED, ALL, data=(("value_scale", "log"),)),
    "values that count, encoded": Job(RATED, ALL, factorization="autoencoder"),
    "values of 0": Job(grid(value=0.0), ALL),
    "ratings": Job(RATED, ALL, data=(("min_value", 2),)),
    "too high a rating": Job(RATED, ALL, data=(("min_value", 9),)),
    "rows of few users and items": Job(
        with_folds((*grid(), Row(3, 0), Row(0, 5))),
        ALL,
        data=(("min_user_rows", 2), ("min_item_rows", 2)),
    ),
    "no user of enough rows": Job(grid(), ALL, data=(("min_user_rows", 9),)),
}
EVERY = frozenset(splits.RULES)
NO_CLICKS = "data.split='users' needs data.task='ranking'"
ERRORS = {  # log -> the rules with which it makes no run, and why; with the others it makes one
    "no column but the ids": ({"time"}, "needs timestamps"),
    "one pair": (EVERY, "split has no rows"),
    "one user": ({"users"}, "validation split has no rows"),
    "one item": ({"leave_one_out", "last_share", "users"}, "validation split has no rows"),
    "users with one row": (
        {"leave_one_out", "last_share", "users", "given"},
        "split has no rows",
    ),
    "text": ({"users"}, "factorization='sgd': with data.split='users'"),
    "users who know all": (EVERY, "too few to draw 1 unseen|choose fewer"),
    "one row": (EVERY, "split has no rows|needs data with a split of its own"),
    "clicks": ({"users"}, NO_CLICKS),
    "clicks of text": ({"users"}, NO_CLICKS),
    "repeated clicks": ({"users"}, NO_CLICKS),
    "one user without numbers": ({"users"}, "validation split has no rows"),
    "clicks without numbers": ({"users"}, NO_CLICKS),
    "clicks alone": (EVERY, f"training rows have label 1|{NO_CLICKS}"),
    "no click": (EVERY, f"training rows have label 0|{NO_CLICKS}"),
    "encoded clicks": ({"users"}, NO_CLICKS),
    "too high a rating": (EVERY, "the values of all 12 rows are below data.min_value"),
    "no user of enough rows": (EVERY, "data.min_user_rows=9, .* no row is left; lower them"),
    "one item, encoded": ({"leave_one_out", "last_share", "users"}, "validation split has no rows"),
}


LONG = ("no column but the ids", "negative values", "text", "repeated clicks")  # compile most


def named():
    """Every log with every rule; without the slow tests, most logs with one rule each."""
    for number, name in enumerate(LOGS):
        for place, rule in enumerate(splits.RULES):
            is_quick = number % len(EVERY) == place and name not in LONG
            marks = () if is_quick else pytest.mark.slow
            yield pytest.param(name, rule, marks=marks)


@pytest.mark.parametrize(("name", "rule"), list(named()))
def test_a_named_log_makes_a_run_or_says_why_not(name, rule):
    rules, why = ERRORS.get(name, ((), ""))
    want = why if rule in rules else "^report$"
    assert re.search(want, outcome(dataclasses.replace(LOGS[name], rule=rule)))


@pytest.mark.parametrize("kind", ["dense", "categorical"])
def test_a_ranking_log_whose_rows_have_features_is_refused(kind, tmp_path):
    config = write(LOGS["an ordinary log"], tmp_path)
    config.data.columns[kind] = ("place",)
    with pytest.raises(ConfigError, match=r"no features of rows \(place\): leave them out"):
        experiment.run(experiment.Run(config, tmp_path / "work", say=quiet))


# Drawn logs.


@st.composite
def jobs(draw, arms=("cadc_frozen",), models=("two_tower",), losses=("bce",)):
    """Logs of up to 24 rows, more often long ones, as short ones have no rows to hold out."""
    columns = frozenset(draw(st.sets(st.sampled_from(["timestamp", "value", "label"]))))
    row = st.builds(
        Row,
        user=st.integers(0, draw(st.sampled_from([0, 2, 2, 4]))),
        item=st.integers(0, draw(st.sampled_from([0, 4, 4, 4]))),
        timestamp=st.sampled_from([0, 0, 5, -3, 10**9]),
        value=st.sampled_from([1.0, 0.5, 5.0, 0.0, -2.0]),
        label=st.integers(0, 1),
        fold=st.sampled_from([TRAIN, TRAIN, TRAIN, VALIDATION, TEST]),
    )
    least = draw(st.sampled_from([1, 12, 18, 18]))
    ranking = "label" not in columns
    rules = [rule for rule in splits.RULES if rule != "time" or "timestamp" in columns]
    return Job(
        tuple(draw(st.lists(row, min_size=least, max_size=24))),
        columns,
        ids=draw(st.sampled_from([INTEGERS, TEXTS])),
        rule=draw(st.sampled_from(rules)),
        factorization=draw(st.sampled_from(["als", "als explicit", "autoencoder", "sgd"])),
        arm=draw(st.sampled_from(arms)),
        model=draw(st.sampled_from(models)),
        loss=draw(st.sampled_from(losses)) if ranking else "bce",
        num_negatives=draw(st.sampled_from([0, 0, 0, 1, 2])),
        factor_rows=draw(st.sampled_from(["all", "all", "all", "unsampled"])),
    )


def check_drawn(settings, strategy, share):
    """Checks drawn jobs; at least this share of them ends in a report."""
    ends = collections.Counter()

    @settings
    @hypothesis.given(strategy)
    def check(job):
        ends[outcome(job)] += 1

    check()
    for end, count in ends.most_common():
        print(count, end)
    assert ends["report"] >= share * ends.total()


def test_a_drawn_log_makes_a_run_or_says_why_not():
    check_drawn(FEW_EXAMPLES, jobs(), 0.3)


@pytest.mark.slow
def test_many_drawn_logs_make_a_run_with_every_arm_model_and_loss_or_say_why_not():
    strategy = jobs(tuple(TRAINED), tuple(configuration.MODELS), LOSSES)
    check_drawn(MANY_EXAMPLES, strategy, 0.3)


# The split alone, which costs little.


@hypothesis.settings(max_examples=60)
@hypothesis.given(jobs())
def test_every_row_is_in_one_split_and_of_repeated_pairs_the_latest(job):
    with tempfile.TemporaryDirectory() as name:
        folder = pathlib.Path(name)
        config = write(job, folder)
        config.data.columns.dense = ("place",)
        config.data.num_negatives = 0
        table_path = folder / "table"
        table_path.mkdir()
        try:
            source = registry.open_raw_data("tabular", folder, config.data.to_dict())
            facts = prepare.write_table(table_path, source, configuration.prepare_config(config))
        except (ConfigError, DataError):
            return
        table = open_table(table_path)
        scale = json.loads((table_path / "statistics.json").read_text())["place"]
        dense = [np.array(rows["dense"]) for rows in table.splits.values()]
    found = [x[:, 0] * scale["std"] + scale["mean"] for x in dense]
    places = sorted(np.rint(np.concatenate(found)).astype(int).tolist())
    order = sorted(range(len(job.rows)), key=lambda n: (job.rule == "given") * job.rows[n].fold)
    in_files = dataclasses.replace(job, rows=tuple(job.rows[n] for n in order))
    want = range(len(job.rows))
    if job.is_ranking:
        want = sorted(order[n] for n in in_files.latest().values())
    assert places == list(want)
    assert facts["merged_repeats"] == len(job.rows) - len(places)
