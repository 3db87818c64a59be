"""One of a family is named alone, or with what it is set to; what is not there is told by key."""

import subprocess
import sys
from typing import Annotated, Any

import pytest
from pydantic import Field

from triskel.aggregate.build import aggregate_of
from triskel.aggregate.mean import Mean
from triskel.config.read import parse, to_toml
from triskel.core.aggregate_spec import AggregateSpec
from triskel.core.choice import Choice, name_of, settings_of
from triskel.core.options import Options
from triskel.core.registry import AGGREGATES
from triskel.errors import JobError


class Trim(Options):
    """What the aggregate of this test may be set to."""

    share: Annotated[float, Field(ge=0, lt=0.5, description="of each end")] = 0.1


class Trimmed(Mean):
    """The mean, which knows what it was made of."""

    def __init__(self, options: Trim) -> None:
        self.options = options


SPEC = AggregateSpec(
    name="trimmed", gloss="a mean", algorithm=f"{__name__}:Trimmed", options=Trim, lowrank=True
)


@pytest.fixture(autouse=True)
def there(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(AGGREGATES.places, "trimmed", f"{__name__}:SPEC")  # type: ignore[arg-type]


def job(value: str, more: str = "") -> Any:  # noqa: ANN401 - sections of modes are not typed
    return parse(f"{more}[params]\naggregate = {value}")


def test_a_name_stands_alone_or_with_options_and_is_written_as_it_was_read() -> None:
    alone, with_more = job('"trimmed"'), job('{name = "trimmed", share = 0.25}')
    assert name_of(alone.params.aggregate) == name_of(with_more.params.aggregate) == "trimmed"
    assert settings_of(with_more.params.aggregate) == {"share": 0.25}
    assert parse(to_toml(alone)) == alone
    assert parse(to_toml(with_more)) == with_more
    assert hash(with_more.params) == hash(parse(to_toml(with_more)).params)


def test_an_aggregate_is_made_of_its_options() -> None:
    for given, share in ((None, None), ("trimmed", 0.1), ({"share": 0.2}, 0.2)):
        chosen = Choice(name="trimmed", **given) if isinstance(given, dict) else given
        made: Any = aggregate_of(chosen)
        assert (made.options.share if share else type(made)) == (share or Mean)


@pytest.mark.parametrize(
    ("value", "said"),
    [
        ("3", r"params\.aggregate must be a name, or a table with one: .*got 3"),
        ("{share = 1}", r"params\.aggregate must be a name, or a table with one"),
        ("{name = 3}", r"params\.aggregate must be a name, or a table with one"),
        ('{name = "trim"}', r"params\.aggregate must be one of .*trimmed.*got 'trim'"),
        ('{name = "trimmed", part = 1}', r"params\.aggregate\.part is no option of trimmed"),
        ('{name = "mean", share = 1}', r"params\.aggregate\.share is no option of mean.*nothing"),
        (
            '{name = "trimmed", share = 0.5}',
            r"params\.aggregate\.share: .*less than 0\.5, got 0\.5",
        ),
    ],
)
def test_what_is_not_there_is_told_by_its_key(value: str, said: str) -> None:
    with pytest.raises(JobError, match=said):
        job(value)


def test_what_works_on_products_needs_factors() -> None:
    with pytest.raises(JobError, match=r"params\.aggregate 'trimmed' works with adapters of low"):
        job('"trimmed"', '[adapter]\nkind = "ia3"\n')


def test_naming_an_aggregate_loads_no_torch() -> None:
    script = (
        "import sys; from triskel.config.read import parse\n"
        "parse('[params]\\naggregate = {name = \"krum\", attackers = 2}')\n"
        "print('torch' in sys.modules)"
    )
    call = [sys.executable, "-c", script]
    done = subprocess.run(call, capture_output=True, text=True, check=True)
    assert done.stdout.strip() == "False"
