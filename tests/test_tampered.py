"""A folder from someone else is only data: whatever is in it, a command ends with one line.

Each case changes one thing in a compressed data set, or in a trained model. As it is, checksums no
longer fit; 'resealed', an attacker has written new ones. Either way every command that reads the
folder has to refuse it in one line, without a traceback and without waiting. `info` may also say
that it is damaged. Changes that leave a sound data set are legitimate when resealed.
"""

import hashlib
import json
import os
import pathlib
import shutil
import signal

import numpy as np
import pyarrow as pa
import pytest
from pyarrow import parquet

from cadc_jax import experiment
from cadc_jax.errors import CadcError
from cadc_jax.run import compressed
from cadc_jax.run.context import Run
from cadc_jax.runtime import manifest
from cadc_jax.serving import export, folder_info, raw_ids, recommend
from cadc_jax.serving.trained import open_trained
from tests.program import assert_one_line, cadc
from tests.small_runs import click_config, quiet, ranking_config

LIMIT = 10  # seconds that a command may take before it counts as hanging
WRONG = (None, -1, "x", [], True, 1 << 70, ["\x1b[2J"])  # for fields of any kind but a list


# What may be changed. A change takes the folder, and returns whether the result is sound.


def field(path, *values):
    """Changes of a field of the manifest: it is deleted, or gets each of the values."""

    def changed(value):
        def change(folder):
            content = json.loads((folder / manifest.NAME).read_text())
            inner = content
            for name in path[:-1]:
                inner = inner[name]
            if value is field:
                del inner[path[-1]]
            else:
                inner[path[-1]] = value
            (folder / manifest.NAME).write_text(json.dumps(content))

        return change

    for value in (field, *values):
        shown = "deleted" if value is field else repr(value)[:20]
        yield f"{'.'.join(map(str, path))}={shown}", changed(value)


def in_json(name, path, *values):
    """The same for another JSON file."""
    for label, change in field(path, *values):

        def change_file(folder, change=change):
            file = folder / name
            kept = folder / manifest.NAME
            kept.rename(folder / "kept")
            file.rename(kept)
            change(folder)
            kept.rename(file)
            (folder / "kept").rename(kept)

        yield f"{name}:{label}", change_file


def parquet_file(name, label, function):
    """A change of the Arrow table in a Parquet file."""

    def change(folder):
        written = function(parquet.read_table(folder / name))
        parquet.write_table(written, folder / name, store_schema=False)

    return f"{name}:{label}", change


def column(name, column, label, function):
    """A change of the NumPy array of a column of numbers."""

    def changed(table):
        place = table.column_names.index(column)
        return table.set_column(place, column, pa.array(function(table[column].to_numpy())))

    return parquet_file(name, f"{column} {label}", changed)


