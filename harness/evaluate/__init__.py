"""Evaluators: what a run measures, one file each."""
