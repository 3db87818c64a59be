"""The job file that `triskel init` writes: every key, its default and what it means.

It reads back to the demonstration. Keys without a default stand behind a `#`. Sections of modes are
made of their specs.
"""

import json
import textwrap
from collections.abc import Iterator, Mapping, Sequence
from typing import Any

from triskel.config.read import load
from triskel.core.mode_spec import ModeSpec
from triskel.core.options import Options
from triskel.core.registry import MODES

COLUMN = 29
"""Where comments begin."""
WIDE = 100

_TEXT = """\
# A Triskel job: which model, whose data, how to train, and what travels.
# This one is the demonstration. A line left out takes its default: the value that stands here, or
# the one in brackets.
# Run it:         triskel compare THIS_FILE
# Change one key: triskel compare THIS_FILE --set train.lr=3e-4
# Paths are relative to this file.

name = "opinions"            # names the run folder and the report
@MODE@
seed = 0                     # all randomness is a function of it
rounds = 3                   # exchanges between server and clients [2]

[model]
path = "smollm2-135m"        # an asset, a local folder or a Hugging Face hub id
dtype = "auto"               # auto (bfloat16 where the processor has it), float32, bfloat16
                             # or float64
device = "auto"              # auto (a GPU where there is one), cpu, cuda, cuda:1, ...
compute = "auto"             # auto (what is fastest here), fast or reference
attention = "eager"          # eager or sdpa, on the reference path
recompute = "auto"           # activations twice rather than kept: auto (where memory is short),
                             # always or never
cache_mb = 4096              # for hidden states below the first block that trains
quantise = "none"            # the frozen base in fewer bits: none, int8 or nf4

[adapter]                    # the tensors that train; the model itself stays frozen
kind = "lora"                # lora, dora, rslora, ia3, loha, lokr, vera, bitfit, full, prefix,
                             # prompt or ptuning
rank = 8                     # of the factors of lora, dora, rslora, loha, lokr and vera
alpha = 16.0                 # the factors' product is scaled by alpha / rank
dropout = 0.0                # on the adapter's input, in training
targets = []                 # modules by name, such as ["q_proj", "v_proj"]; empty: as PEFT
blocks = "top:4"             # all, top:N (the last N blocks) or FIRST-LAST [all]
start = ""                   # a PEFT folder or a run that training goes on from; empty: afresh
tokens = 20                  # virtual tokens of prefix, prompt and ptuning
# projection = 0             # what vera's frozen matrices are drawn from; left out: the seed

[data]
task = "classify"            # classify (one class a text) or causal (write a response)
source = "opinions"          # opinions, hub, csv, jsonl, parquet, arrow, excel, text or clients;
                             # see the end
train = ""                   # a file, for hub a split, for clients a folder
test = ""                    # the same for test rows; empty: test_share of train is held out
public = ""                  # texts everyone may read, to predict on; empty: held out of train
# public_count = 35          # how many, in all modes; left out: what a mode says (logits.public)
hub = ""                     # name of a dataset on the hub
config = ""                  # its configuration, where it has several
delimiter = ""               # between cells of csv; empty: found by looking
encoding = ""                # of texts; empty: UTF-8, UTF-16 or Western, found by looking
# header = false             # tables have none, and columns are named by number, the first by 1
text = ""                    # column of the text
label = ""                   # column of the class
prompt = ""                  # column of the prompt, for causal
response = ""                # column of the response, for causal; only it is learnt
template = ""                # layout of prompt and response: empty (plain), chat, or your own with
                             # {prompt} and {response}
classes = []                 # class names in order; empty: the sorted labels of train
test_share = 0.2             # share of rows held out for testing where there is no test
validation_share = 0.0       # share of each client's training rows held out to choose settings by

[clients]
# partition = "iid"          # natural, iid, dirichlet, quantity, shards or length; left out:
                             # natural for opinions and clients, else iid
by = ""                      # column whose values are the clients, for natural
count = 4                    # how many clients, except for natural
alpha = 0.5                  # dirichlet, quantity, length: smaller means more uneven
shards = 2                   # shards: pieces a client gets
examples = 70                # keep at most so many training rows a client; 0 keeps all [0]
test_examples = 70           # the same for test rows [0]
cohort = 1.0                 # share of clients that take part in a round
sampling = "uniform"         # who they are: uniform, size or poisson (each by itself)
drop_share = 0.0             # share of these that drop out of it, to see what that costs
max_share = 1.0              # largest share that a client may have in an average

# What one client does differently, by its name:
# [clients.each.films]
# model = "path/of/another"  # logits only
# rank = 4                   # in logits, and in params below adapter.rank
# epochs = 2                 # local epochs of its own
@CLIENTS@

[train]                      # a client's own training in a round
epochs = 2                   # passes over its examples [1]
batch = 16                   # examples in a step
optimizer = "adamw"          # adamw, or plain sgd
lr = 0.004                   # its learning rate [0.001]
schedule = "constant"        # constant, linear or cosine; changes between rounds only
weight_decay = 0.0
max_grad_norm = 0.0          # gradients are scaled down to it; 0 leaves them alone
max_tokens = 48              # tokens of a text that are read; for causal there is no default
overlong = "cut"             # what becomes of longer texts: cut, drop or refuse
keep = "last"                # which round a stage ends with: last, or best (on validation texts)

@MODES@

[evaluate]                   # what models reach on test texts
every = 1                    # rounds from test to test; the last is tested too; 0: only the last

[wire]                       # how messages travel
up = "fp32"                  # raw, fp32, bf16, fp16, int8, int4, topk or sign, to the server
down = "fp32"                # and from the server to clients
max_mb = 256.0               # a larger message is refused

[federation]                 # between organisations; a run in one process reads none of it
quorum = 1.0                 # share of a round's clients that must finish it
patience_s = 60.0            # a client not heard of for so long is left out of the round
deadline_s = 0.0             # one not done after so long too, if the quorum allows; 0: none
order = "wave"               # wave: the same result every time; arrival: whoever asks first
window_s = 0.02              # for arrival: how long an ask waits for others
buffer = 0                   # a round closes with so many updates, late ones too; 0: with all
staleness = 10               # for buffer: work that is more rounds old is called off

# --- Sources of data ----------------------------------------------------------------------------
#
# A table of labelled texts, dealt to eight clients with uneven labels:
#     [data]
#     source = "csv"                 # or jsonl, parquet, arrow, excel; a tab or ; may divide it too
#     train = "tickets.csv"
#     text = "message"
#     label = "team"
#     [clients]
#     partition = "dirichlet"
#     count = 8
#
# The same table, with a column that says whose row it is:
#     [clients]
#     partition = "natural"
#     by = "branch"
#
# One file per client, NAME.csv or NAME.jsonl, in a folder:
#     [data]
#     source = "clients"
#     train = "branches"
#     text = "message"
#     label = "team"
#     classes = ["billing", "delivery"]
#
# A dataset of the Hugging Face hub:
#     [data]
#     source = "hub"
#     hub = "fancyzhx/ag_news"
#     test = "test"
#     text = "text"
#     label = "label"
#
# Prompts and responses, to train a model that writes:
#     [data]
#     task = "causal"
#     source = "jsonl"
#     train = "questions.jsonl"
#     prompt = "question"
#     response = "answer"
"""


