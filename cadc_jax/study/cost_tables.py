"""Tables of bytes and seconds: what CADC costs beside training on all rows."""

import math
from collections.abc import Iterator, Sequence

from cadc_jax.run.arms import FULL, TRAINED
from cadc_jax.study import paired
from cadc_jax.study.cells import LABELS
from cadc_jax.study.costs import Cost, cold_and_warm, mean
from cadc_jax.study.data_report import DataReport, Group
from cadc_jax.study.formats import Table

OF_SECONDS = (
    "Means over seeds, without preparing the data and without compiling; in brackets the share. "
    "CADC's seconds include the factors and the sample. 'in all': until early stopping, with "
    "evaluations. 'as many epochs': seconds of a training step times steps, for as many epochs as "
    "the training on all rows had, without evaluations and early stopping. 'to the best step': the "
    "same up to the step that validated best. Compiling: the most of a seed (cold: nothing was "
    "compiled before, unless by an earlier study) and the least (warm: programs were found again); "
    "- with one seed. Other cells were running at the same time."
)


def size_table(report: DataReport) -> Table:
    """Bytes of CADC, and after how many trainings its factorisation pays."""
    header = ["arm", "model", "rate", "all rows MB", "kept rows MB", "factors MB", "model MB"]
    header += ["factorise s", "sample s", "train s", "all rows: train s", "paid back after"]
    lines = [header]
    for names, group, full in _beside_all_rows(report):
        parts = ("train", "sample", "factors", "state")
        sizes = (f"{group.mean(f'{name}_bytes') / 1e6:.2f}" for name in parts)
        seconds = [group.mean(f"{name}_s") for name in ("factorize", "sample", "train")]
        full_seconds = full.mean("train_s")
        trainings = paired.break_even(seconds[0], full_seconds, seconds[2])
        paid = "never" if math.isinf(trainings) else f"{trainings:.2f} trainings"
        line = [*names, *sizes, *(f"{s:.1f}" for s in seconds)]
        lines.append([*line, f"{full_seconds:.1f}", paid])
    return lines


def cost_table(report: DataReport) -> Table:
    """Seconds of CADC beside those of all rows; OF_SECONDS says how they are computed."""
    header = ["arm", "model", "rate", "in all", "as many epochs", "epochs", "to the best step"]
    lines = [[*header, "ms a step", "compiling s, cold", "compiling s, warm"]]
    for names, group, full in _beside_all_rows(report):
        if not group.costs or not full.costs:
            continue
        epochs = mean(full.costs, lambda cost: cost.steps / cost.steps_per_epoch)
        sides = [
            (
                mean(costs, lambda cost: cost.total),
                _of_epochs(costs, epochs),
                mean(costs, lambda cost: cost.to_best),
                mean(costs, lambda cost: 1000 * cost.per_step),
                *cold_and_warm(costs),
            )
            for costs in (group.costs, full.costs)
        ]
        total, equal, best, step, cold, warm = zip(*sides, strict=True)
        line = [*names, _share(*total), _share(*equal), f"{epochs:.3g}", _share(*best)]
        lines.append([*line, _both(step, 2), _both(cold, 1), _both(warm, 1)])
    return lines


def _beside_all_rows(report: DataReport) -> Iterator[tuple[list[str], Group, Group]]:
    """Names of each arm of CADC with its model and rate, its group, and the model on all rows."""
    for (arm, model, rule, rate), group in report.compared:
        full = report.baseline(FULL.name, model)
        if arm in TRAINED and TRAINED[arm].takes_factors and rule == "uniform" and full is not None:
            yield [LABELS[arm], model, f"{rate:g}"], group, full


def _of_epochs(costs: Sequence[Cost], epochs: float) -> float:
    return mean(costs, lambda cost: cost.of_epochs(epochs))


def _share(ours: float, theirs: float) -> str:
    """Seconds of both, and the share that `ours` is."""
    return _both((ours, theirs), 1) + (f" ({ours / theirs:.2f})" if theirs > 0 else "")


def _both(pair: Sequence[float], digits: int) -> str:
    return " / ".join("-" if math.isnan(x) else f"{x:.{digits}f}" for x in pair)
