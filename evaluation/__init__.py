"""The evaluation after training; also the checks of all input (settings.py) and runs of several seeds (seeds.py)."""
