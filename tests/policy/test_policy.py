"""The site policy: what it does not name it refuses, in one sentence, whatever else it says."""

import hashlib
import itertools
import json
import re
import tomllib
from collections.abc import Callable, Mapping
from datetime import UTC, datetime, time, timedelta, timezone
from pathlib import Path
from typing import Any

import pytest
import tomli_w
from hypothesis import given, settings
from hypothesis import strategies as st
from pydantic import BaseModel, ValidationError

from triskel.config.job import Job
from triskel.config.read import parse as parse_job
from triskel.core.registry import MODES, Origin
from triskel.errors import DataError
from triskel.experiment.sampling import Sampling
from triskel.plan.payload import Sizes, round_bytes
from triskel.policy.decide import decide, decide_who_and_when, wanted
from triskel.policy.limits import cohort_of
from triskel.policy.model_hash import weights
from triskel.policy.read import SECTIONS, PolicyError, load, parse
from triskel.policy.refusal import Circumstances
from triskel.policy.rules import Hours, Pin, Policy
from triskel.policy.template import TEMPLATE
from triskel.types import Message, Section
from triskel.wire import pack
from triskel.wire.ledger import Ledger

ROOT = Path(__file__).resolve().parents[2]
PAGE = (ROOT / "docs" / "policy.md").read_text(encoding="utf-8")
SHA = "ab" * 32
TABLES = {**SECTIONS, **{s.name: s.limits for s in MODES.built_in() if s.limits}}
NAMED = {"datasets": "tickets", "plugins": "sign"}
"""Tables that hold one table a name, and the name in the template."""
POLICY = f"""
site = "hospital-a"
modes = ["params", "logits", "split"]
submitters = ["ann@lab.example"]
codecs = ["fp32", "bf16"]
[models]
small = "{SHA}"
[datasets.tickets]
paths = ["/secret/place/tickets.csv"]
columns = {{ text = "message", label = "team", branch = "house" }}
[datasets.open]
paths = ["/secret/place/open.csv"]
columns = {{ text = "line" }}
public = true
[leave]
activations = true
labels = true
texts = true
[split]
first = 2
last = 1
[limits]
round_mb = 10
message_mb = 300
[hours]
zone = "Europe/Zurich"
opens = "18:00"
closes = 06:00:00
days = ["mon", "fri"]
"""
JOB = """
[data]
source = "csv"
train = "tickets"
text = "text"
label = "label"
[split]
cut = [2, 5]
"""
MONDAY = datetime(2026, 11, 16, 20, 0, tzinfo=UTC)  # 21:00 in Zurich
HERE: Mapping[str, Any] = {
    "now": MONDAY,
    "submitter": "ann@lab.example",
    "model_sha256": SHA,
    "blocks": 6,
    "clients": 4,
    "round_bytes": 10_000_000,
}


def sentences(
    policy: str = POLICY, job: tuple[str, ...] = (), here: Mapping[str, Any] | None = None
) -> list[str]:
    asked = parse_job(JOB, overrides=job)
    return [str(r) for r in decide(parse(policy), asked, Circumstances(**{**HERE, **(here or {})}))]


# --- Reading a policy -------------------------------------------------------------------------

