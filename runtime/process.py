"""What a script, unlike a notebook, decides for its process, before it imports torch and matplotlib."""

import logging
import os
import signal
from pathlib import Path


def prepare_process():
    """Sets what torch and matplotlib read as they are imported, whatever of the user's own is there."""
    os.environ.setdefault("GOMP_SPINCOUNT", "1000")  # threads that wait soon leave the processor
    signal.signal(signal.SIGINT, signal.SIG_DFL)  # until `run_script` sees to it: Ctrl-C ends the imports in silence
    os.environ.pop("MPLBACKEND", None)  # of a notebook that starts this script; it may not be there
    os.environ["MATPLOTLIBRC"] = str(Path(__file__).parents[1] / "evaluation/figures.mplstyle")  # not the user's
    logging.getLogger("matplotlib").setLevel(logging.ERROR)  # of a home that it cannot write to
