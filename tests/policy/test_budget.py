"""What a site gives of a dataset: by whose draw, and how much to all jobs together."""

import contextlib
import json
import os
import random
import threading
from datetime import UTC, datetime, timedelta
from pathlib import Path

import pytest

from triskel.config.job import Job
from triskel.config.read import parse
from triskel.data.federate import federate_own
from triskel.data.reading import Dataset
from triskel.errors import DataError, LimitError
from triskel.policy.budget import FILE, Spent, accounts, lines
from triskel.policy.draws import Draws, files_of, key_of
from triskel.policy.hash_chain import AuditError
from triskel.policy.limits import asked_of
from triskel.policy.read import parse as policy_of
from triskel.policy.rules import Budget

NOON = datetime(2026, 11, 27, 12, tzinfo=UTC)


def table(place: Path, rows: int = 200) -> Path:
    lines_ = [f"word{i % 7} text {i},{'yes' if i % 2 else 'no'}" for i in range(rows)]
    place.write_text("\n".join(["t,l", *lines_]) + "\n", encoding="utf-8")
    return place


def job(**keys: object) -> Job:
    data = {"test_share": 0.2} | {k: v for k, v in keys.items() if k == "test_share"}
    caps = {k: v for k, v in keys.items() if k not in {"test_share", "seed"}}
    return parse(
        f"seed = {keys.get('seed', 0)}\n"
        '[data]\nsource = "clients"\ntrain = "mine"\ntext = "t"\nlabel = "l"\n'
        f'classes = ["no", "yes"]\ntest_share = {data["test_share"]}\n'
        "[clients]\n" + "\n".join(f"{k} = {v}" for k, v in caps.items())
    )


def held(asked: Job, place: Path, secrets: Path) -> tuple[set[str], set[str]]:
    """The texts that a site would train on and test on."""
    named = {"mine": Dataset(paths=[place], columns={"t": "t", "l": "l"})}
    draws = Draws(secrets, [key_of(str(place))])
    own = federate_own(asked, "bank", named, draws.seed).clients["bank"]
    return set(own.train.text), set(own.test.text)


# --- draws ------------------------------------------------------------------------------------


def test_the_same_question_has_the_same_rows_in_every_job_of_whatever_seed(tmp_path: Path) -> None:
    place = table(tmp_path / "mine.csv")
    first = held(job(examples=60, test_examples=25), place, tmp_path / "s")
    assert held(job(examples=60, test_examples=25, seed=7), place, tmp_path / "s") == first
    assert held(job(examples=60, test_examples=25), place, tmp_path / "other") != first


def test_no_sample_is_nested_in_the_sample_of_a_cap_that_differs_by_one(tmp_path: Path) -> None:
    """Were it, two losses would differ by one text's."""
    place = table(tmp_path / "mine.csv", 1000)
    for cap in range(50, 60):
        _, fewer = held(job(test_examples=cap), place, tmp_path / "s")
        _, more = held(job(test_examples=cap + 1), place, tmp_path / "s")
        assert (len(fewer), len(more)) == (cap, cap + 1)
        assert len(fewer - more) > cap // 3
    for cap in (100, 150):
        fewer, _ = held(job(examples=cap), place, tmp_path / "s")
        more, _ = held(job(examples=cap + 1), place, tmp_path / "s")
        assert len(fewer - more) > cap // 3


def test_no_test_share_is_nested_in_another(tmp_path: Path) -> None:
    place = table(tmp_path / "mine.csv", 1000)
    _, fewer = held(job(test_share=0.2), place, tmp_path / "s")
    _, more = held(job(test_share=0.202), place, tmp_path / "s")
    assert len(fewer - more) > 50


def test_two_names_of_one_file_draw_the_same_rows(tmp_path: Path) -> None:
    place = table(tmp_path / "mine.csv")
    (tmp_path / "soft.csv").symlink_to(place)
    os.link(place, tmp_path / "hard.csv")
    first = held(job(test_examples=20), place, tmp_path / "s")
    assert held(job(test_examples=20), tmp_path / "soft.csv", tmp_path / "s") == first
    assert key_of(str(tmp_path / "hard.csv"), [str(place)]) == str(place)
    assert len(json.loads((tmp_path / "s" / "draws.json").read_text())) == 1


