"""A job whose rounds close with their first updates is refused where that cannot be right."""

import pytest

from triskel.config.job import unfederated
from triskel.config.read import parse
from triskel.errors import JobError
from triskel.policy.limits import cohort_of, quorum_of

BUFFER = ("federation.buffer=2", "evaluate.every=0")


def why(*more: str, mode: str = "params") -> str:
    return unfederated(parse("rounds = 3", overrides=(*BUFFER, *more)), mode) or ""


@pytest.mark.parametrize(
    "more",
    [
        (),
        ('params.local="fedprox"',),
        ("params.server_momentum=0.9",),
        ('params.server_optimizer="adam"',),
        ("clients.max_share=0.5",),
        ('wire.up="int8"', 'wire.down="bf16"'),
        ("federation.staleness=0",),
        ('adapter.kind="dora"',),
    ],
)
def test_what_is_a_mean_of_whole_tensors_is_carried(more: tuple[str, ...]) -> None:
    assert why(*more) == ""


@pytest.mark.parametrize(
    "more",
    [
        ('params.trains="ffa"',),
        ('params.trains="fedsa"',),
        ('params.trains="rolora"',),
        ('params.trains="fedsb"',),
        ('params.head="local"',),
        ('params.local="scaffold"',),
        ('params.local="fedadamw"',),
        ('params.local="ditto"',),
        ('params.local="finetune"',),
        ('params.moments="kept"',),
        ('params.exchange="fedkseed"', 'train.schedule="constant"'),
        ('params.aggregate="median"',),
        ('params.aggregate="fednova"',),
        ('params.aggregate="flora"',),
        ('params.aggregate="krum"',),
    ],
)
def test_what_is_no_mean_of_whole_tensors_is_not(more: tuple[str, ...]) -> None:
    assert why(*more).startswith("federation.buffer needs a mode that averages whole tensors")


@pytest.mark.parametrize("mode", ["logits", "split"])
def test_modes_that_talk_are_not(mode: str) -> None:
    assert f"which {mode} does not do" in why(mode=mode)


@pytest.mark.parametrize(
    ("more", "key"),
    [
        ("evaluate.every=1", "evaluate.every must be 0"),
        ("evaluate.every=3", "evaluate.every must be 0"),
        ("clients.cohort=0.5", "leave clients.cohort at 1.0"),
        ('clients.sampling="size"', 'and sampling at "uniform"'),
        ('wire.up="topk"', "wire.up carries changes"),
        ('wire.down={ name = "int8", change = true }', "wire.down carries changes"),
    ],
)
def test_other_sections_that_do_not_go_with_a_buffer_are_named(more: str, key: str) -> None:
    assert key in why(more)


@pytest.mark.parametrize(
    ("more", "key"),
    [("federation.quorum=0.6", "federation.quorum"), ("federation.deadline_s=9", "deadline_s")],
)
def test_a_buffer_says_alone_whom_a_round_waits_for(more: str, key: str) -> None:
    with pytest.raises(JobError, match=key):
        parse("rounds = 3", overrides=(*BUFFER, more))
    parse("rounds = 3", overrides=(more,))


def test_without_a_buffer_nothing_of_it_is_asked() -> None:
    for more in ('params.trains="ffa"', "evaluate.every=1", 'wire.up="topk"'):
        assert unfederated(parse("rounds = 3", overrides=(more,)), "params") is None


def test_a_round_may_close_with_as_many_as_the_buffer_says() -> None:
    job = parse("rounds = 3", overrides=BUFFER)
    assert [quorum_of(job, cohort_of(job, n)) for n in (1, 2, 3, 50)] == [1, 2, 2, 2]
