"""Kernels on tiles of groups: what the methods are built from."""