BAD = {
    "modes = ": "policy is not valid TOML: Invalid value (at end of document)",
    'mode = ["params"]': "policy: unknown key 'mode'; did you mean 'modes'?",
    "xyzzy = 1": "policy: unknown key 'xyzzy'; known here: budget, codecs, datasets, flare, "
    "floors, hours, leave, limits, models, modes, plugins, privacy, scores, site, split, "
    "submitters",
    'modes = ["parms"]': "policy: modes names 'parms', and Triskel brings params, logits, split; a "
    'mode of another package needs its package as well: plugins.parms.package = "..."',
    'modes = "params"': "policy: modes: input should be a valid tuple, got 'params'",
    "submitters = [1]": "policy: submitters.0: input should be a valid string, got 1",
    'submitters = [""]': "policy: submitters.0: string should have at least 1 character, got ''",
    'codecs = ["zip"]': "policy: codecs names 'zip', and Triskel brings raw, fp32, bf16, fp16, "
    "int8, int4, topk, sign; a codec of another package needs its package as well: "
    'plugins.zip.package = "..."',
    '[models]\nsmall = "ab"': "policy: models names 'small' with 'ab', and a SHA-256 has 64 "
    "hexadecimal digits; `triskel site hash FOLDER` prints it",
    '[datasets.t]\npath = "x.csv"\npaths = ["x"]\ncolumns = {a = "b"}': "policy: unknown key "
    "'datasets.t.path'; did you mean 'paths'?",
    '[datasets.t]\npaths = ["x.csv"]': "policy: datasets.t.columns is missing; give it, or leave "
    "datasets.t out",
    '[datasets.t]\npaths = []\ncolumns = {a = "b"}': "policy: datasets.t.paths: tuple should have "
    "at least 1 item after validation, not 0, got []",
    '[leave]\nlabels = "no"': "policy: leave.labels: input should be a valid boolean, got 'no'",
    "[leave]\nlabels = 1": "policy: leave.labels: input should be a valid boolean, got 1",
    "[leave]\nlable = true": "policy: unknown key 'leave.lable'; did you mean 'labels'?",
    "[split]\nfirst = -1": "policy: split.first: input should be greater than or equal to 0, "
    "got -1",
    "[limits]\ncohort = true": "policy: limits.cohort: input should be a valid integer, got True",
    "[limits]\ncohort = 0": "policy: limits.cohort: input should be greater than or equal to 1, "
    "got 0",
    "[limits]\nround_mb = inf": "policy: limits.round_mb: input should be a finite number, got inf",
    "[limits]\nround_mb = nan": "policy: limits.round_mb: input should be a finite number, got nan",
    "[limits]\nmessage_mb = true": "policy: limits.message_mb: input should be a valid number, "
    "got True",
    "[privacy]\nnoise = 0": "policy: privacy.noise: input should be greater than 0, got 0",
    "[privacy]\nepsilon = 1": "policy: unknown key 'privacy.epsilon'; known here: clip, noise, "
    "secure_aggregation",
    '[hours]\nzone = "UTC"\nopens = "18:00"': "policy: hours.closes is missing; give it, or leave "
    "hours out",
    '[hours]\nzone = "Mars/Dome"\nopens = "1:00"\ncloses = "02:00"': "policy: hours.zone must be a "
    'time zone such as "Europe/Zurich" or "UTC", got \'Mars/Dome\'; where none is known, install '
    "the package tzdata",
    '[hours]\nzone = "../../etc/passwd"\nopens = "01:00"\ncloses = "02:00"': "policy: hours.zone "
    'must be a time zone such as "Europe/Zurich" or "UTC", got \'../../etc/passwd\'; where none is '
    "known, install the package tzdata",
    '[hours]\nzone = "UTC"\nopens = 18\ncloses = "02:00"': "policy: hours.opens must be a time of "
    "day such as \"18:00\", got '18'",
    '[hours]\nzone = "UTC"\nopens = "18:00+02:00"\ncloses = "02:00"': "policy: hours.opens must be "
    "a time of day such as \"18:00\", got '18:00+02:00'",
    '[hours]\nzone = "UTC"\nopens = "18:00"\ncloses = "18:00"': "policy: hours opens and closes "
    "are equal; leave [hours] out to allow any time",
    '[hours]\nzone = "UTC"\nopens = "18:00"\ncloses = "19:00"\ndays = ["monday"]': "policy: "
    "hours.days.0: input should be 'mon', 'tue', 'wed', 'thu', 'fri', 'sat' or 'sun', "
    "got 'monday'",
}  # fmt: skip


@pytest.mark.parametrize("text", BAD)
def test_a_policy_that_does_not_say_what_it_means_is_refused_with_place_and_way_out(
    text: str,
) -> None:
    with pytest.raises(PolicyError) as caught:
        parse(text)
    assert str(caught.value) == BAD[text]
    assert caught.value.exit_code == 2


@pytest.mark.parametrize(
    ("data", "said"),
    [
        (b"\xff\xfe", "is not UTF-8 text"),
        (b"a = " + b"[" * 5000, "is not valid TOML"),
        (b"site = 1\n", "site: input should be a valid string, got 1"),
    ],
)
def test_a_hostile_policy_file_is_refused_by_name(tmp_path: Path, data: bytes, said: str) -> None:
    (tmp_path / "p.toml").write_bytes(data)
    with pytest.raises(PolicyError, match=re.escape(said)) as caught:
        load(tmp_path / "p.toml")
    assert "p.toml" in str(caught.value)


def test_a_policy_that_is_not_there_or_a_folder_is_refused(tmp_path: Path) -> None:
    with pytest.raises(PolicyError, match="does not exist; `triskel site init` writes one"):
        load(tmp_path / "none.toml")
    with pytest.raises(PolicyError, match="cannot be read"):
        load(tmp_path)


def test_paths_of_datasets_are_relative_to_the_policy_and_its_checksum_is_the_files(
    tmp_path: Path,
) -> None:
    text = '[datasets.t]\npaths = ["a.csv", "/b.csv"]\ncolumns = { text = "x" }\n'
    (tmp_path / "p.toml").write_text(text, encoding="utf-8")
    policy, sha256 = load(tmp_path / "p.toml")
    assert policy.datasets["t"].paths == (str(tmp_path.resolve() / "a.csv"), "/b.csv")
    assert sha256 == hashlib.sha256(text.encode()).hexdigest()


