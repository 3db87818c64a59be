"""The report: one page, one terminal table and one Markdown table, all from `result.json`.

`reading` (and `reading_rows`, `seed_mean`) reads the file into a `result`, `evidence` says what its
tests allow, `headline` and `conclusions` put it into words, `readings` computes what `comparisons`
tells, `links` puts the run on stated networks, `figures` draws, `cells` and `tables` tabulate and
`page` puts it together. Only measured numbers are shown; what is missing is called missing.
"""
