"""The site's policy: what a job may do at a site, and a log of what was decided and what left.

`rules` is what a policy says and `read` its file; `decide` holds a job against it, with `foreign`
and `limits`, and answers in a `refusal`. `expected` and `weights` find what it needs to know,
`chain` is the log and `audit` what is written to it.
"""