def test_every_part_of_a_policy_is_frozen_and_closed() -> None:
    policy = parse(POLICY)
    parts = [v for v in dict(policy).values() if isinstance(v, BaseModel)]
    assert len(parts) == 9
    for part in [policy, policy.datasets["tickets"], *parts]:
        name = next(iter(type(part).model_fields))
        with pytest.raises(ValidationError):
            setattr(part, name, getattr(part, name))
        with pytest.raises(ValidationError, match="Extra inputs"):
            type(part).model_validate({**part.model_dump(), "xyzzy": 1})


def test_the_template_reads_back_to_the_defaults_which_refuse_every_job() -> None:
    assert parse(TEMPLATE) == Policy()
    refused = {r.key for r in decide(Policy(), parse_job(JOB), Circumstances(**HERE))}
    assert {"modes", "models", "datasets", "submitters"} <= refused


def test_the_template_names_every_key_and_each_key_behind_a_sign_can_be_used() -> None:
    text = re.sub(
        r"^# (?=\[|[a-z_\"].* = )", "", TEMPLATE.replace('"SmolLM2', '"S'), flags=re.MULTILINE
    )
    text = re.sub(r'^# (?="S)', "", text, flags=re.MULTILINE)
    raw = tomllib.loads(text.replace("# Try it", "## Try it"))
    assert set(raw) == {*Policy.model_fields, *TABLES}
    for name, part in TABLES.items():
        table = raw[name][NAMED[name]] if name in NAMED else raw[name]
        assert set(table) == set(part.model_fields)
    Policy.model_validate(raw)


# --- Deciding, key by key ---------------------------------------------------------------------

