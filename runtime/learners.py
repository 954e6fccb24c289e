"""Checkpoints of a Learner, which is a method or the classifier: written, read, and found in a directory."""

import hashlib
import os
import re
import shutil
from contextlib import suppress
from dataclasses import asdict
from itertools import product
from pathlib import Path
from typing import NamedTuple

import torch

from runtime.checkpoint import invalid_contents, load_checkpoint, load_json, remove, save_checkpoint, save_file
from runtime.config import InputError, TrainConfig, about, differences, image_differences, portable_settings
from runtime.distributed import own_shard, rank
from runtime.tasks import TASKS

LENGTHENED = "lengthened"  # in a state: being lengthened; in a summary: of a run that was longer afterwards
NUMBERED = re.compile("_(epoch|state)[_.]")  # from there on a name is as OURS are; others are the user's own
OURS = re.compile(r"_(epoch_\d+\.(pt|png)|state(_\d+(_rows_\d+_of_\d+)?\.pt|\.json))")


def our_files(directory, *patterns):
    """The files in a directory whose names fit one of the patterns, without the user's own."""
    paths = [path for pattern in patterns for path in sorted(Path(directory).glob(pattern))]
    places = {path: NUMBERED.search(path.name) for path in paths}
    return [path for path, place in places.items() if not place or OURS.fullmatch(path.name, place.start())]


def epoch_of(path):
    """The epoch in the name of a checkpoint or figure."""
    return int(path.stem.rpartition("_")[2])


def state_paths(directory, learner, epoch, ranks):
    """The files of tensors of a learner's state after an epoch: that of rank 0, then the rows of every rank."""
    rows = [f"_rows_{number}_of_{ranks}" for number in range(ranks)] if learner.sharded else []
    return [Path(directory) / f"{learner.prefix}_state_{epoch}{part}.pt" for part in ("", *rows)]


