"""The policy file that `triskel site init` writes: every key, its default and what it means.

It reads back to a policy that refuses every job. Keys without a default stand behind a `#`.
"""

TEMPLATE = """\
# A Triskel site policy: what jobs may do with the data of this site. It stays at this site.
# What is not named is not allowed: as it stands, this policy refuses every job. A line left out
# takes the value that stands here.
# Try it: triskel site check THIS_FILE JOB

site = ""                    # what federations call this site
modes = []                   # params, logits, split
submitters = []              # who may submit jobs, by the exact name on their certificate
codecs = ["fp32"]            # how floats may travel: raw, fp32, bf16, fp16, int8, int4, topk, sign

[models]                     # a name of yours = SHA-256, as `triskel site hash FOLDER` prints it
# "SmolLM2-135M" = "faab6ed755a3b2537509750e5651e144bfcf4b73efd18761ec2bf018df0b2bad"

# A job says data.train = "tickets" and data.text = "text"; only this file says where that is.
# [datasets.tickets]
# paths = ["tickets.csv"]    # relative to this file
# columns = { text = "message", label = "team" }    # what jobs say = what the file says
# public = false             # true: a job may use it as the texts that all parties read
# delimiter = ""             # between cells, where looking does not find it
# encoding = ""              # such as "cp1250", where it is not UTF-8
# header = true              # false: columns are "1", "2" and so on

# A mode or task of another package: anybody can give one any name, so its package is named too.
# [plugins.sign]
# package = "own-mode"       # modes may then name "sign"
# version = "1.0"            # left out: any
# sha256 = ""                # of its source, as `triskel plugins` prints it; left out: any

[leave]                      # what may leave, beyond what an allowed mode always sends
activations = false          # hidden states of texts: the mode split; treat them as the texts
labels = false               # labels: split.labels = "shared"; for causal, the responses
texts = false                # texts that logits makes public when the job names no data.public

[split]                      # where the model may be cut
first = 1                    # blocks at the start that stay here, at least; 0 shows the tokens
last = 0                     # blocks at the end that stay here, at least

[limits]
round_mb = 100.0             # most megabytes (10^6 bytes) that leave in a round
message_mb = 256.0           # most in a message: the job's wire.max_mb
cohort = 3                   # fewest clients in a round, this one included

[floors]                     # fewest rows a job may rest on, after caps and tokenising
train = 50                   # that it trains on
test = 50                    # that it scores models on

[scores]                     # how exactly the site says what a model reaches; 0 is exact
loss_step = 0.05             # mean losses are rounded to multiples of this
share_step = 0.02            # and so is the share that is right
table = false                # true: the table of classes by predicted classes may leave

[budget]                     # what all jobs together may have of one dataset
jobs_day = 4                 # by day, in UTC
jobs = 50                    # ever
rounds_day = 40              # played here, repeated ones too
rounds = 400
scores_day = 40              # tests of a model
scores = 200
mb_day = 2000.0              # megabytes that leave
mb = 20000.0

[privacy]                    # Triskel has none of these yet: each one refuses every job
# clip = 1.0                 # what leaves is clipped to this norm or a smaller one
# noise = 1.0                # and carries noise of this multiplier or a larger one
secure_aggregation = false   # true: the server must see sums only

[flare]
filters_do_not_apply = false # true: we know that filters in privacy.json do not see these jobs

# [hours]                    # when jobs may start; left out: at any time
# zone = "Europe/Zurich"
# opens = "18:00"
# closes = "06:00"           # of the next day, where it is the earlier one
# days = ["mon", "tue", "wed", "thu", "fri"]    # on which it opens; left out: all
"""