SPLIT = "mode=split"
OPINIONS = ("data.source=opinions", "data.train=''", "data.text=''", "data.label=''")
REFUSED: list[tuple[Mapping[str, str], tuple[str, ...], Mapping[str, Any], list[str]]] = [
    ({}, (), {"submitter": "eve"}, [
        "submitters: the job is submitted by 'eve'; this site takes jobs from ann@lab.example"]),
    ({}, (), {"submitter": None}, [
        ("submitters: the job is submitted by nobody known; this site takes jobs from "
        "ann@lab.example")]),
    ({'["ann@lab.example"]': "[]"}, (), {}, [
        "submitters: the job is submitted by 'ann@lab.example'; this site takes jobs from nobody"]),
    ({}, (), {"now": MONDAY - timedelta(hours=3, minutes=1)}, [
        ("hours: the job would start on mon at 16:59 (UTC); this site runs jobs from 18:00 to "
        "06:00 on mon, fri, and in Europe/Zurich it would be mon at 17:59")]),
    ({'"params", ': ""}, (), {}, [
        "modes: the job runs in mode 'params'; this site allows logits, split"]),
    ({}, (), {"model_sha256": "cd" * 32}, [
        ("models: the job runs model 'smollm2-135m'; this site allows small, each by its SHA-256, "
        f"and has this one with SHA-256 '{'cd' * 32}'")]),
    ({}, ("clients.each.hospital-a.model=own",), {"model_sha256": None}, [
        ("models: the job runs model 'own'; this site allows small, each by its SHA-256, and has "
        "no weights of this one")]),
    ({}, (), {"model_sha256": None, "model": "other"}, [
        ("models: the job runs model 'other'; this site allows small, each by its SHA-256, and has "
        "no weights of this one")]),
    ({}, ("data.train=letters",), {}, [
        "datasets: the job reads dataset 'letters'; this site gives open, tickets"]),
    ({}, ("data.train=/etc/passwd",), {}, [
        "datasets: the job reads dataset '/etc/passwd'; this site gives open, tickets"]),
    ({}, ("data.test=exam", "data.public=web"), {}, [
        "datasets: the job reads dataset 'exam'; this site gives open, tickets",
        "datasets: the job reads dataset 'web'; this site gives open, tickets"]),
    ({}, ("data.source=hub", "data.hub=a/b"), {}, [
        ("datasets: the job reads 'a/b' from the hub; this site gives named datasets only: open, "
        "tickets")]),
    ({}, OPINIONS, {}, [
        "datasets: the job reads dataset 'opinions'; this site gives open, tickets"]),
    ({}, ("data.label=diagnosis",), {}, [
        ("datasets.tickets.columns: the job reads column 'diagnosis' of dataset 'tickets'; this "
        "site gives branch, label, text")]),
    ({}, ("data.prompt=diagnosis", "data.response=text"), {}, [
        ("datasets.tickets.columns: the job reads column 'diagnosis' of dataset 'tickets'; this "
        "site gives branch, label, text")]),
    ({}, ("data.public=tickets",), {}, [
        ("datasets.tickets.public: the job uses dataset 'tickets' as its public texts; this site "
        "keeps its texts private")]),
    ({}, ("clients.partition=natural", "clients.by=ward"), {}, [
        ("datasets.tickets.columns: the job reads column 'ward' of dataset 'tickets'; this site "
        "gives branch, label, text")]),
    ({"activations = true": "activations = false"}, (SPLIT,), {}, [
        ("leave.activations: the job sends hidden states of every training text (mode 'split'); "
        "this site keeps them")]),
    ({"\nlabels = true": "", "last = 1": ""}, (SPLIT, "split.labels=shared"), {}, [
        ("leave.labels: the job sends every label (split.labels is 'shared'); this site keeps "
        "them")]),
    ({"texts = true": ""}, ("mode=logits",), {}, [
        ("leave.texts: the job makes training texts public (mode 'logits' without data.public); "
        "this site keeps them")]),
    ({}, (SPLIT, "split.cut=[1, 5]"), {}, [
        ("split.first: the job leaves the site the first 1 blocks; this site keeps at least the "
        "first 2")]),
    ({}, (SPLIT, "split.cut=[2, 6]"), {}, [
        ("split.last: the job leaves the site the last 0 blocks; this site keeps at least the "
        "last 1")]),
    ({}, (SPLIT, "split.labels=shared"), {}, [
        ("split.last: the job leaves the site the last 0 blocks; this site keeps at least the "
        "last 1")]),
    ({}, (SPLIT, "clients.each.hospital-a.cut=[0, 5]"), {}, [
        ("split.first: the job leaves the site the first 0 blocks; this site keeps at least the "
        "first 2")]),
    ({}, (SPLIT,), {"blocks": None}, [
        ("split.last: the job leaves the site a number of last blocks that is not known here; this "
        "site keeps at least the last 1")]),
    ({}, (), {"round_bytes": 10_000_001}, [
        "limits.round_mb: the job sends 10,000,001 bytes in a round; this site allows 10,000,000"]),
    ({}, (), {"round_bytes": None}, [
        ("limits.round_mb: the job sends a number of bytes in a round that is not known here; this "
        "site allows 10,000,000")]),
    ({}, ("wire.max_mb=300.5",), {}, [
        ("limits.message_mb: the job allows messages of 300,500,000 bytes (wire.max_mb); this site "
        "allows 300,000,000")]),
    ({}, (), {"clients": 2}, [
        "limits.cohort: the job has 2 clients in a round; this site takes part among at least 3"]),
    ({}, ("clients.cohort=0.5",), {}, [
        "limits.cohort: the job has 2 clients in a round; this site takes part among at least 3"]),
    ({}, ("federation.quorum=0.5",), {}, [
        ("limits.cohort: the job has 4 clients in a round, which may close with 2 "
        "(federation.quorum); this site takes part among at least 3")]),
    ({}, ("federation.buffer=2",), {}, [
        ("limits.cohort: the job has 4 clients in a round, which may close with 2 "
        "(federation.buffer); this site takes part among at least 3")]),
    ({}, (), {"clients": None}, [
        ("limits.cohort: the job has a number of clients that is not known here; this site takes "
        "part among at least 3")]),
    ({}, ("wire.up=int8", "wire.down=raw"), {}, [
        "codecs: the job travels as 'int8' (wire.up); this site allows bf16, fp32",
        "codecs: the job travels as 'raw' (wire.down); this site allows bf16, fp32"]),
    ({"[hours]": "[privacy]\nclip = 1.5\n[hours]"}, (), {}, [
        ("privacy.clip: the job clips nothing that leaves, as this version of Triskel cannot; this "
        "site requires clipping to at most 1.5")]),
    ({"[hours]": "[privacy]\nnoise = 0.5\n[hours]"}, ("train.max_grad_norm=1.0",), {}, [
        ("privacy.noise: the job adds no noise to what leaves, as this version of Triskel cannot; "
        "this site requires a noise multiplier of at least 0.5")]),
    ({"[hours]": "[privacy]\nsecure_aggregation = true\n[hours]"}, (), {}, [
        ("privacy.secure_aggregation: the job shows the server each update, as this version of "
        "Triskel always does; this site requires that it sees sums only")]),
]  # fmt: skip


@pytest.mark.parametrize("case", range(len(REFUSED)))
def test_who_asked_is_told_the_key_and_what_the_job_asks_and_nothing_of_policy_or_machine(
    case: int,
) -> None:
    changes, job, here, said = REFUSED[case]
    policy = POLICY
    for old, new in changes.items():
        policy = policy.replace(old, new)
    refusals = decide(
        parse(policy), parse_job(JOB, overrides=job), Circumstances(**{**HERE, **here})
    )
    told = [refusal.told for refusal in refusals]
    for full, one in zip(said, told, strict=True):
        asked, _, allows = full.partition("; this site ")
        assert one == f"{asked}; this site does not allow it"
        assert allows not in one
    own = ["Zurich", "18:00", "06:00", "small", "open", "branch", "cd" * 32, SHA, "10,000,000"]
    if {**HERE, **here}["submitter"] != "ann@lab.example":
        own.append("ann@lab.example")
    assert not any(word in one for word in own for one in told)


