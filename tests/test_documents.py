"""The code of the documents and examples runs, and every name that they mention exists."""

import importlib
import json
import os
import pathlib
import re
import shlex
import subprocess
import sys

import numpy as np
import pytest
from absl import flags
from ml_collections import ConfigDict

import cadc_jax
from cadc_jax import configuration, main
from cadc_jax.run import compressed
from cadc_jax.serving import export, trained

pytestmark = pytest.mark.slow

ROOT = pathlib.Path(__file__).parents[1]
PACKAGE = pathlib.Path(cadc_jax.__file__).parent  # beside the documents, or installed elsewhere
PAGES = [ROOT / "README.md", *sorted((ROOT / "docs").glob("*.md"))]
BLOCK = re.compile(r"^```python\n(.*?)^```", re.MULTILINE | re.DOTALL)
SHELL = re.compile(r"^```sh\n(.*?)^```", re.MULTILINE | re.DOTALL)
FENCED = re.compile(r"^```.*?^```", re.MULTILINE | re.DOTALL)
INLINE = re.compile(r"`([^`\n]+)`")
# The pieces of interop.md need files, and are run one by one below.
WITH_CODE = [page for page in PAGES if BLOCK.search(page.read_text()) and page.stem != "interop"]
DEFAULTS = configuration.default_config()
SECTIONS = tuple(f"{name}." for name, value in DEFAULTS.items() if isinstance(value, ConfigDict))
NOT_SETTINGS = (".py", ".txt", ".fit")  # ends of other names that begin like a section
PROGRAM = ("cadc ", "python -m cadc_jax.main ")  # how a command line begins
REPORT = "report.md"  # written by a run


def inline_code(page):
    """The pieces of code in the text of a page, outside of its blocks."""
    return INLINE.findall(FENCED.sub("", page.read_text()))


def command_lines(page):
    """The words of each call of the program on a page: in its shell blocks and in its text."""
    blocks = "\n".join(SHELL.findall(page.read_text())).replace("\\\n", " ")
    lines = [part for line in blocks.splitlines() for part in line.split("&&")]
    for line in [*map(str.strip, lines), *inline_code(page)]:
        start = next((start for start in PROGRAM if line.startswith(start)), None)
        if start is not None:
            yield shlex.split(line.removeprefix(start), comments=True)


