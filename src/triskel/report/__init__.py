"""The report: one page, one terminal table and one Markdown table, all from `result.json`.

`result` reads the file, `units` says how numbers are written, `words` draws conclusions, `links`
puts the run on stated networks, `figures` draws, `tables` tabulates and `page` puts it together.
Only measured numbers are shown; what is missing is called missing.
"""

from triskel.report.page import render, write_report
from triskel.report.tables import final_table, markdown

__all__ = ["final_table", "markdown", "render", "write_report"]
