"""What makes every evaluation of this process quick and rough."""

from evaluation import ais, modes, style
from posterior_fit import fit_diagonal, fit_full

FITS = [fit.__wrapped__.__kwdefaults__ for fit in (fit_diagonal, fit_full)]  # beneath torch.no_grad
ROUGH = [
    (style.STYLE, {"figure.dpi": 40}),
    (vars(modes), {"SEARCH_STEPS": 5}),
    (vars(ais), {"PILOT_TEMPERATURES": 4, "MOST_ADAPTATIONS": 3}),
    *((defaults, {"fit_steps": 10, "max_cycles": 1}) for defaults in FITS),
]


def make_rough():
    """Figures of fewer pixels; fits, searches for modes and pilot runs of a few steps."""
    for settings, values in ROUGH:
        settings.update(values)
