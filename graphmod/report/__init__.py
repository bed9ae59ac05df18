"""Tables for the terminal, and a folder with everything that a compression gave."""

from graphmod.report.folder import write_report
from graphmod.report.page import page
from graphmod.report.tables import blocks_tree, changes_table, info_table, modules_table, summary_table

__all__ = [
    "blocks_tree",
    "changes_table",
    "info_table",
    "modules_table",
    "page",
    "summary_table",
    "write_report",
]
