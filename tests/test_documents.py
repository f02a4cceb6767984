"""What the documents and examples show runs as it stands there, and their links lead on."""

import json
import os
import pathlib
import re
import subprocess
import sys

import numpy as np
import pytest
from ml_collections import ConfigDict

import cadc_jax
from cadc_jax import configuration
from cadc_jax.serving import export, trained

ROOT = pathlib.Path(__file__).parents[1]
PACKAGE = pathlib.Path(cadc_jax.__file__).parent  # beside the documents, or installed elsewhere
PAGES = [ROOT / "README.md", *sorted((ROOT / "docs").glob("*.md"))]
BLOCK = re.compile(r"^```python\n(.*?)^```", re.MULTILINE | re.DOTALL)
# The pieces of interop.md need files, and are run one by one below.
WITH_CODE = [page for page in PAGES if BLOCK.search(page.read_text()) and page.stem != "interop"]


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
    text = re.sub(r"^```.*?^```", "", page.read_text(), flags=re.MULTILINE | re.DOTALL)
    for link in re.findall(r"\]\(([^)#]+)[^)]*\)", text):
        if not link.startswith("http"):
            folder = PACKAGE.parent if link.startswith("cadc_jax/") else page.parent
            assert (folder / link).exists(), link


@pytest.fixture(scope="module")
def interop(click_run, tmp_path_factory):
    """Runs a piece of code of docs/interop.md, the one under a heading, and returns its names."""
    compressed, model = click_run.parent / "compressed", tmp_path_factory.mktemp("m") / "model"
    export.write_export(trained.open_trained(click_run), model, "savedmodel")
    text = (ROOT / "docs/interop.md").read_text()
    text = text.replace("/data/small", str(compressed)).replace("/models/ads", str(model))

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


def test_pytorch_reads_batches_and_has_the_factors_frozen(interop):
    pytest.importorskip("torch")
    names = interop("PyTorch")
    batches = list(names["batches"])
    assert sorted(np.concatenate([batch["row"] for batch in batches])) == sorted(
        names["rows"].columns["row"]
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
    expected = trained.scorer(model)({**batch, "item": batch["item"][:, None]})[:, 0]
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
        cwd=tmp_path,  # it may be started anywhere
        env={**os.environ, "MPLBACKEND": "Agg", "TMPDIR": str(tmp_path), "PYTHONPATH": str(ROOT)},
        capture_output=True,
        text=True,
        timeout=300,
    )
    assert done.returncode == 0, done.stderr
    assert "CADC, frozen" in done.stdout
    assert "rank" in done.stdout.splitlines()[-6]
