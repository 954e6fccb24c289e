"""Independent pieces of work: dealt to the ranks, and each result kept on disk until all work is finished."""

import shutil
import time
from pathlib import Path

from runtime.checkpoint import PARTIAL, InputError, load_checkpoint, load_json, save_checkpoint, save_json
from runtime.distributed import barrier, gather, rank, size
from runtime.progress import ProgressBar


class Tasks:
    """Results by their names, in a directory: an interrupted run takes up those that are there."""

    def __init__(self, directory, identity):
        """identity: a dict of plain values, everything that decides the results; those of another are removed."""
        self.directory, path = Path(directory), Path(directory) / "identity.json"
        if rank() == 0:
            try:
                known = load_json(path) == identity
            except InputError:  # none, or none that can be read
                known = False
            if not known:
                self.remove()
                self.directory.mkdir()
                save_json(path, identity)
            for partial in self.directory.glob(f".*{PARTIAL}"):
                partial.unlink()
        barrier()

    def keep(self, name, function):
        """What `function()` returns, tensors and plain values, or what an interrupted run has kept of it."""
        path = self.directory / f"{name}.pt"
        try:
            return load_checkpoint(path)["result"]
        except InputError:
            result = function()
            save_checkpoint(path, {"result": result})
            return result

    def map(self, title, functions):
        """{name: what the function returns}, on every rank; functions: {name: a function without arguments}.

        The functions are dealt to the ranks in turn. title: of the progress bar.
        """
        own, started = list(functions.items())[rank() :: size()], time.perf_counter()
        results = {}
        with ProgressBar(title, total=len(own), unit="task") as bar:
            for name, function in own:
                results[name] = self.keep(name, function)
                bar.advance()
            seconds = f"{time.perf_counter() - started:.0f} s"
            bar.line(f"{len(own)} tasks, {seconds}", short=seconds)
        results = {name: result for part in gather(results) for name, result in part.items()}
        return {name: results[name] for name in functions}

    def remove(self):
        """Removes the directory, when all results are in their final files."""
        shutil.rmtree(self.directory, ignore_errors=True)
