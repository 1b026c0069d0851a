"""Measures of a trained model, as plain functions that the loop is given."""