def load_state(directory, learner, saved):
    """Gives the learner the state that `{prefix}_state.json` names, of any number of ranks; saved: its contents.

    Raises InputError for files that do not fit.
    """
    ranks = saved["ranks"]
    path, *row_paths = state_paths(directory, learner, saved["epoch"], ranks)
    state, shard = load_checkpoint(path), own_shard()
    rows = shard.rows(learner.count)
    for other, row_path in enumerate(row_paths):
        if ranks != shard.size or other == shard.rank:
            part, here = load_checkpoint(row_path), rows % ranks == other
            with invalid_contents(path):
                for name, values in part.items():
                    state.setdefault(name, values.new_zeros(len(rows), *values.shape[1:]))
                    state[name][here] = values[rows[here] // ranks]
    with invalid_contents(path):
        learner.load_state_dict(state)
    for optimizer in learner.optimizers:
        for group in getattr(optimizer, "param_groups", ()):
            group["capturable"] = False  # as of a run on CUDA, whose step was recorded


def saved_epochs(epochs):
    """The epochs whose checkpoints and figures a run of `epochs` keeps: 1, 5, 10, 20, 30 and the last."""
    return sorted({epoch for epoch in (1, 5, 10, 20, 30) if epoch < epochs} | {epochs})


def save_learner(learner, directory, row):
    """Writes the checkpoint after an epoch that has one, unless the file is it already. row: of the history.

    Without times: equal runs write the same.
    """
    if not (name := learner.checkpoint_name(row["epoch"])):
        return
    index, weights = learner.shard.gather(learner.train_index, learner.count), learner.weights()
    if rank() == 0:
        metrics = {key: value for key, value in row.items() if key not in ("training_seconds", "seconds")}
        checkpoint = {"method": learner.name, "config": asdict(learner.config), "epoch": row["epoch"]}
        checkpoint |= {"weights": weights, "image_shape": list(learner.images.shape[1:]), "train_index": index.cpu()}
        if not _is_there(Path(directory) / name, checkpoint, learner):
            save_checkpoint(Path(directory) / name, {**checkpoint, "images": learner.digest, "metrics": metrics})


def _is_there(path, checkpoint, learner):
    """Whether a file holds a learner's checkpoint: to write it again may change the bytes that an evaluation knows."""
    with suppress(InputError):
        there, weights = read_checkpoint(path, learner.name, config_class=type(learner.config)), checkpoint["weights"]
        portable = portable_settings(there.get("images"), learner.digest)
        same = there["epoch"] == checkpoint["epoch"] and torch.equal(there["train_index"], checkpoint["train_index"])
        same = same and not differences(asdict(there["config"]), checkpoint["config"], but=portable)
        same = same and there["weights"].keys() == weights.keys()
        return same and all(torch.equal(there["weights"][name], weights[name].cpu()) for name in weights)
    return False


def read_checkpoint(path, name, *, config_class=TrainConfig, device="cpu"):
    """The dict of a checkpoint of the learner called `name`, its "config" a config_class. Else raises InputError."""
    checkpoint = load_checkpoint(path, device=device)
    if checkpoint.get("method") != name:
        other = "but a state, or weights from elsewhere (see docs/own_data.md)"
        other = f"but of {checkpoint['method']}" if "method" in checkpoint else other
        raise InputError(f"{path}: not a checkpoint of {name}, {other}")
    with invalid_contents(path):
        config = config_class(**checkpoint["config"])
        sizes = checkpoint["train_index"].shape == (config.train_size,) and len(checkpoint["image_shape"]) == 3
        if not sizes or not isinstance(checkpoint["epoch"], int):
            raise ValueError
        if not all(tensor.isfinite().all() for tensor in checkpoint["weights"].values()):
            raise ValueError("weights that are not finite: the training has diverged")
    return {**checkpoint, "config": config, "train_index": checkpoint["train_index"].long()}


def lengthen(owned, run_config, epochs):
    """Rewrites the checkpoints of a shorter run as if it had been started with `epochs` epochs. May be done twice.

    First states and summary say the new number: from then on the shorter run is no longer there to be continued.
    Checkpoints and figures of epochs that the longer run does not keep are deleted, and so are tables, figures and page
    of the end of the shorter one. Raises InputError for a damaged file, before anything is changed; RunError for one
    that cannot be removed: then --resume takes it up again.
    """
    directory, summary = run_config.checkpoint_dir, Path(run_config.results_dir) / owned.summary
    prefixes, kept = [learner.prefix for learner in owned.learners], saved_epochs(epochs)
    checkpoints = our_files(directory, *(f"{prefix}_epoch_*.pt" for prefix in prefixes))
    for path in our_files(directory, *(f"{prefix}_state_*.pt" for prefix in prefixes)):
        load_checkpoint(path)
    states = our_files(directory, *(f"{prefix}_state.json" for prefix in prefixes))
    for path in (*states, summary) if summary.exists() else states:
        known = load_json(path)
        longer = {name: {**known[name], "epochs": epochs} for name in ("settings", "train_config") if name in known}
        for name in ("seconds", "scored_epoch") if path == summary else ():
            known.pop(name, None)
        save_file(path, {**known, **longer, LENGTHENED: True})
    shutil.rmtree(summary.with_name(TASKS), ignore_errors=True)
    results = (path for path in owned.results_in(run_config) if path != summary)
    remove(path for path in (*results, *checkpoints) if "_epoch_" not in path.name or epoch_of(path) not in kept)
    for path in filter(Path.exists, checkpoints):
        try:
            checkpoint = load_checkpoint(path)
        except InputError:  # the last one, which the restored run writes again
            continue
        save_checkpoint(path, {**checkpoint, "config": {**checkpoint["config"], "epochs": epochs}})
    for path in states:
        save_file(path, {name: value for name, value in load_json(path).items() if name != LENGTHENED})


class Checkpoints(NamedTuple):
    """The checkpoints that one training of several methods has left in a directory."""

    methods: tuple  # their classes
    directory: str
    config: TrainConfig
    epochs: list  # those of which every method's checkpoint is there, rising
    train_index: torch.Tensor  # (N,), the training images' rows in the data set
    images: dict | None = None  # Data.digest of the training; None in older checkpoints

    def digests(self):
        """{name of a checkpoint: its SHA-256}."""
        paths = [self.path(method, epoch) for epoch, method in product(self.epochs, self.methods)]
        return {path.name: hashlib.sha256(path.read_bytes()).hexdigest() for path in paths if path.exists()}

    def scored(self):
        """What is scored: the last epoch, the methods' names, the digest of the images."""
        return {"epoch": self.epochs[-1], "methods": [method.name for method in self.methods], "images": self.images}

    def path(self, method, epoch):
        return Path(self.directory) / f"{method.prefix}_epoch_{epoch}.pt"

    def load(self, epoch, data):
        """Every method after the epoch, in evaluation mode and float32.

        Raises InputError for a file that is unreadable, or of another training than the first method's last one.
        """
        loaded, last = [], self.path(self.methods[0], self.epochs[-1]).name
        for method_class in self.methods:
            path = self.path(method_class, epoch)
            checkpoint = read_checkpoint(path, method_class.name, device=data.device)
            if checkpoint["epoch"] != epoch:
                raise InputError(f"{path}: of epoch {checkpoint['epoch']}")
            free = portable_settings(checkpoint.get("images"), data.digest)
            others = differences(asdict(checkpoint["config"]), asdict(self.config), but=free)
            others = others.replace(" here", f" in {last}")
            if not (others or torch.equal(checkpoint["train_index"].cpu(), self.train_index.cpu())):
                others = "its training images are others"
            if others := others or image_differences(self.images, checkpoint.get("images")):
                raise InputError(f"{path}: of another training than {last}: {others}")
            with invalid_contents(path):
                method = method_class(checkpoint["config"], data)
                method.load_weights(checkpoint["weights"])
            method.model.precision = "float32"
            loaded.append(method.eval())
        return loaded


def find_checkpoints(methods, directory):
    """The Checkpoints of these methods in the directory. Raises InputError if no epoch has those of all methods."""
    with about(f"--checkpoint-dir {directory}"), suppress(FileNotFoundError):
        os.listdir(directory)  # without the right to read it, it would seem to be empty
    epochs_of = {}
    for method in methods:
        paths = our_files(directory, f"{method.prefix}_epoch_*.pt")
        epochs_of[f"{method.prefix}_epoch_N.pt"] = {epoch_of(path) for path in paths}
    epochs = sorted(set.intersection(*epochs_of.values()))
    if not epochs:
        absent = [name for name, known in epochs_of.items() if not known]
        there = f"no checkpoints {' or '.join(absent)}" if absent else f"no epoch that has {' and '.join(epochs_of)}"
        if any(Path(directory).glob("seed_*")):
            there += "; --seeds N takes those in seed_N"
        raise InputError(f"{directory}: {there}")
    last = read_checkpoint(Path(directory) / f"{methods[0].prefix}_epoch_{epochs[-1]}.pt", methods[0].name)
    return Checkpoints(methods, directory, last["config"], epochs, last["train_index"], last.get("images"))
