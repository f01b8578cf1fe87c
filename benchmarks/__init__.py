"""Benchmarks: every number that the README gives is made here."""