@pytest.mark.parametrize("page", WITH_CODE, ids=lambda page: page.name)
def test_the_code_of_a_page_runs_from_top_to_bottom(page, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    names = {"__name__": "page"}
    for block in BLOCK.findall(page.read_text()):
        exec(compile(block, str(page), "exec"), names)
        if "get_config" in names:
            config = names.pop("get_config")()
            assert isinstance(config, ConfigDict)
            configuration.validate(config)


@pytest.mark.parametrize("page", PAGES, ids=lambda page: page.name)
def test_the_links_of_a_page_lead_to_files(page):
    for link in re.findall(r"\]\(([^)#]+)[^)]*\)", FENCED.sub("", page.read_text())):
        if not link.startswith("http"):
            folder = PACKAGE.parent if link.startswith("cadc_jax/") else page.parent
            assert (folder / link).exists(), link


@pytest.mark.parametrize("page", PAGES, ids=lambda page: page.name)
def test_the_files_that_a_page_names_exist(page):
    folders = (ROOT, PACKAGE.parent, PACKAGE, ROOT / "benchmarks")
    for name in inline_code(page):
        if re.fullmatch(r"[\w/]+\.(py|ipynb|md)", name) and name != REPORT:
            assert any((folder / name).exists() for folder in folders), name


@pytest.mark.parametrize("page", PAGES, ids=lambda page: page.name)
def test_the_commands_of_a_page_exist_and_take_their_flags(page):
    for words in command_lines(page):
        named = words and words[0].isidentifier() and words[0].islower()
        command = main.COMMANDS[words[0]] if named else main.COMMANDS["run"]
        known = {flag.name for flag in flags.FLAGS.get_key_flags_for_module(command)}
        for word in words:
            name = word.partition("=")[0].removeprefix("--")
            if name.startswith("config."):
                assert field_exists(name.removeprefix("config.")), words
            elif word.startswith("--") and name != "help":
                assert name in known or name.removeprefix("no") in known, words


@pytest.mark.parametrize("page", PAGES, ids=lambda page: page.name)
def test_the_settings_that_a_page_names_exist(page):
    for code in inline_code(page):
        name = re.match(r"[\w.]*", code.removeprefix("--").removeprefix("config."))[0]
        if name.startswith(SECTIONS) and not name.endswith(NOT_SETTINGS):
            assert field_exists(name), code


def field_exists(name):
    config = DEFAULTS
    for part in name.split("."):
        if part not in config:
            return False
        config = config[part]
    return True


def test_the_reference_lists_names_that_exist():
    text = (ROOT / "docs/api.md").read_text()
    entries = re.findall(r"^::: (\S+)\n(?:    options: \{members: \[(.*)\]\})?", text, re.MULTILINE)
    assert entries
    for module, members in entries:
        found = importlib.import_module(module)
        for name in filter(None, members.split(", ")):
            assert hasattr(found, name), f"{module}.{name}"


@pytest.fixture(scope="module")
def interop(click_run, tmp_path_factory):
    """A function that runs a piece of code under a heading of docs/interop.md, for its names."""
    folder = tmp_path_factory.mktemp("interop")
    plain, model = folder / "plain", folder / "model"
    given = compressed.open_compressed(click_run.parent / "compressed")
    compressed.write_plain(given, plain)
    export.write_export(trained.open_trained(click_run), model, "savedmodel")
    text = (ROOT / "docs/interop.md").read_text()
    text = text.replace("/data/plain", str(plain)).replace("/models/ads", str(model))

    def run(heading, place=0):
        section = text.split(f"\n## {heading}\n")[1].split("\n## ")[0]
        names = {}
        exec(re.findall(r"```python\n(.*?)```", section, re.DOTALL)[place], names)
        return names

    return run


def test_numpy_reads_the_compressed_data_set(interop):
    names = interop("NumPy")
    assert len(names["dots"]) == len(names["train"]["label"])
    assert np.isfinite(names["dots"]).all()


def test_pytorch_reads_batches_and_keeps_the_factors_frozen(interop):
    pytest.importorskip("torch")
    names = interop("PyTorch")
    batches = list(names["batches"])
    assert sorted(np.concatenate([batch["user"] for batch in batches])) == sorted(
        names["rows"].columns["user"]
    )
    vectors = names["users"](batches[0]["user"])
    assert vectors.shape == (len(batches[0]["user"]), 6)
    assert not names["users"].weight.requires_grad


def test_tensorflow_reads_batches(interop):
    names = interop("TensorFlow")
    sizes = [len(batch["user"]) for batch in names["batches"]]
    assert sum(sizes) == len(names["train"]["user"])


def test_the_saved_model_scores_held_out_rows(interop, click_run):
    names = interop("A trained model elsewhere")
    model = trained.open_trained(click_run)
    batch = {name: np.array(x) for name, x in names["rows"].items()}
    score = trained.make_scorer(model).score
    expected = score({**batch, "item": batch["item"][:, None]})[:, 0]
    np.testing.assert_allclose(names["scores"], expected, rtol=1e-4, atol=1e-5)
    assert interop("A trained model elsewhere", 1)["user"].tolist() == [3, 1]


def test_the_quickstart_runs_from_top_to_bottom(tmp_path):
    notebook = json.loads((ROOT / "examples/quickstart.ipynb").read_text())
    cells = [cell for cell in notebook["cells"] if cell["cell_type"] == "code"]
    assert not any(cell["outputs"] for cell in cells)
    code = "\n".join("".join(cell["source"]) for cell in cells)
    small = code.replace("synthetic_rows = 150_000", "synthetic_rows = 4_000")
    assert small != code
    done = subprocess.run(
        [sys.executable, "-c", small],
        cwd=tmp_path,  # it can be started in any folder
        env={**os.environ, "MPLBACKEND": "Agg", "TMPDIR": str(tmp_path), "PYTHONPATH": str(ROOT)},
        capture_output=True,
        text=True,
        timeout=300,
    )
    assert done.returncode == 0, done.stderr
    assert "CADC, frozen" in done.stdout
    assert "rank" in done.stdout.splitlines()[-6]
