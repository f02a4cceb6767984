"""Seven updates end near one run on all rows, on a quarter of MovieLens 100K's users."""

import json
import os
import subprocess
import sys

import pytest

from cadc_jax import configuration
from tests.program import ROOT

pytestmark = pytest.mark.slow

SCRIPT = ROOT / "benchmarks" / "update.py"


@pytest.mark.skipif(
    not (configuration.data_folder() / "ml-100k").is_dir(),
    reason="there is no ml-100k; set CADC_DATA_DIR",
)
def test_seven_updates_rank_like_one_run_on_all_rows(tmp_path):
    command = [sys.executable, SCRIPT, "--quick", "--methods=als"]
    command += ["--json", tmp_path / "rows.json"]
    paths = os.pathsep.join([str(ROOT), os.environ.get("PYTHONPATH", "")])
    subprocess.run(command, env={**os.environ, "PYTHONPATH": paths}, check=True, timeout=600)
    rows = json.loads((tmp_path / "rows.json").read_text())["rows"]
    for metric, most in (("ndcg@10", 0.01), ("recall@10", 0.02)):
        found = [row for row in rows if metric in row["metric"]]
        assert len(found) == 2  # of two splits
        for row in found:
            assert abs(row["ours"] - row["peer"]) < most, row
