"""The memory of the package's speed, size and quality: one file an area.

Public API only, but for `generations`, which says why.
"""
