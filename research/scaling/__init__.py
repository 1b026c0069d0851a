"""Scaling laws, verdicts and reports from the rows of finished runs; runs nothing."""
