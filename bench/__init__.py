"""Benches of recengine, run from a checkout: `python -m bench...`."""
