"""The site's policy: what a job may do at a site, and a log of what was decided and what left.

`rules` reads the policy, `decide` holds a job against it, `expected` and `weights` find what it
needs to know, `chain` is the log and `audit` what is written to it. No engine asks them yet.
"""
