"""What a site holds submitters and the server to: owners, floors, budgets, tests, shares."""

# ruff: noqa: ANN401 - calls carry anything

import json
import runpy
from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
import torch

from triskel.engines.flare import site_admission
from triskel.engines.flare.server_job import ServerJob
from triskel.engines.flare.site_job import SiteJob
from triskel.engines.flare.site_outbox import Outbox
from triskel.engines.flare.submission import own_code, owned
from triskel.errors import LimitError, RoundError
from triskel.experiment import models
from triskel.modes.params.mode import Params
from triskel.policy.budget import accounts
from triskel.policy.hash_chain import read
from triskel.policy.rounding import near

there = SimpleNamespace(**runpy.run_path(str(Path(__file__).parents[2] / "helpers" / "sites.py")))
ANNA, RUN, SITES = there.ANNA, there.RUN, there.SITES
EVE = "eve@lab.example"


@pytest.fixture
def party(tmp_path: Path) -> Iterator[Any]:
    found = there.Party(there.house(tmp_path))
    yield found
    found.close()


def allow(root: Path, *names: str, **changes: str) -> None:
    """Write policies that allow more submitters, or something else."""
    for name in ("server", *SITES):
        file = root / name / "local" / "policy.toml"
        text = file.read_text()
        sha256 = text.partition('tiny = "')[2][:64]
        people = json.dumps([ANNA, *names])
        file.write_text(there.policy(name, sha256, **{"submitters": people} | changes))


def hello(house: Any, by: str | None = ANNA, run: str = RUN, strange: str = "", **how: Any) -> Any:
    """Ask the bank whether it takes a job; `how` replaces parts of the job's text."""
    spec = house.spec(*how.pop("modes", ("params",)), run=run)
    for old, new in how.items():
        spec["job"] = spec["job"].replace(*new) if isinstance(new, tuple) else spec["job"] + new
        del old
    one = SiteJob("bank", house.root / "bank", spec, there.Loop(_never), by, strange=strange)
    reply: Any = {"state": "preparing"}
    while reply["state"] == "preparing":
        reply = one.hello({**own_code(), "clients": 3})
    one.close()
    return reply


def _never(_method: str, _arguments: Any) -> Any:
    raise AssertionError("nobody is asked")


# --- whose run it is --------------------------------------------------------------------------


def test_a_refused_submitter_gets_nothing_of_a_run_whose_number_it_names(tmp_path: Path) -> None:
    house = there.house(tmp_path)
    assert there.Meeting(house, house.spec("params")).play()["done"]
    eves = there.Meeting(house, house.spec("params"), submitter=EVE)
    eves.out = tmp_path / "eve"
    ended = eves.play()
    assert (ended["done"], ended["refused"]) == (False, True)
    assert [path.name for path in eves.out.iterdir()] == ["ended.json"]


@pytest.mark.parametrize("number", [RUN, RUN.replace("0", "1")])
def test_a_permitted_one_gets_a_run_of_its_own_under_that_number(
    number: str, tmp_path: Path
) -> None:
    house = there.house(tmp_path)
    allow(tmp_path, EVE)
    assert there.Meeting(house, house.spec("params")).play()["done"]
    kept = tmp_path / "server" / "triskel" / "runs" / owned(RUN, ANNA)
    before = {p: p.read_bytes() for p in kept.rglob("*") if p.is_file()}
    other = replace(house, text=house.text.replace("rounds = 2", "rounds = 1"))
    eves = there.Meeting(other, other.spec("params", run=number), submitter=EVE)
    eves.out = tmp_path / "eve"
    assert eves.play()["done"]
    assert len(json.loads((eves.out / "result.json").read_text())["modes"]["params"]["rounds"]) == 1
    assert {p: p.read_bytes() for p in kept.rglob("*") if p.is_file()} == before
    for site in SITES:
        runs = {p.name for p in (tmp_path / site / "triskel" / "runs").iterdir()}
        assert runs == {owned(RUN, ANNA), owned(number, EVE)}