def test_the_time_is_looked_at_once_the_submitter_is_known_and_nothing_else_with_it() -> None:
    def keys(submitter: str | None, now: datetime = MONDAY) -> list[str]:
        here = Circumstances(now=now, submitter=submitter)  # of model, data and sizes nothing
        return [refusal.key for refusal in decide_who_and_when(parse(POLICY), here)]

    late = MONDAY - timedelta(hours=5)
    assert keys("eve", late) == keys(None, late) == ["submitters"]
    assert keys("ann@lab.example", late) == ["hours"]
    assert keys("ann@lab.example") == []
    with pytest.raises(ValueError, match="must carry its time zone"):
        keys("eve", datetime(2026, 11, 16))  # noqa: DTZ001 - on purpose


@pytest.mark.parametrize("case", range(len(REFUSED)))
def test_each_key_refuses_by_itself_in_one_sentence(case: int) -> None:
    changes, job, here, said = REFUSED[case]
    policy = POLICY
    for old, new in changes.items():
        assert old in policy
        policy = policy.replace(old, new)
    assert sentences(policy, job, here) == said


@pytest.mark.parametrize(
    ("job", "here"),
    [
        ((), {}),
        ((SPLIT,), {}),
        ((SPLIT, "clients.each.other.cut=[0, 5]"), {}),
        (("mode=logits",), {}),
        (("data.public=open",), {}),  # it has no column of labels, and none is read
        (("data.label=branch", "wire.up=bf16"), {}),
        (("clients.partition=natural", "clients.by=branch"), {}),
        (("clients.cohort=0.3",), {"clients": 10}),  # 3 of 10, whatever a float says
        (("split.cut=[0, 6]",), {"blocks": None}),  # not in the mode that runs
        ((), {"now": MONDAY - timedelta(hours=3)}),
        (("data.task=causal", "data.label=''"), {}),
    ],
)
def test_what_the_policy_names_may_run(job: tuple[str, ...], here: Mapping[str, Any]) -> None:
    assert sentences(job=job, here=here) == []


def test_a_cut_that_the_job_leaves_to_the_model_is_the_models() -> None:
    job = parse_job(JOB.replace("cut = [2, 5]", ""), overrides=[SPLIT])
    found = [
        [r.key for r in decide(parse(POLICY), job, Circumstances(**{**HERE, "blocks": blocks}))]
        for blocks in (30, 6, None)  # [4, 28], [1, 5], unknown
    ]
    assert found == [[], ["split.first"], ["split.first", "split.last"]]


def test_every_key_that_can_refuse_is_tested() -> None:
    tested = {one.partition(":")[0] for case in REFUSED for one in case[3]}
    keys = {"modes", "submitters", "codecs", "models", "datasets", "hours"}
    keys |= {
        f"{name}.{key}"
        for name in ("leave", "split", "limits", "privacy")
        for key in TABLES[name].model_fields
    }
    assert keys | {"datasets.tickets.columns", "datasets.tickets.public"} == tested


@pytest.mark.parametrize(
    ("when", "runs"),
    [
        ("2026-11-16 17:59", False),  # Monday
        ("2026-11-16 18:00", True),
        ("2026-11-17 05:59", True),  # the night of Monday
        ("2026-11-17 06:00", False),
        ("2026-11-17 18:00", False),  # Tuesday
        ("2026-11-16 05:00", False),  # the night of Sunday
        ("2026-11-20 23:59", True),  # Friday
        ("2026-11-21 00:00", True),  # its night
        ("2026-07-20 18:00", True),  # Monday, in summer time
    ],
)
def test_a_window_over_midnight_belongs_to_the_day_it_opens_on(when: str, *, runs: bool) -> None:
    zone = parse(POLICY).hours
    assert zone is not None
    local = datetime.fromisoformat(when).replace(tzinfo=zone.zone)
    for seen_from in (UTC, timezone(timedelta(hours=-9))):
        assert (sentences(here={"now": local.astimezone(seen_from)}) == []) is runs


def test_a_window_within_a_day_is_open_from_its_first_minute_to_before_its_last() -> None:
    hours = Hours.model_validate({"zone": "UTC", "opens": time(9), "closes": "17:00"})
    day = datetime(2026, 11, 22, tzinfo=UTC)  # a Sunday, and all days are allowed
    policy = parse(POLICY).model_copy(update={"hours": hours})
    allowed = [
        h
        for h in range(24)
        if not decide(policy, parse_job(JOB), Circumstances(**{**HERE, "now": day.replace(hour=h)}))
    ]
    assert allowed == list(range(9, 17))


