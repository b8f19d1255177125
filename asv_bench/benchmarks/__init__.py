"""The memory of the package's speed, size and quality; one file an area, public API only."""