def test_a_job_that_failed_for_its_owner_is_not_handed_to_another(tmp_path: Path) -> None:
    house = there.house(tmp_path)
    allow(tmp_path, EVE)

    def lose(_name: str, _m: str, arguments: Any) -> str:
        play = arguments.get("play") or arguments.get("order", {}).get("play", "")
        return "before" if str(play).startswith("params/2") else ""

    annas = there.Meeting(house, house.spec("params"), lose)
    assert not annas.play()["done"]
    assert (annas.out / "events.jsonl").exists()
    eves = there.Meeting(house, house.spec("params"), submitter=EVE)
    eves.out = tmp_path / "eve"
    assert eves.play()["done"]
    whole = (eves.out / "events.jsonl").read_text()
    assert whole.count('"round_end"') == 2, "it begins at round 1"


def test_status_names_no_run(party: Any) -> None:
    assert RUN not in json.dumps(party.meeting.host.status())


# --- who submits it ---------------------------------------------------------------------------


@pytest.mark.parametrize(
    "why", ["is not signed by a member of this federation", "was played before"]
)
def test_a_job_whose_signature_does_not_hold_is_refused_before_anything_is_read(
    why: str, tmp_path: Path
) -> None:
    house = there.house(tmp_path)
    reply = hello(house, None, strange=why)
    assert reply["state"] == "refused"
    assert reply["error"] == f"submitters: the job {why}; this site does not allow it"
    (line,) = read(tmp_path / "bank" / "triskel" / "audit.jsonl")
    assert (line["allowed"], line["by"]) == (False, None)
    assert not (tmp_path / "bank" / "triskel" / "spent.json").exists()


def test_a_server_takes_no_job_whose_signature_does_not_hold(tmp_path: Path) -> None:
    house = there.house(tmp_path)
    host = ServerJob(
        tmp_path / "server", house.spec("params"), {}, None, strange="was played before"
    )
    assert host.play(tmp_path / "out")["error"] == (
        "the server refuses: submitters: the job was played before"
    )


# --- few rows ---------------------------------------------------------------------------------

CAPS = {
    "a cap of one test row": ("floors.test", "[clients]\ntest_examples = 1\n"),
    "a cap below the floor": ("floors.train", "[clients]\nexamples = 9\n"),
    "batches, rows and tests of one": (
        "floors.train", "[clients]\nexamples = 1\ntest_examples = 1\n",
    ),
}  # fmt: skip


@pytest.mark.parametrize("name", CAPS)
def test_a_cap_below_the_floor_is_refused_before_anything_is_read(
    name: str, tmp_path: Path
) -> None:
    key, text = CAPS[name]
    house = there.house(tmp_path)
    allow(tmp_path, **{"floors.train": "10", "floors.test": "2"})
    reply = hello(replace(house, text=house.text + text))
    assert reply["state"] == "refused"
    assert f"{key}: the job" in reply["error"]
    (line,) = read(tmp_path / "bank" / "triskel" / "audit.jsonl")
    assert line["to"] == "read"
    assert (line["job_toml"] or "").startswith("name")


@pytest.mark.parametrize(
    ("floors", "change", "key"),
    [
        ({"floors.train": "12"}, "", "floors.train"),  # the bank has 11 rows
        ({"floors.test": "4"}, "", "floors.test"),  # and 3 test rows
        ({"floors.train": "11", "floors.test": "3"}, "", ""),
    ],
)
def test_floors_count_what_is_there(
    floors: dict[str, str], change: str, key: str, tmp_path: Path
) -> None:
    house = there.house(tmp_path)
    allow(tmp_path, **floors)
    reply = hello(replace(house, text=house.text + change))
    assert reply["state"] == ("refused" if key else "ready")
    assert reply["error"].startswith(f"{key}: " if key else "")
    assert not any(number in reply["error"] for number in ("11", "12", "3 ", "4 "))


def test_rows_of_which_no_token_is_left_do_not_count(tmp_path: Path) -> None:
    """With few tokens a text no response token of which is left trains nothing."""
    house = there.house(tmp_path, task="causal", longest=40)
    allow(tmp_path, **{"floors.train": "11"})
    assert hello(house)["state"] == "refused"
    longer = replace(house, text=house.text.replace("max_tokens = 12", "max_tokens = 99"))
    assert hello(longer, run="a" * 12)["state"] == "ready"