def test_a_time_without_zone_is_a_mistake_of_the_caller() -> None:
    with pytest.raises(ValueError, match="must carry its time zone"):
        sentences(here={"now": datetime(2026, 11, 16)})  # noqa: DTZ001 - on purpose


def test_no_refusal_says_where_anything_lies_or_repeats_what_a_terminal_would_obey() -> None:
    said = sentences(job=(f'data.train="\\u001b[2J\\n{"x" * 900}"',), here={"submitter": "\x1b]0;"})
    assert len(said) == 2
    for one in said:
        assert "secret" not in one
        assert one.isprintable()
        assert one.isascii()
        assert len(one) < 250


def test_a_refusal_lists_a_few_names_and_counts_the_others() -> None:
    many = json.dumps([f"p{i:02}" for i in range(30)])
    (said,) = sentences(POLICY.replace('["ann@lab.example"]', many))
    assert said.endswith("takes jobs from p00, p01, p02, p03, p04, p05, p06, p07 and 22 more")


def test_the_cohort_is_as_large_as_the_one_that_is_drawn() -> None:
    for share, clients in itertools.product((0.1, 0.3, 0.34, 0.7, 1.0), (1, 2, 3, 10, 30)):
        job = parse_job(f"[clients]\ncohort = {share}")
        drawn = Sampling(job, [f"c{i}" for i in range(clients)]).cohort(1)
        assert cohort_of(job, clients) == len(drawn)
    for sampling in ("size", "poisson"):  # one client may be all there is
        job = parse_job(f'[clients]\ncohort = 0.5\nsampling = "{sampling}"')
        assert cohort_of(job, 10) == 1
    assert cohort_of(parse_job('[clients]\nsampling = "poisson"'), 10) == 10


def test_a_job_reads_the_columns_that_it_names() -> None:
    causal = parse_job(
        '[data]\ntask = "causal"\nsource = "jsonl"\ntrain = "t"\npublic = "p"\nprompt = "q"\n'
        'response = "r"'
    )
    assert wanted(causal) == {"t": {"q", "r"}, "p": {"q", "r"}}
    assert wanted(Job()) == {"opinions": {"text", "label", "silo"}}


# --- Laws -------------------------------------------------------------------------------------

Raw = dict[str, Any]
JOBS = [
    parse_job(JOB, overrides=[f"mode={mode}", *more])
    for mode in ("params", "logits", "split")
    for more in (
        [],
        ["split.labels=shared", "wire.up=int8"],
        ["data.public=open", "split.cut=[0,6]"],
    )
]
PLACES = [
    Circumstances(**HERE),
    Circumstances(**{**HERE, "clients": 2, "round_bytes": 11_000_000, "blocks": None}),
    Circumstances(now=MONDAY - timedelta(hours=5)),
]


def _less(*path: str) -> Callable[[Raw, int], None]:
    """Take away one thing that is allowed."""

    def tighten(raw: Raw, n: int) -> None:
        place: Any = raw
        for part in path:
            place = place[part]
        if isinstance(place, list) and len(place) > (path[-1] == "days"):
            del place[n % len(place)]
        elif isinstance(place, dict) and len(place) > (path[-1] == "columns"):
            del place[sorted(place)[n % len(place)]]

    return tighten


def _set(section: str, key: str, change: Callable[[Any, int], Any]) -> Callable[[Raw, int], None]:
    def tighten(raw: Raw, n: int) -> None:
        table = raw.setdefault(section, {})
        table[key] = change(table.get(key), n)

    return tighten


def _never(_old: object, _n: int) -> bool:
    return False


def _always(_old: object, _n: int) -> bool:
    return True


def _one(_old: object, _n: int) -> float:
    return 1.0


def _later(opens: Any, n: int) -> Any:  # noqa: ANN401 - TOML has two kinds of time
    return time((18 + n % 6), 1 + n % 58) if opens == "18:00" else opens


TIGHTER = [
    _less("modes"), _less("submitters"), _less("codecs"), _less("models"), _less("datasets"),
    _less("hours", "days"),
    lambda raw, n: _less("datasets", "tickets", "columns")(raw, n) if "tickets" in raw["datasets"]
    else None,
    lambda raw, _: raw["datasets"].get("open", {}).update(public=False),
    _set("leave", "activations", _never), _set("leave", "labels", _never),
    _set("leave", "texts", _never),
    _set("split", "first", lambda old, n: old + n % 3),
    _set("split", "last", lambda old, n: old + n % 3),
    _set("limits", "round_mb", lambda old, n: old / (1 + n)),
    _set("limits", "message_mb", lambda old, n: old / (1 + n)),
    _set("limits", "cohort", lambda old, n: (old or 3) + n),
    _set("privacy", "clip", _one), _set("privacy", "noise", _one),
    _set("privacy", "secure_aggregation", _always),
    _set("hours", "opens", _later),
]  # fmt: skip


