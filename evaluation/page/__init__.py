"""report.html: what a run has found, in one file that needs no other."""
