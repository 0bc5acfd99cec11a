"""Benches of single operations beside the libraries that a user would call instead."""
