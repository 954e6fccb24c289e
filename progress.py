"""What a stage shows while it works: a bar on a terminal, plain lines elsewhere."""

import contextlib
import signal
import sys

from tqdm import tqdm


class Interrupted(BaseException):
    """SIGINT or SIGTERM has come; its text says where the run stands and how to continue."""

    def __init__(self, number):
        super().__init__(number)
        self.number, self.place, self.advice = number, None, None

    def __str__(self):
        name = signal.Signals(self.number).name
        if self.place is None:
            return f"stopped by {name} before an epoch of its own was over; give the same command again"
        return f"stopped by {name} {self.place}; {self.advice}"


@contextlib.contextmanager
def standing(place, *, advice="the same command with --resume continues"):
    """Tells an Interrupted that passes, and does not know yet, where the run stands: what `place()` returns.

    None stands for a run that has saved nothing yet. advice: what to do then.
    """
    try:
        yield
    except Interrupted as interrupted:
        if interrupted.place is None:
            interrupted.place, interrupted.advice = place(), advice
        raise


class Stage:
    """One stage of work, `total` units long.

    On a terminal it is one bar with rate and remaining time; elsewhere it is the lines given to `line`.
    """

    def __init__(self, name, *, total, unit, done=0):
        self.name = name
        self.terminal = sys.stderr.isatty()
        self.bar = tqdm(
            total=total,
            initial=done,
            desc=name,
            unit=unit,
            unit_scale=True,
            disable=not self.terminal,
            dynamic_ncols=True,
            bar_format="{desc} |{bar:10}| {percentage:3.0f}%, {remaining} left, {rate_fmt}{postfix}",
            mininterval=0.5,
        )

    def __enter__(self):
        return self

    def __exit__(self, *exception):
        self.bar.close()

    def advance(self, units=1):
        """Says that `units` more are done."""
        self.bar.update(units)

    def note(self, text):
        """A line of its own, beside a bar, too."""
        tqdm.write(text)

    def line(self, text, *, short):
        """The news: `short` beside the bar on a terminal, `text` on a line of its own elsewhere."""
        if self.terminal:
            self.bar.set_postfix_str(short, refresh=False)
        else:
            print(f"{self.name}: {text}", flush=True)
