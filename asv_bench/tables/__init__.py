"""Programs that write the README's tables and its picture, so that no figure is typed by hand.

Run them from the top of the repository: ``python -m asv_bench.tables.performance --help``.
"""
