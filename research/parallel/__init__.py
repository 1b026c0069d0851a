"""Meshes, sharding tables, and arrays between hosts and meshes."""
