"""What all cells of a study share, and the configuration of each cell."""

import copy
import dataclasses
import pathlib
from collections.abc import Mapping
from typing import Any

from ml_collections import ConfigDict

from cadc_jax import configuration
from cadc_jax.runtime import artifacts, manifest
from cadc_jax.runtime.mirror import Mirror
from cadc_jax.runtime.storage import Remote
from cadc_jax.study.cells import FOLD_IN, Cell

FILES = ("results.csv", "results.json", "report.html")  # in the folder of a study
QUICK: Mapping[str, Any] = {
    "data.synthetic_rows": 20_000,
    "train.max_evaluations": 3,
    "evaluation.max_users": 300,
    "als.iterations": 3,
    "sgd.epochs": 3,
}


@dataclasses.dataclass(frozen=True)
class Study:
    """The settings that all cells share.

    Attributes:
      out: folder of the study; artefacts are in `work/<configuration>/` inside it.
      configs: configurations by name.
      variants: values that a sweep sets, by the name of the variant, field -> value.
      quick: whether training is cut short, and made-up data small.
      raw: by the name of a configuration, what represents its raw files in a fingerprint.
      cache: folder of compiled programs; None for none.
      trials: settings that the search of each arm tries; 0 for the configured ones.
      remote: where results and reports are copied to, if the user has given a URL.
    """

    out: pathlib.Path
    configs: Mapping[str, ConfigDict]
    variants: Mapping[str, Mapping[str, Any]] = dataclasses.field(default_factory=lambda: {"": {}})
    quick: bool = False
    raw: Mapping[str, list] = dataclasses.field(default_factory=dict)
    cache: pathlib.Path | None = None
    trials: int = 0
    remote: Remote | None = None

    @property
    def mirror(self) -> Mirror:
        """Copies results and reports to the URL that the user has given, if any."""
        return Mirror(self.out, self.remote)

    def copy(self) -> None:
        """Copies what there is to the store: artefacts, then the results that come from them.

        Raises:
          StorageError: if the store cannot be written.
        """
        if self.remote is None:
            return
        for file in sorted((self.out / "work").glob(f"*/*/[!.]*/{manifest.NAME}")):
            self.mirror.push(file.parent)
        self.mirror.push_files(self.out / name for name in FILES)

    def config(self, cell: Cell) -> ConfigDict:
        """The configuration of a cell.

        Its seed is that of the data, which all cells share. `compute.run_cell` sets the cell's own
        seed once the data is prepared.
        """
        config = copy.deepcopy(self.configs[cell.data])
        if self.quick:
            config.update_from_flattened_dict(dict(QUICK))
        config.update_from_flattened_dict(dict(self.variants[cell.variant]))
        config.rate = cell.rate
        if cell.model:
            config.models = (cell.model,)
        if cell.selection in ("", FOLD_IN) or cell.rate == 1:
            config.factor_rows = "all"
        return config

    def settings(self, cell: Cell) -> str:
        """Fingerprint of configuration and raw files: a result counts while it is the same."""
        config = self.config(cell).to_dict()
        tuned = {"trials": self.trials} if self.trials else {}
        return artifacts.hash_of({"config": config, "raw": self.raw.get(cell.data)} | tuned)


def makes_up_rows(config: ConfigDict) -> bool:
    """Whether a run of this configuration finds no log, and makes up rows in Criteo's format."""
    data = config.data
    if data.source != "criteo" or data.path or not data.synthetic_rows:
        return False
    return not configuration.raw_path(config).exists()
