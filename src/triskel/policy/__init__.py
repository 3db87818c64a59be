"""The site's policy: what a job may do at a site, and a log of what was decided and what left.

`rules` is what a policy says and `read` its file; `decide` holds a job against it, with `foreign`
and `limits`, and answers in a `refusal`. `paths` and `model_hash` find what it needs to know,
`hash_chain` is the log and `audit` what is written to it.
"""