@pytest.mark.parametrize("alias", ["reviews", "copy", "hard"])
def test_a_job_is_not_tested_on_what_it_trains_on(alias: str, tmp_path: Path) -> None:
    house = there.house(tmp_path)
    place = tmp_path / "bank" / "reviews.csv"
    (tmp_path / "bank" / "copy.csv").symlink_to(place)
    (tmp_path / "bank" / "hard.csv").hardlink_to(place)
    file = tmp_path / "bank" / "local" / "policy.toml"
    columns = "columns = { text = 'text', label = 'label', answer = 'answer' }"
    more = [f"\n[datasets.{n}]\npaths = ['../{n}.csv']\n{columns}\n" for n in ("copy", "hard")]
    file.write_text(file.read_text() + "".join(more))
    text = house.text.replace('test = "tests"', f'test = "{alias}"')
    reply = hello(replace(house, text=text))
    assert reply["state"] == "refused"
    assert f"is tested on dataset '{alias}', which it trains on" in reply["error"]


# --- how exactly, how often -------------------------------------------------------------------


def test_scores_leave_rounded_and_without_the_table(tmp_path: Path) -> None:
    house = there.house(tmp_path)
    allow(tmp_path, **{"scores.loss_step": "0.25", "scores.share_step": "0.5",
                       "scores.table": "false"})  # fmt: skip
    meeting = there.Meeting(house, house.spec("params", "logits"))
    assert meeting.play()["done"]
    result = json.loads((meeting.out / "result.json").read_text())
    for mode in ("params", "logits"):
        for one in result["modes"][mode]["rounds"]:
            for row in one["per_client"].values():
                assert "macro_f1" not in row
                assert row["loss"] == pytest.approx(near(row["loss"], 0.25))
                right = row["accuracy"] * row["examples"]
                assert right == pytest.approx(round(right))
                assert abs(row["accuracy"] - near(row["accuracy"], 0.5)) <= 0.5 / row["examples"]
    (line, *_) = [x for x in read(tmp_path / "bank" / "triskel" / "audit.jsonl")
                  if x["what"] == "left" and x.get("topic") == "score"]  # fmt: skip
    assert line["sections"] == {}


def test_the_losses_of_training_leave_rounded_too(tmp_path: Path) -> None:
    house = there.house(tmp_path)
    allow(tmp_path, **{"scores.loss_step": "0.5"})
    meeting = there.Meeting(house, house.spec("params"))
    seen: list[float] = []
    real = Params.add

    def looked(self: Any, state: Any, total: Any, client: str, update: Any) -> Any:
        seen.append(update.facts["loss"])
        return real(self, state, total, client, update)

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(Params, "add", looked)
        assert meeting.play()["done"]
    assert len(seen) == 6
    assert all(loss == near(loss, 0.5) for loss in seen)


def test_a_job_ends_where_the_budget_does(tmp_path: Path) -> None:
    house = there.house(tmp_path)
    allow(tmp_path, **{"budget.rounds": "3"})
    assert there.Meeting(house, house.spec("params")).play()["done"]
    second = there.Meeting(house, house.spec("params", run="b" * 12))
    ended = second.play()
    assert ended["refused"]
    assert "budget.rounds: the job asks for more of a dataset than is left" in ended["error"]
    held = accounts(tmp_path / "bank" / "triskel").values()
    assert {one.ever["rounds"] for one in held} == {2.0}


def test_jobs_are_counted_before_anything_is_read_also_those_that_are_refused_later(
    tmp_path: Path,
) -> None:
    house = there.house(tmp_path)
    allow(tmp_path, **{"budget.jobs": "2", "floors.train": "999"})
    said = [hello(house, run=letter * 12)["error"] for letter in "abc"]
    assert [one.partition(":")[0] for one in said] == ["floors.train"] * 2 + ["budget.jobs"]
    assert hello(house, run="a" * 12)["error"].startswith("floors.train"), "it was counted before"


