"""Recipes: one file each, sizes by argument."""