def text(more: Sequence[str] = ()) -> str:
    """Return the job file.

    Args:
        more: Modes of other packages, whose sections it has as well.

    Raises:
        PluginError: There is no such mode, or its package is broken.
    """
    demo = load(None)
    specs = [*MODES.built_in(), *(MODES.spec(m) for m in more if m not in MODES.ours)]
    *first, last = (spec.name for spec in specs)
    names = f"{', '.join(first)} or {last}"
    mode = f"mode = {json.dumps(MODES.default)}"
    sections = ("\n".join(section(s.name, s.gloss, s.options, s.of(demo))) for s in specs)
    parts = {
        "@MODE@": [*_line(mode, f"what `triskel run` runs: {names}")],
        "@CLIENTS@": [one for spec in specs for one in _of_client(spec)],
        "@MODES@": ["\n\n".join(sections)],
    }
    found = _TEXT
    for mark, lines in parts.items():
        found = found.replace(mark, "\n".join(lines))
    return found


def section(name: str, gloss: str, kind: type[Options], values: Options) -> Iterator[str]:
    """Return a section of a file: every key with its value, and what it means.

    A default that is another than the value stands in brackets.
    """
    yield from _line(f"[{name}]", gloss)
    for key, field in kind.model_fields.items():
        value, default = getattr(values, key), field.get_default()
        words = field.description or ""
        if value is None:
            example = (field.examples or [""])[0]
            yield from _line(f"# {key} = {json.dumps(example)}", words)
            continue
        words += "" if value == default else f" [{json.dumps(default)}]"
        yield from _line(f"{key} = {json.dumps(value)}", words)


def _of_client(spec: ModeSpec[Any]) -> Iterator[str]:
    """Return what one client may have otherwise in a mode."""
    fields: Mapping[str, Any] = spec.options.model_fields
    for key in spec.client_keys:
        place = key if key in spec.short_client_keys else f"{spec.name}.{key}"
        example = (fields[key].examples or [fields[key].get_default()])[0]
        yield from _line(f"# {place} = {json.dumps(example)}", f"{spec.name} only")


def _line(code: str, words: str) -> Iterator[str]:
    """Return code with a comment beside it, on as many lines as that takes."""
    first, *rest = textwrap.wrap(words, WIDE - COLUMN - 2) or [""]
    yield f"{code:<{COLUMN - 1}} # {first}".rstrip(" #") if first else code
    yield from (f"{'':<{COLUMN}}# {one}" for one in rest)