def bytes_column(name, column, label, function, dtype=np.int32):
    """A change of the NumPy array [N, ...] in a column of bytes."""

    def changed(table):
        place = table.column_names.index(column)
        values = np.array([np.frombuffer(row, dtype) for row in table[column].to_pylist()])
        values = np.ascontiguousarray(function(values))
        kind, data = pa.binary(values.nbytes // len(values)), pa.py_buffer(values)
        rows = pa.FixedSizeBinaryArray.from_buffers(kind, len(values), [None, data])
        return table.set_column(place, column, rows)

    return parquet_file(name, f"{column} {label}", changed)


def with_first(value):
    """The same array with another first number."""

    def function(values):
        values = values.copy()
        values.reshape(-1)[0] = value
        return values

    return function


def file(name, label, function):
    """A change of a file's bytes."""

    def change(folder):
        path = folder / name
        content = path.read_bytes()
        path.unlink()
        function(path, content)

    return f"{name}:{label}", change


def files_as_objects(name):
    """What may stand where a file should."""
    yield file(name, "missing", lambda path, content: None)
    yield file(name, "empty", lambda path, content: path.write_bytes(b""))
    yield file(name, "cut", lambda path, content: path.write_bytes(content[: len(content) // 2]))
    yield file(name, "longer", lambda path, content: path.write_bytes(content + b"\0"))
    yield file(name, "noise", lambda path, content: path.write_bytes(bytes(range(256)) * 8))
    yield file(name, "fifo", lambda path, content: os.mkfifo(path))
    yield file(name, "folder", lambda path, content: path.mkdir())
    yield file(name, "zeros", lambda path, content: path.symlink_to("/dev/zero"))


def of_a_parquet_file(name, column):
    """Changes of the structure of a Parquet file, all in its column `column`."""

    def put(values):
        def changed(table):
            return table.set_column(table.column_names.index(column), column, values(table))

        return changed

    one = {
        "null": lambda table: pa.array([None] * len(table), table[column].type),
        "text": lambda table: pa.array(["x"] * len(table)),
        "bool": lambda table: pa.array([True] * len(table)),
        "list": lambda table: pa.array([[1]] * len(table)),
        "nested": lambda table: pa.array([{"a": 1}] * len(table)),
        "date": lambda table: pa.array([0] * len(table), pa.date32()),
    }
    for label, values in one.items():
        yield parquet_file(name, f"{column} of {label}", put(values))
    yield parquet_file(name, f"no {column}", lambda table: table.drop_columns([column]))
    yield parquet_file(name, "a row less", lambda table: table.slice(1))
    yield parquet_file(name, "no rows", lambda table: table.slice(0, 0))
    yield parquet_file(
        name, "one more", lambda table: table.append_column("x", pa.array([1] * len(table)))
    )
    yield parquet_file(name, "twice", lambda table: table.append_column(column, table[column]))
    yield parquet_file(name, "none", lambda table: table.select([]))


INTEGERS = (
    ("rows.parquet", "user"),
    ("rows.parquet", "item"),
    ("held_out/validation.parquet", "user"),
    ("held_out/test.parquet", "item"),
)


def of_a_manifest():
    """Changes of what every manifest has."""
    yield from field(("settings",), *WRONG)
    yield from field(("settings", "stage"), *WRONG, "prepare", "export", "evaluate")
    yield from field(("settings", "format"), *WRONG, 1, 3, 99)
    yield from field(("facts",), *WRONG)
    yield from field(("seconds",), None, -1, "x", [], True)
    yield from field(("versions",), *WRONG)
    yield from field(("files",), *WRONG, {}, {"../../x": {"bytes": 0, "sha256": ""}})
    yield from files_as_objects(manifest.NAME)

    def huge(folder):
        os.truncate(folder / manifest.NAME, 1 << 33)

    yield "manifest.json:8 GB", huge
    for text in ("NaN", "1e999", '"a": 1, "a": 2', "[" * 5000 + "]" * 5000):

        def odd(folder, text=text):
            content = (folder / manifest.NAME).read_text()
            (folder / manifest.NAME).write_text('{"odd": ' + text + "," + content[1:])

        yield f"manifest.json:{text[:10]}", odd


def of_a_compressed_set(task):
    """Changes of a compressed data set."""
    yield from of_a_manifest()
    yield from field(("settings", "config"), *WRONG, {"name": "../../x"}, {"models": ["bert"]})
    for name, values in {
        "name": ("../../x", "/tmp/x", "", "a/b", None, 3),
        "rate": (0, -1, 2, "x", None),
        "factorization": ("svd", None, 1),
        "models": ("dlrm", ["bert"], [1], None),
        "arms": (["cadc"], "cadc_frozen", None),
        "data": WRONG,
        "train": WRONG,
        "als": WRONG,
        "devices": WRONG,
        "seed": (-1, "x", 1 << 70),
    }.items():
        changes = list(field(("settings", "config", name), *values))
        yield from changes[1:]  # without it the default is taken
    facts = ("facts", "facts")
    yield from field(("facts", "raw"), *WRONG)
    yield from field(("facts", "raw", "stored"), None, -1, "x", [])
    yield from field(("facts", "seconds"), *WRONG)
    yield from field((*facts, "prepared"), *WRONG)
    yield from field((*facts, "prepared", "rows"), *WRONG)
    yield from field((*facts, "prepared", "rows", "test"), *WRONG, 0, 10**6)
    yield from field((*facts, "prepared", "reader"), *WRONG)
    yield from field((*facts, "factors"), *WRONG)
    yield from field((*facts, "sample", "rows"), None, -1, "x", 1, 10**6)
    schema = "schema.json"
    other = "click" if task == "ranking" else "ranking"
    for name in ("task", "num_users", "num_items", "context", "item_content", "hashed"):
        yield from in_json(schema, (name,), *WRONG, 3, 0, other)
    yield from in_json(schema, ("context", "categorical"), None, "x", [1], ["a"], ["../x"])
    yield from in_json(schema, ("context", "vocabulary_sizes"), None, [0], [-1], [1 << 40])
    for name in (schema, "statistics.json", "factors/user.parquet", "rows.parquet"):
        yield from files_as_objects(name)
    for name in ("rows.parquet", "held_out/test.parquet"):
        yield from of_a_parquet_file(name, "item")
    yield from of_a_parquet_file("factors/item.parquet", "item")
    yield from of_a_parquet_file("content/items.parquet", "count")
    yield from of_a_parquet_file("vocabularies/item.parquet", "value")
    for name, ids in INTEGERS:
        for value in (-1, 1 << 20, np.iinfo(np.int32).min):
            yield column(name, ids, f"first {value}", with_first(value))
        yield column(name, ids, "int64", lambda x: x.astype(np.int64))
    for side in ("user", "item"):
        name = f"factors/{side}.parquet"
        for value in (np.nan, np.inf):
            yield column(name, f"{side}_scale", f"first {value}", with_first(value))
        yield column(name, f"{side}_scale", "huge", lambda x: np.full_like(x, 3e38))
        yield column(name, f"{side}_scale", "float64", lambda x: x.astype(np.float64))
        yield bytes_column(name, side, "narrower", lambda x: x[:, :-1], np.int8)
        yield bytes_column(name, side, "beyond", with_first(-128), np.int8)
    yield column("content/items.parquet", "count", "negative", with_first(-1))
    if task == "ranking":
        for ids in ("user", "item"):
            yield column("mask.parquet", ids, "order", lambda x: x[::-1].copy())
            yield column("mask.parquet", ids, "beyond", lambda x: x + (1 << 20))
            yield column("mask.parquet", ids, "negative", with_first(-1))
        yield from of_a_parquet_file("mask.parquet", "user")
        held_out = "held_out/test.parquet"
        yield bytes_column(held_out, "negatives", "beyond", with_first(1 << 20))
        yield bytes_column("content/items.parquet", "bags", "beyond", with_first(1 << 20))
        yield column("rows.parquet", "value", "nan", with_first(np.nan))
    else:
        yield column("rows.parquet", "label", "half", with_first(0.5))
        yield column("rows.parquet", "categorical.C1", "beyond", with_first(1 << 20))
        yield column("held_out/test.parquet", "dense.I1", "inf", with_first(np.inf))

    def unsampled(folder):
        shutil.copytree(folder / "factors", folder / "x")
        (folder / "x").rename(folder / "factors" / "unsampled")

    yield "surplus factors/unsampled", unsampled


def of_a_trained_model():
    """Changes of the artefact of a trained model."""
    yield from of_a_manifest()
    for name in ("arm", "model"):
        yield from field(("facts", name), *WRONG, "cadc", "bert")
    yield from field(("facts", "history"), None, [], [{}], [{"step": 0}], "x", -1)
    yield from field(("facts", "best_step"), None, -1, "x")
    yield from field(("settings", "model"), *WRONG, ["bert", {}], ["dlrm"], ["two_tower", []])
    yield from field(("settings", "model", 1, "hidden"), -1, "x", [-1], [8, 8], [1 << 40])
    yield from field(("settings", "model", 1), {"x": 1}, {"hidden": [3]}, None)
    yield from field(("settings", "prepared"), None, "x", "../x", 1)
    for name in ("_METADATA", "manifest.ocdbt"):
        yield from files_as_objects(f"state/{name}")


def sealed(folder):
    """Writes the checksums of what is there into a manifest, if it can hold them."""
    file = folder / manifest.NAME
    if file.is_file() and file.stat().st_size > 1 << 20:
        return
    try:
        content = json.loads(file.read_bytes()) if file.is_file() else None
        files = manifest.checksums(folder)
        if file.is_symlink() or not isinstance(content.get("files"), dict):
            raise TypeError
    except (CadcError, ValueError, TypeError, AttributeError, RecursionError, MemoryError):
        return
    if content["files"] and not any(name.startswith("..") for name in content["files"]):
        content["files"] = {name: x for name, x in files.items() if name != manifest.NAME}
    content.pop("sha256", None)
    text = json.dumps(content, sort_keys=True, separators=(",", ":"))
    file.write_text(json.dumps(content | {"sha256": hashlib.sha256(text.encode()).hexdigest()}))


# What reads the folder.


def outcome(command, limit=LIMIT):
    """'one line', or what else came of a command within `limit` seconds."""

    def hanging(signum, frame):
        raise TimeoutError(f"more than {limit} s")

    before = signal.signal(signal.SIGALRM, hanging)
    signal.alarm(limit)
    try:
        done = command()
        return "DAMAGED" if "DAMAGED" in str(done) else "done"
    except CadcError as error:
        return "one line" if "\n" not in str(error) else f"several lines: {error}"
    except Exception as error:
        return f"{type(error).__name__}: {error}"
    finally:
        signal.alarm(0)
        signal.signal(signal.SIGALRM, before)


def commands(folder, scratch):
    """The commands that read a compressed data set, by name."""

    def train():
        given = compressed.open_compressed(folder)
        experiment.train_from(Run(given.config, scratch / "work", quiet), given)

    def recommended():
        trained = open_trained(folder, scratch / "work", arm="mf_alone")
        first = raw_ids.of_table(trained.prepared, trained.source, "user").of(np.array([1]))[0]
        return recommend.show(trained, str(first), 3)

    def exported():
        trained = open_trained(folder, scratch / "work", arm="mf_alone")
        shutil.rmtree(scratch / "export", ignore_errors=True)
        return export.write_export(trained, scratch / "export", "npz")

    return {
        "train": train,
        "recommend": recommended,
        "export": exported,
        "verify": lambda: folder_info.check_artifact(folder),
        "info": lambda: folder_info.explain(folder),
    }


def commands_of_a_model(workdir, folder, scratch):
    """The commands that read a trained model in a work folder, by name."""
    return {
        "recommend": lambda: recommend.show(open_trained(workdir, arm="cadc_frozen"), "ann05", 3),
        "export": lambda: export.write_export(
            open_trained(workdir, arm="cadc_frozen"), scratch / "export", "npz"
        ),
        "verify": lambda: folder_info.check_artifact(folder),
        "info": lambda: folder_info.explain(folder),
    }


def wrong_outcomes(change, whole, folder, commands, resealed, may=("info",)):
    """Outcomes that must not be, of all commands on a changed copy of a folder.

    The commands `may` show the damage instead of an error.
    """
    shutil.rmtree(folder, ignore_errors=True)
    shutil.copytree(whole, folder)
    change(folder)
    if resealed:
        sealed(folder)
    found = {name: outcome(command) for name, command in commands.items()}
    allowed = {name: {"one line", "DAMAGED"} if name in may else {"one line"} for name in found}
    return {name: came for name, came in found.items() if came not in allowed[name]}


def compress(config, path):
    """A compressed data set in the folder `path`."""
    experiment.compress(Run(config, path / "work", quiet), path / "whole")
    return path / "whole"


@pytest.fixture(scope="module")
def ranking_set(tmp_path_factory):
    """A compressed data set of the ranking task."""
    path = tmp_path_factory.mktemp("ranking")
    return compress(ranking_config(path / "raw"), path)


@pytest.fixture(scope="module", params=["ranking", "click"])
def small(request, tmp_path_factory):
    """A compressed data set, a place for changed copies of it, and its task."""
    path = tmp_path_factory.mktemp(request.param)
    if request.param == "ranking":
        return request.getfixturevalue("ranking_set"), path / "copy", "ranking"
    return compress(click_config(), path), path / "copy", "click"


@pytest.mark.parametrize("resealed", [False, True], ids=["as it is", "resealed"])
def test_a_changed_data_set_is_refused_by_every_command(small, tmp_path, resealed):
    whole, copy, task = small
    wrong, cases = {}, dict(of_a_compressed_set(task))
    assert len(cases) > 250
    each = {"ranking": 2, "click": 3}[task] if resealed else 1  # all would take a minute
    for label, change in list(cases.items())[::each]:
        found = wrong_outcomes(change, whole, copy, commands(copy, tmp_path), resealed)
        if found:
            wrong[label] = found
    assert not wrong
    assert not pathlib.Path("/tmp/owned").exists()


def test_a_sound_data_set_that_was_resealed_is_legitimate(small, tmp_path):
    whole, copy, _ = small
    shutil.rmtree(copy, ignore_errors=True)
    shutil.copytree(whole, copy)
    column("factors/user.parquet", "user_scale", "doubled", lambda x: x * 2)[1](copy)
    sealed(copy)
    made = commands(copy, tmp_path)
    found = {name: outcome(command, limit=300) for name, command in made.items()}  # it trains
    assert set(found.values()) == {"done"}


def test_results_of_one_data_set_are_not_taken_for_those_of_another(small, tmp_path):
    whole, copy, _ = small
    shutil.rmtree(copy, ignore_errors=True)
    shutil.copytree(whole, copy)
    column("factors/item.parquet", "item_scale", "negative", np.negative)[1](copy)
    sealed(copy)
    one, other = (
        compressed.unpack(Run(given.config, tmp_path, quiet), given)
        for given in map(compressed.open_compressed, (whole, copy))
    )
    for name in ("prepared", "factors", "sample"):
        assert getattr(one, name).fingerprint != getattr(other, name).fingerprint


@pytest.mark.parametrize("resealed", [False, True], ids=["as it is", "resealed"])
def test_a_changed_model_is_refused_by_every_command(ranking_run, tmp_path, resealed):
    workdir = tmp_path / "work"
    shutil.copytree(ranking_run, workdir)
    (folder,) = (
        path
        for path in (workdir / "train").iterdir()
        if manifest.read(path).facts["arm"] == "cadc_frozen"
    )
    folder.rename(tmp_path / "whole")
    wrong, cases = {}, dict(of_a_trained_model())
    assert len(cases) > 100
    used = commands_of_a_model(workdir, folder, tmp_path)
    if resealed:  # whether a model fits its table is seen where both are used
        del used["verify"], used["info"]
    for label, change in cases.items():
        found = wrong_outcomes(change, tmp_path / "whole", folder, used, resealed)
        if found:
            wrong[label] = found
    assert not wrong


COMMANDS = {
    "train": lambda copy, out: ("train", f"--from={copy}", f"--workdir={out}"),
    "recommend": lambda copy, out: (
        *("recommend", f"--from={copy}", f"--workdir={out}"),
        *("--arm=mf_alone", "--users=all", f"--out={out}.parquet"),
    ),
    "export": lambda copy, out: (
        *("export", f"--from={copy}", f"--workdir={out}"),
        *("--arm=mf_alone", f"--out={out}"),
    ),
    "verify": lambda copy, out: ("verify", f"--from={copy}"),
}
AS_COMMANDS = [
    ("settings.config.name='../../x'", "train"),
    ("settings.config.name='/tmp/x'", "verify"),
    ("settings.stage='prepare'", "recommend"),
    ("settings.format=99", "train"),
    ("files={}", "export"),
    ("files={'../../x': {'bytes'", "verify"),
    ("manifest.json:fifo", "train"),
    ("manifest.json:zeros", "verify"),
    ("manifest.json:8 GB", "recommend"),
    ("manifest.json:NaN", "export"),
    ("facts.facts.prepared.rows.test=1000000", "train"),
    ("schema.json:num_items=3", "train"),
    ("schema.json:num_items=3", "recommend"),
    ("rows.parquet:item first 1048576", "train"),
    ("rows.parquet:fifo", "verify"),
    ("factors/user.parquet:user_scale first nan", "recommend"),
    ("factors/item.parquet:item of text", "export"),
    ("factors/item.parquet:twice", "verify"),
    ("factors/item.parquet:one more", "train"),
    ("mask.parquet:item beyond", "recommend"),
]


@pytest.mark.slow
@pytest.mark.parametrize(("label", "command"), AS_COMMANDS)
def test_commands_end_with_one_line(ranking_set, tmp_path, label, command):
    copy, cases = tmp_path / "copy", dict(of_a_compressed_set("ranking"))
    shutil.copytree(ranking_set, copy)
    cases[label](copy)
    sealed(copy)
    before = sorted(tmp_path.glob("*"))
    done = cadc(*COMMANDS[command](copy, tmp_path / "out"), cwd=tmp_path)
    assert_one_line(done, str(copy))
    assert sorted(path for path in tmp_path.glob("*") if path.name != "out") == before
    assert not list((tmp_path / "out").glob("train/*"))
