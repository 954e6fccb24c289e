"""What a script, unlike a notebook, decides for its process."""

import logging
import os
import signal
import sys
from pathlib import Path


def prepare_process(matplotlibrc):
    """Is called before torch and matplotlib are imported. matplotlibrc: a file of this project, not the user's own."""
    if "IPython" in sys.modules:  # %run in a notebook, whose process is not the script's
        return
    os.environ.setdefault("GOMP_SPINCOUNT", "1000")  # threads that wait soon leave the processor
    # Until `run_script` sees to it Ctrl-C ends the imports in silence, unless a shell has the script ignore it.
    if signal.getsignal(signal.SIGINT) != signal.SIG_IGN:
        signal.signal(signal.SIGINT, signal.SIG_DFL)
    os.environ.pop("MPLBACKEND", None)  # of a notebook that starts this script; it may not be there
    os.environ["MATPLOTLIBRC"] = str(Path(__file__).parents[1] / matplotlibrc)
    logging.getLogger("matplotlib").setLevel(logging.ERROR)  # its warnings, as of a home that is read-only, help nobody
