"""The settings of an evaluation: how much is scored of these data, and what a training has fixed."""

from dataclasses import asdict, replace

from data import rows_per_class
from runtime.config import EvalConfig, InputError, differences


def choose_counts(config, given, data, *, precision):
    """The EvalConfig that suits the TrainConfig and the Data; given: the flags.

    Raises InputError, before any work, if there are too few images for the counts that the user gave.
    """
    fewest = min(int(split.labels.bincount(minlength=split.num_classes).min()) for split in (data.train, data.test))
    options = {"fewest": fewest, "classes": data.test.num_classes}
    eval_config = replace(EvalConfig.for_training(config, vars(given), **options), precision=precision)
    for split in (data.train, data.test):
        rows_per_class(split, eval_config.images_per_digit)
    rows_per_class(data.test, 2)
    if eval_config.fitted_images < data.test.num_classes:
        raise InputError(f"--fitted-images {eval_config.fitted_images}: fewer than the {data.test.num_classes} classes")
    return eval_config


def refuse_other_flags(config, given, directory):
    """Raises InputError for a flag that contradicts the TrainConfig of checkpoints that are scored again.

    --seed and --precision are the evaluation's own; of several seeds each has checkpoints of a training with that seed.
    """
    free = ("precision",) if "seeds" in given else ("seed", "precision")
    fixed = {name: value for name, value in asdict(config).items() if name not in free}
    if others := differences(fixed, vars(given)):
        raise InputError(f"{directory}: the checkpoints are of another training: {others}")