def _reasons(raw: Raw) -> list[list[str]]:
    """Which keys refuse, for every job at every place; a column counts as its dataset."""
    policy = Policy.model_validate(raw)
    return [
        [re.sub(r"^(datasets).*", r"\1", r.key) for r in decide(policy, job, here)]
        for job in JOBS
        for here in PLACES
    ]


@settings(max_examples=60)
@given(st.lists(st.tuples(st.integers(0, len(TIGHTER) - 1), st.integers(0, 9)), max_size=6))
def test_a_stricter_policy_refuses_whatever_a_laxer_one_does(steps: list[tuple[int, int]]) -> None:
    raw = tomllib.loads(POLICY)
    before = _reasons(raw)
    for which, n in steps:
        TIGHTER[which](raw, n)
        after = _reasons(raw)
        for lax, strict in zip(before, after, strict=True):
            assert set(lax) <= set(strict)
        before = after


@settings(max_examples=30)
@given(st.randoms(use_true_random=False))
def test_the_order_of_a_policy_file_does_not_matter(random: Any) -> None:  # noqa: ANN401
    def shuffled(value: Any) -> Any:  # noqa: ANN401 - whatever TOML holds
        if isinstance(value, dict):
            keys = list(value)
            random.shuffle(keys)
            return {key: shuffled(value[key]) for key in keys}
        if isinstance(value, list):
            return random.sample(value, len(value))
        return value

    raw = tomllib.loads(POLICY)
    other = tomllib.loads(tomli_w.dumps(shuffled(raw)))
    one, two = Policy.model_validate(raw), Policy.model_validate(other)
    for job, here in itertools.product(JOBS, PLACES):
        assert decide(one, job, here) == decide(two, job, here)


# --- What a limit needs to know ---------------------------------------------------------------


TRUNK = [0, 0, 1, 0, 0, 0]
"""Numbers that train, block by block: between the cuts of `JOB` only."""


