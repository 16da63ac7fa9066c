"""A BasicSR experiment, running or over, as one page to look at."""
