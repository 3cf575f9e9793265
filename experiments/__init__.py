"""Reproductions: `python -m experiments.NAME --config=FILE --workdir=DIR`."""
