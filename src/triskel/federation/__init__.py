"""The operator's side of federations on NVIDIA FLARE: kits, nodes, and jobs that are sent to them.

kits -> harden -> nodes -> session -> job_watch, in the order of use; the engine that runs inside a
job is `triskel.engines.flare`. nvflare is imported in `session`, `launcher` and
`doorman` only; certificates are made by its command line.
"""
