"""From where texts lie to what each client holds, as token ids.

Read in the order of the flow: `assets`, `fetch` and `convert` (what is fetched), `files` and
`sources` (what is read), `rows` (what a text is), `holdout` and `partition` (who holds what),
`federate` (all of it at once) and `batches` (rows to token ids, token ids to batches).
"""