def test_the_secret_is_the_sites_alone(tmp_path: Path) -> None:
    held(job(test_examples=20), table(tmp_path / "mine.csv"), tmp_path / "s")
    assert (tmp_path / "s" / "draws.json").stat().st_mode & 0o077 == 0


@pytest.mark.parametrize("text", ["{", "[]", '{"a": 3}', '{"a": "zz"}'])
def test_a_damaged_secret_is_refused_and_not_replaced(text: str, tmp_path: Path) -> None:
    place = tmp_path / "draws.json"
    place.write_text(text, encoding="utf-8")
    with pytest.raises(DataError, match=r"draws\.json, by which rows are drawn, cannot be kept"):
        Draws(tmp_path, ["/data/mine.csv"]).seed("test")
    assert place.read_text(encoding="utf-8") == text


# --- budget -----------------------------------------------------------------------------------


def few(**keys: float) -> Budget:
    return Budget(**{"jobs_day": 2, "jobs": 3, "rounds_day": 4, "rounds": 6} | keys)


def spent(folder: Path, run: str = "a", when: datetime = NOON, **keys: float) -> Spent:
    return Spent(folder, ["/data/mine.csv"], few(**keys), run, lambda: when)


def test_a_run_is_one_job_however_often_it_is_submitted(tmp_path: Path) -> None:
    for _ in range(5):
        spent(tmp_path).job()
    spent(tmp_path, "b").job()
    with pytest.raises(LimitError, match=r"^budget\.jobs_day: "):
        spent(tmp_path, "c").job()
    spent(tmp_path, "c", NOON + timedelta(days=1)).job()
    with pytest.raises(LimitError, match=r"^budget\.jobs: "):
        spent(tmp_path, "d", NOON + timedelta(days=2)).job()


def test_rounds_scores_and_bytes_end_where_the_policy_says(tmp_path: Path) -> None:
    one = spent(tmp_path, scores_day=2, mb_day=3.0)
    for _ in range(4):
        one.take("rounds")
    with pytest.raises(LimitError, match=r"^budget\.rounds_day: "):
        one.take("rounds")
    one.take("scores")
    one.take("scores")
    with pytest.raises(LimitError, match=r"^budget\.scores_day: "):
        one.take("scores")
    for _ in range(30):
        one.leaving(100_000)
    with pytest.raises(LimitError, match=r"^budget\.mb_day: "):
        one.leaving(1)
    (account,) = accounts(tmp_path).values()
    assert account.ever == {"jobs": 0.0, "rounds": 4.0, "scores": 2.0, "mb": 3.0}


def test_no_more_than_the_budget_leaves_whatever_the_messages(tmp_path: Path) -> None:
    dice, sent = random.Random(3), 0  # noqa: S311 - sizes of messages
    for _ in range(100):
        one = spent(tmp_path, mb=20.0, mb_day=20.0)  # a process that was started anew
        for _ in range(dice.randrange(4)):
            size = dice.randrange(1, 2_000_000)
            with contextlib.suppress(LimitError):
                one.leaving(size)
                sent += size
    assert 15_000_000 < sent <= 20_000_000


def test_submitters_and_names_share_one_account(tmp_path: Path) -> None:
    place = table(tmp_path / "mine.csv")
    (tmp_path / "alias.csv").symlink_to(place)
    for name in ("mine.csv", "alias.csv"):
        files = [key_of(str(tmp_path / name))]
        Spent(tmp_path, files, few(), f"run of {name}", lambda: NOON).job()
    (account,) = accounts(tmp_path).values()
    assert account.ever["jobs"] == 2