def test_what_leaves_is_counted_against_the_budget_of_bytes(tmp_path: Path) -> None:
    house = there.house(tmp_path)
    allow(tmp_path, **{"budget.mb": "0.5"})  # less than what is booked at a time
    ended = there.Meeting(house, house.spec("params")).play()
    assert not ended["done"]
    assert "budget.mb: what all jobs together may have" in ended["error"]
    lines = read(tmp_path / "bank" / "triskel" / "audit.jsonl")
    assert not [line for line in lines if line["what"] == "left"], "nothing left"


def test_a_site_draws_by_its_own_secret_and_not_by_the_jobs_seed(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    drawn: list[list[str]] = []
    real = site_admission.federate_own

    def looked(*what: Any) -> Any:
        found = real(*what)
        drawn.append(sorted(found.clients["bank"].train.text))
        return found

    monkeypatch.setattr(site_admission, "federate_own", looked)
    for name in ("one", "two"):
        house = there.house(tmp_path / name, rows=(60, 9, 20))
        capped = replace(house, text=house.text + "[clients]\nexamples = 20\n")
        for seed in ("", "seed = 7\n"):
            text = seed + capped.text
            reply = hello(replace(capped, text=text), run=("b" if seed else "a") * 12)
            assert reply["state"] == "ready"
    assert drawn[0] == drawn[1], "another seed of a job draws no other rows"
    assert drawn[0] != drawn[2], "another site does"


def test_a_model_that_is_changed_while_it_is_loaded_is_not_used(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    house = there.house(tmp_path)
    real = models.load

    def loaded(source: str, *rest: Any, **more: Any) -> Any:
        body = real(source, *rest, **more)
        place = Path(source) / "config.json"
        place.write_bytes(place.read_bytes())
        return body

    monkeypatch.setattr(models, "load", loaded)
    reply = hello(house)
    assert (reply["state"], reply["error"]) == (
        "failed", "DataError; the log of site 'bank' says more",
    )  # fmt: skip
    (*_, line) = read(tmp_path / "bank" / "triskel" / "audit.jsonl")
    assert (line["what"], line["error"]) == ("failed", "DataError")


def test_a_server_that_plays_on_is_stopped_by_the_budget(tmp_path: Path) -> None:
    house = there.house(tmp_path)
    allow(tmp_path, **{"budget.rounds": "2", "budget.scores": "2"})
    party = there.Party(house, ("params",))
    try:
        for _ in range(2):
            party.round("params")
        with pytest.raises(RoundError, match=r"budget\.rounds: what all jobs together may have"):
            party.round("params")
    finally:
        party.close()


# --- one test a round -------------------------------------------------------------------------


def test_a_second_model_of_a_round_is_not_tested(party: Any) -> None:
    start = party.modes["params"].start()
    party.scores("params")
    party.scores("params")  # the same again, as a server does that was started anew
    other = {n: t + 0.1 for n, t in start.adapter.items()}
    with pytest.raises(
        RoundError, match="tested here with another model; a site tests one a round"
    ):
        party.scores("params", state=replace(start, adapter=other))


@pytest.mark.parametrize("what", ["probe", "student"])
def test_a_round_that_the_job_does_not_test_is_not_tested(what: str, tmp_path: Path) -> None:
    house = there.house(tmp_path)
    text = house.text.replace("[federation]", "[evaluate]\nevery = 0\n[federation]")
    party = there.Party(replace(house, text=text), ("params", "logits"))
    try:
        student = None if what == "probe" else party.resources.body().initial
        mode = "params" if what == "probe" else "logits"
        engine, start = party.engine(mode), party.modes[mode].start()
        body = party.resources.body()
        with pytest.raises(RoundError, match="this job tests no model of round 0"):
            engine.scores(party.modes[mode], start, SITES, body, student=student)
    finally:
        party.close()


def test_two_hundred_probes_of_a_round_get_one_answer(party: Any) -> None:
    start, answers = party.modes["params"].start(), 0
    for probe in range(200):
        tensors = {n: t + 1e-3 * probe for n, t in start.adapter.items()}
        try:
            party.scores("params", state=replace(start, adapter=tensors))
            answers += 1
        except RoundError:
            pass
    assert answers == 1


def test_after_a_round_was_played_anew_it_may_be_tested_anew(party: Any) -> None:
    first, _ = party.round("params")
    party.scores("params", state=first)
    party.round("params")
    other = {n: t * 1.01 for n, t in first.adapter.items()}
    party.scores("params", state=replace(first, adapter=other))


def test_a_student_is_tested_once_a_round_too(party: Any) -> None:
    engine, mode = party.engine("logits"), party.modes["logits"]
    state = mode.start()
    body = party.resources.body()
    one = {n: torch.zeros_like(t) for n, t in body.initial.items()}
    engine.scores(mode, state, SITES, body, student=one)
    engine = party.engine("logits")
    with pytest.raises(RoundError, match="tested here with another model"):
        engine.scores(mode, state, SITES, body, student={n: t + 1 for n, t in one.items()})


@pytest.mark.parametrize("what", ["probe", "student"])
def test_a_test_among_few_is_refused_as_a_round_is(what: str, party: Any) -> None:
    site = party.meeting.sites["bank"]
    order = {"play": f"params/0/{what}/x", "stage": "params", "round": 0, "what": what, "size": 9}
    with pytest.raises(LimitError, match=r"limits\.cohort"):
        site.begin({**order, "least": 1})


# --- how much a site counts -------------------------------------------------------------------


@pytest.mark.parametrize("says", [2**60, 12, 1, 11.5, "11", None])
def test_a_site_counts_for_what_it_said_that_it_holds(says: Any, tmp_path: Path) -> None:
    """The bank said 11; whatever else it says later, the round closes without it."""
    house = there.house(tmp_path)
    text = house.text.replace("patience_s = 20", "patience_s = 20\nquorum = 0.6")
    party = there.Party(replace(house, text=text), ("params",))
    outbox = party.meeting.sites["bank"]._here.outbox
    real = outbox.leaving

    def lying(message: Any, stage: str, round_: int) -> bytes:
        facts = {**message.facts, "examples": says}
        if says is None:
            del facts["examples"]
        return real(replace(message, facts=facts), stage, round_)

    try:
        outbox.leaving = lying
        engine = party.engine("params")
        engine.examples = party.meeting.host._roster.examples
        _, ledger = party.round("params", engine=engine)
        assert "and it said that it holds 11" in ledger.absent["bank"]
        shares = {c: a.share for c, a in ledger.accounts.items() if a.share is not None}
        assert shares == {"clinic": 7 / 23, "shop": 16 / 23}
    finally:
        party.close()


def test_a_whole_job_holds_each_site_to_what_it_said(tmp_path: Path) -> None:
    house = there.house(tmp_path)
    text = house.text.replace("patience_s = 20", "patience_s = 20\nquorum = 0.6")
    lying = replace(house, text=text)
    meeting = there.Meeting(lying, lying.spec("params"))
    real = Outbox.leaving

    def more(self: Any, message: Any, stage: str, round_: int) -> bytes:
        if self is meeting.sites["bank"]._here.outbox and "examples" in message.facts:
            message = replace(message, facts={**message.facts, "examples": 2**60})
        return real(self, message, stage, round_)

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(Outbox, "leaving", more)
        assert meeting.play()["done"]
    rounds = json.loads((meeting.out / "result.json").read_text())["modes"]["params"]["rounds"]
    assert all("it said that it holds 11" in one["absent"]["bank"] for one in rounds)


def test_the_result_shows_each_share_and_none_is_above_the_jobs_most(tmp_path: Path) -> None:
    house = there.house(tmp_path)
    text = house.text + "\n[clients]\nmax_share = 0.4\n"
    capped = replace(house, text=text)
    meeting = there.Meeting(capped, capped.spec("params", "split"))
    assert meeting.play()["done"]
    result = json.loads((meeting.out / "result.json").read_text())
    for mode in ("params", "split"):
        for one in result["modes"][mode]["rounds"]:
            shares = {client: row["share"] for client, row in one["clients"].items()}
            assert sum(shares.values()) == pytest.approx(1)
            assert max(shares.values()) == pytest.approx(0.4)
            assert shares["shop"] == pytest.approx(0.4)
