"""What makes every evaluation of this process quick and rough."""

import posterior_fit
from evaluation import ais, log_prob, style
from posterior_fit import fit_diagonal, fit_full

FITS = [fit.__wrapped__.__kwdefaults__ for fit in (fit_diagonal, fit_full)]  # beneath torch.no_grad
ROUGH = [
    (style.STYLE, {"figure.dpi": 40}),
    (vars(posterior_fit), {"SEARCH_STEPS": 5, "PRIOR_DRAWS": 20}),
    (vars(log_prob), {"SHORT_FIT": {}}),
    (vars(ais), {"PILOT_TEMPERATURES": 4, "MOST_ADAPTATIONS": 3}),
    *((defaults, {"fit_steps": 10, "max_cycles": 1}) for defaults in FITS),
]


def make_rough():
    """Figures of fewer pixels; fits, searches for starts and pilot runs of a few steps."""
    for settings, values in ROUGH:
        settings.update(values)