def test_one_file_of_several_that_is_used_up_is_enough(tmp_path: Path) -> None:
    spent(tmp_path).job()
    spent(tmp_path, "b").job()
    both = Spent(tmp_path, ["/data/mine.csv", "/data/new.csv"], few(), "c", lambda: NOON)
    assert both.short({"jobs": 1}) == ["jobs_day"]
    with pytest.raises(LimitError):
        both.job()
    assert "/data/new.csv" not in accounts(tmp_path)


def test_a_job_that_asks_for_more_than_is_left_is_told_so_before(tmp_path: Path) -> None:
    assert spent(tmp_path).short({"jobs": 1, "rounds": 5}) == ["rounds_day"]
    assert spent(tmp_path).short({"jobs": 1, "rounds": 7}) == ["rounds_day", "rounds"]
    assert spent(tmp_path).short({"jobs": 1, "rounds": 4}) == []
    spent(tmp_path).job()
    assert spent(tmp_path).short({"jobs": 1, "rounds": 7}) == []  # it goes on as far as it comes


@pytest.mark.parametrize(
    ("old", "new"),
    [
        ("}", ""),
        ("{", "["),
        ('"rounds": 1.0', '"rounds": -5.0'),
        ('"rounds": 1.0', '"rounds": NaN'),
        ('"ever"', '"never"'),
    ],
)
def test_accounts_that_cannot_be_read_give_nothing(old: str, new: str, tmp_path: Path) -> None:
    spent(tmp_path).take("rounds")
    file = tmp_path / FILE
    file.write_text(file.read_text().replace(old, new, 1), encoding="utf-8")
    with pytest.raises(AuditError, match="nothing is"):
        spent(tmp_path).take("rounds")
    with pytest.raises(AuditError, match="nothing is"):
        spent(tmp_path).leaving(3)
    with pytest.raises(AuditError, match="nothing is"):
        spent(tmp_path).job()


def test_accounts_that_cannot_be_written_give_nothing(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def full(*_: object, **_more: object) -> None:
        raise OSError(28, "No space left on device")

    monkeypatch.setattr(Path, "write_text", full)
    with pytest.raises(AuditError, match="so nothing is given"):
        spent(tmp_path).take("rounds")


def test_two_jobs_at_once_take_turns(tmp_path: Path) -> None:
    def take(run: str) -> None:
        for _ in range(20):
            spent(tmp_path, run, rounds=1000, rounds_day=1000).take("rounds")

    hands = [threading.Thread(target=take, args=(f"run {i}",)) for i in range(4)]
    for hand in hands:
        hand.start()
    for hand in hands:
        hand.join()
    (account,) = accounts(tmp_path).values()
    assert account.ever["rounds"] == 80


def test_an_account_is_told_in_a_line(tmp_path: Path) -> None:
    spent(tmp_path).job()
    (line,) = lines(tmp_path, few())
    assert line.startswith("/data/mine.csv: jobs 1 of 3 (1 of 2 on 2026-11-27), rounds 0 of 6 ")


def test_files_of_a_policy_are_their_real_places(tmp_path: Path) -> None:
    table(tmp_path / "mine.csv")
    (tmp_path / "link.csv").symlink_to("mine.csv")
    text = "".join(
        f"[datasets.{name}]\npaths = ['{tmp_path / name}.csv']\ncolumns = {{ t = 't' }}\n"
        for name in ("mine", "link")
    )
    assert files_of(policy_of(text), ["mine", "link", "absent"]) == [str(tmp_path / "mine.csv")]


@pytest.mark.parametrize(("every", "scores"), [(0, 3), (1, 30), (4, 9), (10, 3)])
def test_a_job_asks_for_as_many_scores_as_it_tests(every: int, scores: int) -> None:
    """`logits` tests the clients' models and the server's."""
    job = parse(f"rounds = 10\n[evaluate]\nevery = {every}")
    jobs = [job.model_copy(update={"mode": mode}) for mode in ("params", "logits")]
    assert asked_of(jobs) == {"jobs": 1, "rounds": 20, "scores": scores}