@pytest.mark.parametrize(
    ("job", "sizes", "expected"),
    [
        # SmolLM2-135M, rank 8 on q and v of all blocks: S = 1,843,200, H = 6,912; 3 classes
        ((), {"blocks": [460_800], "head": 1_728}, 1_843_200 + 6_912),
        (("wire.up=bf16",), {"blocks": [460_800], "head": 1_728}, (1_843_200 + 6_912) // 2),
        (("wire.up=int4",), {"blocks": [460_800]}, 1_843_200),
        (("wire.up=raw", "model.dtype=float64"), {"blocks": [460_800]}, 2 * 1_843_200),
        (("wire.up=topk",), {"blocks": [460_800]}, 1_843_200),
        (("wire.up=sign", "model.dtype=float64"), {"blocks": [460_800]}, 2 * 1_843_200),
        (("wire.up={adapter='bf16'}",), {"blocks": [460_800]}, 1_843_200),
        (("wire.up={adapter='bf16', other='fp16'}",), {"blocks": [460_800]}, 1_843_200 // 2),
        (("mode=logits",), {"public": 100, "classes": 3, "blocks": [9]}, 1_200),
        ((SPLIT,), {"tokens": 1, "width": 576, "blocks": TRUNK}, 2 * 2_304),
        (
            (SPLIT, "train.epochs=3"),
            {"tokens": 10, "width": 576, "head": 5, "blocks": TRUNK},
            30 * 4_608 + 20,
        ),
        (
            (SPLIT,),
            {"tokens": 10, "texts": 2, "width": 576, "blocks": TRUNK[:5], "classes": 3},
            12 * 2_304,
        ),
        ((SPLIT,), {"tokens": 10, "width": 576, "blocks": [0] * 6}, 10 * 2_304),
        ((SPLIT,), {"tokens": 10, "width": 576, "blocks": [0, 9, 1, 0, 0, 6]}, 20 * 2_304 + 60),
        (
            (SPLIT, "split.labels=shared", "wire.up=bf16"),
            {"tokens": 10, "labels": 2, "width": 576, "blocks": [0, 7, 1, 1, 0, 6], "head": 5},
            10 * 1_152 + 2 * 4 + 7 * 2,
        ),
        ((), {"blocks": [10], "classes": 3, "tests": 5}, 40 + 9 * 8),
        ((), {"blocks": [10], "classes": 3}, 40),
        (("mode=logits",), {"public": 10, "classes": 3, "tests": 5}, 120 + 2 * 9 * 8),
        (
            (SPLIT,),
            {"tokens": 1, "width": 6, "tests": 2, "tested": 7, "classes": 2, "blocks": TRUNK},
            216 + 32,
        ),
        (
            (SPLIT, "split.labels=shared", "wire.up=bf16"),
            {"tokens": 1, "width": 6, "tests": 2, "tested": 7, "classes": 2, "blocks": TRUNK},
            12 + 84 + 28 + 32,
        ),
    ],
)
def test_a_round_is_as_large_as_the_ledgers_closed_forms(
    job: tuple[str, ...], sizes: dict[str, Any], expected: int
) -> None:
    assert round_bytes(parse_job(JOB, overrides=job), Sizes(**sizes)) == expected


@pytest.mark.parametrize(("vocabulary", "an_id"), [(65_536, 2), (65_537, 4)])
def test_predictions_of_a_causal_task_are_k_values_ids_and_a_rest(
    vocabulary: int, an_id: int
) -> None:
    job = parse_job(
        'mode = "logits"\n[data]\ntask = "causal"\nsource = "csv"\ntrain = "t"\ntext = "x"\n'
        "[logits]\ntop_k = 5"
    )
    sizes = Sizes(public=11, vocabulary=vocabulary)
    assert round_bytes(job, sizes) == 11 * (5 * (4 + an_id) + 4)


def test_what_is_expected_of_params_is_what_the_meter_books() -> None:
    import torch  # noqa: PLC0415  beside the one test that needs it

    section = Section(kind="dense", tensors={"a": torch.zeros(300, 100), "b": torch.zeros(77)})
    message = Message(kind="update", sections={"adapter": section})
    ledger = Ledger()
    ledger.sent("a", "up", message, len(pack(message)))
    booked = ledger.total().up
    expected = round_bytes(parse_job(JOB), Sizes(blocks=[30_000], head=77))
    assert expected == booked.payload_bytes
    assert expected <= booked.message_bytes <= 1.01 * expected


@pytest.mark.parametrize("text", ["[]", "{", '{"n_layer": "12"}', '{"n_layer": true}', "{}"])
def test_a_configuration_without_a_number_of_blocks_names_none(tmp_path: Path, text: str) -> None:
    (tmp_path / "model.safetensors").write_bytes(b"one")
    (tmp_path / "config.json").write_text(text, encoding="utf-8")
    found = weights(tmp_path)
    assert found is not None
    assert found.blocks is None


def test_a_model_folder_that_cannot_be_read_is_named(tmp_path: Path) -> None:
    (tmp_path / "model.safetensors").mkdir()
    with pytest.raises(DataError, match=r"model\.safetensors of model folder .* is no plain file"):
        weights(tmp_path)


# --- The page ---------------------------------------------------------------------------------


def test_every_example_on_the_page_is_a_policy() -> None:
    blocks = re.findall(r"^```toml fragment\n(.*?)^```", PAGE, re.MULTILINE | re.DOTALL)
    assert blocks
    for block in blocks:
        parse(block)


def test_the_page_lists_every_key_with_its_default() -> None:
    written = dict(re.findall(r"^\| `([\w.<>]+)` \| (.+?) \|", PAGE, re.MULTILINE))
    known: dict[str, Any] = {
        key: getattr(Policy(), key)
        for key in Policy.model_fields
        if key not in TABLES and key != "models"
    }
    known["models.<name>"] = None
    for name, part in TABLES.items():
        place = f"{name}.<name>" if name in NAMED else name
        for key, field in part.model_fields.items():
            known[f"{place}.{key}"] = None if field.is_required() else field.default
    assert sorted(written) == sorted(known)
    for key, default in known.items():
        plain = list(default) if isinstance(default, tuple) else default
        assert written[key] == ("none" if plain is None else f"`{json.dumps(plain)}`"), key


def test_limits_and_codecs_left_at_their_defaults_fit_a_job_of_defaults() -> None:
    text = 'modes = ["params"]\nsubmitters = ["anna"]\n[models]\nm = "' + "a" * 64 + '"\n'
    text += "[datasets.opinions]\npaths = ['x.csv']\n"
    text += "columns = { text = 't', label = 'l', silo = 's' }\n"
    here = Circumstances(
        now=HERE["now"], submitter="anna", model_sha256="a" * 64, blocks=30, clients=3,
        round_bytes=1_850_112,
    )  # fmt: skip
    assert not decide(parse(text), parse_job(""), here)


@pytest.mark.parametrize("digit", ["a", "A"])
def test_a_pin_of_a_source_reads_both_cases_as_pins_of_weights_do(digit: str) -> None:
    pin = Pin(package="pack", sha256=digit * 64)
    assert pin.against(Origin(package="pack", version="1", sha256="a" * 64)) == ""
    other = pin.against(Origin(package="pack", version="1", sha256="b" * 64))
    assert other == f"has it of sha256 {'b' * 64!r}, and pins {'a' * 64!r}"
