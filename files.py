"""Files that appear whole or not at all, and checkpoints that cannot run code."""

import csv
import json
import os
import pickle
from contextlib import contextmanager
from pathlib import Path

import numpy as np
import torch


class InputError(Exception):
    """Something that the user can put right; its text is the one line that the scripts print."""


@contextmanager
def whole_file(path):
    """Yields the path of a file beside `path` to write to, and renames it onto `path` on success.

    The name beside is always the same, so that what a killed run left half written is overwritten by the
    next one. On an exception the half-written file is removed and whatever stood at `path` stays.
    """
    path = Path(path)
    beside = path.with_name(f".{path.name}.partial")
    try:
        yield beside
        with open(beside, "rb") as written:
            os.fsync(written.fileno())
        os.replace(beside, path)
    except BaseException:
        beside.unlink(missing_ok=True)
        raise


def save_checkpoint(path, checkpoint):
    """Writes a dict of tensors and plain values with torch.save, whole or not at all."""
    with whole_file(path) as beside:
        torch.save(checkpoint, beside)


def load_checkpoint(path, *, device="cpu"):
    """Reads a dict that `save_checkpoint` wrote. Raises InputError for a file that is missing, damaged or foreign.

    Only tensors and plain values are unpickled (`weights_only=True`): a file that would run code is refused.
    """
    try:
        checkpoint = torch.load(path, map_location=device, weights_only=True)
    except FileNotFoundError:
        raise InputError(f"{path}: no such checkpoint") from None
    except pickle.UnpicklingError:
        raise InputError(f"{path}: refused, it holds more than tensors and plain values") from None
    except OSError as error:
        raise InputError(f"{path}: {error.strerror or error}") from None
    except Exception:  # torch.load has no closed list of what a damaged file makes it raise
        raise InputError(f"{path}: not a checkpoint, or damaged") from None
    if not isinstance(checkpoint, dict):
        raise InputError(f"{path}: not a checkpoint of this program")
    return checkpoint


def save_array(path, array):
    """Writes a NumPy array as .npy, without pickle."""
    with whole_file(path) as beside, open(beside, "wb") as file:
        np.save(file, array, allow_pickle=False)


def save_json(path, value):
    """Writes JSON, indented, in the order given."""
    with whole_file(path) as beside:
        beside.write_text(json.dumps(value, indent=2) + "\n", encoding="utf-8")


def save_csv(path, rows):
    """Writes a non-empty list of dicts with the same keys as CSV; floats keep all their digits."""
    with whole_file(path) as beside, open(beside, "w", newline="", encoding="utf-8") as file:
        writer = csv.DictWriter(file, fieldnames=list(rows[0]))
        writer.writeheader()
        writer.writerows(rows)


def save_figure(path, figure):
    """Writes a matplotlib Figure as PNG."""
    with whole_file(path) as beside:
        figure.savefig(beside, format="png")
