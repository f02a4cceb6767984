"""The arms of a comparison: ways to score items, each a row of the table of results.

Nothing else in the package knows an arm's name.
"""

import dataclasses

FACTOR_TABLES = frozenset({"user", "item"})


@dataclasses.dataclass(frozen=True)
class Arm:
    """One way to score items.

    Attributes:
      name: in configurations and results.
      label: for people.
      rows: training rows that its network sees: 'all', 'sample', or None if it has no network.
      from_factors: tables that come from the factorisation; others start at random.
      frozen: tables that training does not change.
    """

    name: str
    label: str
    rows: str | None
    from_factors: frozenset[str] = frozenset()
    frozen: frozenset[str] = frozenset()

    @property
    def takes_sample(self) -> bool:
        """Whether its network sees the kept rows alone."""
        return self.rows == "sample"

    @property
    def takes_factors(self) -> bool:
        """Whether it needs the factorisation."""
        return bool(self.from_factors)

    @property
    def is_factors(self) -> bool:
        """Whether it is the factors themselves, without a network."""
        return self.rows is None and self.takes_factors

    @property
    def scores_held_out_users(self) -> bool:
        """Whether it can score users without training rows (data.split='users').

        Their vectors come from the factorisation alone. Random ones stay what they were drawn as.
        """
        return self.rows is None or self.takes_factors

    @property
    def embeddings(self) -> str:
        """What its embeddings are: 'frozen', 'trainable' (they start from factors) or 'random'."""
        if not self.takes_factors:
            return "random"
        return "frozen" if self.frozen else "trainable"


POPULARITY = Arm("popularity", "popularity", None)
MF_ALONE = Arm("mf_alone", "MF alone", None, FACTOR_TABLES)
# With factor_rows='unsampled': the factors that a frozen arm predicts with.
MF_REFRESHED = Arm("mf_refreshed", "MF, refreshed", None, FACTOR_TABLES)
BASELINES = {arm.name: arm for arm in (POPULARITY, MF_ALONE, MF_REFRESHED)}

FULL = Arm("full", "full data", "all")
SAMPLE = Arm("sample", "sample, no factors", "sample")
CADC_FROZEN = Arm("cadc_frozen", "CADC, frozen", "sample", FACTOR_TABLES, FACTOR_TABLES)
CADC_TRAINABLE = Arm("cadc_trainable", "CADC, trainable", "sample", FACTOR_TABLES)
TRAINED = {arm.name: arm for arm in (FULL, SAMPLE, CADC_FROZEN, CADC_TRAINABLE)}

ARMS = BASELINES | TRAINED
