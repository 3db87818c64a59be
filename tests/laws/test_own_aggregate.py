"""An aggregate of another package adds up in `params` and in `split`, and after a kill.

`examples/own_aggregate` is installed beside Triskel, in which nothing is edited.
"""

# ruff: noqa: ANN401 - helpers are loaded by path

import runpy
from collections.abc import Iterator
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
import torch
from safetensors.torch import load_file
from torch import Tensor

from triskel.aggregate import aggregate_of
from triskel.aggregate.mean import Mean
from triskel.config.read import parse
from triskel.engines.local import LocalEngine
from triskel.errors import JobError, RoundError
from triskel.experiment.compare import Request, resume, run
from triskel.types import ClientUpdate, Section

TESTS = Path(__file__).resolve().parent.parent
small = SimpleNamespace(**runpy.run_path(str(TESTS / "helpers" / "small.py")))
plugins = SimpleNamespace(**runpy.run_path(str(TESTS / "helpers" / "plugins.py")))
sites = SimpleNamespace(**runpy.run_path(str(TESTS / "helpers" / "sites.py")))


@pytest.fixture(scope="module")
def package(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The example as pip installs it."""
    found: Path = plugins.install("own_aggregate", tmp_path_factory.mktemp("own"))
    return found


@pytest.fixture
def installed(package: Path) -> Iterator[None]:
    """With the example beside Triskel."""
    with plugins.beside(package, "own_aggregate"):
        yield


def job(folder: Path, **sections: Any) -> Any:
    model = small.save_model(folder / "model")
    rows = small.save_rows(folder / "rows.csv", 60)
    found = small.job(model, rows, **sections)
    plain = found.model.model_copy(update={"compute": "reference"})
    return found.model_copy(update={"model": plain})


def adapter(folder: Path, name: str) -> dict[str, Tensor]:
    return load_file(folder / "adapters" / name / "adapter_model.safetensors")


@pytest.mark.usefixtures("installed")
def test_params_ends_with_the_median_of_what_clients_alone_end_with(tmp_path: Path) -> None:
    """In one round a client trains as it does alone, so the server has the middle of the three."""
    one = job(tmp_path, params={"aggregate": "median"})
    request = Request(modes=("params",), baselines=("local",))
    run(one, request, tmp_path / "run", LocalEngine(one), small.watch)
    alone = [adapter(tmp_path / "run", f"local-client-0{i}") for i in (1, 2, 3)]
    found, moved = adapter(tmp_path / "run", "params"), 0
    for name, tensor in found.items():
        middle = torch.stack([each[name] for each in alone]).sort(dim=0).values[1]
        assert torch.equal(tensor, middle), name
        moved += not torch.equal(tensor, torch.stack([e[name] for e in alone]).mean(0))
    assert moved, "it is not the mean"


@pytest.mark.usefixtures("installed")
@pytest.mark.parametrize("mode", ["params", "split"])
def test_a_resumed_run_ends_with_the_same_bits(mode: str, tmp_path: Path) -> None:
    one = job(tmp_path, rounds=3, **{mode: {"aggregate": "median"}})
    request = Request(modes=(mode,), baselines=())

    def stop(event: Any) -> None:
        if event["event"] == "round_end" and event["round"] == 2:
            raise KeyboardInterrupt

    run(one, request, tmp_path / "whole", LocalEngine(one), small.watch)
    with pytest.raises(KeyboardInterrupt):
        run(one, request, tmp_path / "cut", LocalEngine(one), stop)
    resume(tmp_path / "cut", LocalEngine, small.watch)
    whole, again = adapter(tmp_path / "whole", mode), adapter(tmp_path / "cut", mode)
    assert all(torch.equal(whole[n], again[n]) for n in whole)
    plain = job(tmp_path, rounds=3)
    run(plain, request, tmp_path / "mean", LocalEngine(plain), small.watch)
    mean = adapter(tmp_path / "mean", mode)
    assert any(not torch.equal(whole[n], mean[n]) for n in whole)


@pytest.mark.usefixtures("installed")
def test_sites_end_as_one_process_and_need_not_have_it(tmp_path: Path) -> None:
    compared = SimpleNamespace(**runpy.run_path(str(TESTS / "engines" / "flare" / "test_sites.py")))
    there = compared.house(tmp_path, **{"params.aggregate": '"median"'})
    place = there.root / "server" / "local" / "policy.toml"
    refused = sites.Meeting(there, there.spec("params")).play()
    assert refused["refused"]
    assert "plugins.median: the job adds up by 'median'" in refused["error"]
    place.write_text(place.read_text() + '\n[plugins.median]\npackage = "own-aggregate"\n')
    assert sites.Meeting(there, there.spec("params")).play()["done"]
    compared.same(there, ("params",), compared.result(there))


def test_one_that_is_not_here_is_refused_and_ours_are_named() -> None:
    with pytest.raises(JobError, match=r"params\.aggregate must be one of mean, got 'median'"):
        parse('[params]\naggregate = "median"')


# --- what every aggregate promises ------------------------------------------------------------


def update(client: str, seed: int, weight: float) -> ClientUpdate:
    source = torch.Generator().manual_seed(seed)
    pair = {
        "q.lora_A.weight": torch.randn(2, 3, generator=source),
        "q.lora_B.weight": torch.randn(4, 2, generator=source),
    }
    sections = {
        "adapter": Section(kind="lowrank", tensors=pair, facts={"scale": 2.0}),
        "head": Section(kind="dense", tensors={"h": torch.randn(3, generator=source)}),
    }
    return ClientUpdate(client=client, sections=sections, weight=weight)


BEFORE = update("server", 9, 1.0).sections
SENT = [update(name, seed, seed + 1.0) for seed, name in enumerate("abcde")]


@pytest.fixture(params=["mean", "median"])
def aggregate(request: pytest.FixtureRequest, package: Path) -> Iterator[Any]:
    """Each aggregate: ours, and the example's."""
    with plugins.beside(package, "own_aggregate"):
        yield aggregate_of(request.param)


def total(aggregate: Any, some: Any) -> Any:
    found = aggregate.zero()
    for one in some:
        found = aggregate.add(found, one, BEFORE)
    return found


def test_it_has_the_sections_of_before_and_moves_nobody_elses_tensors(aggregate: Any) -> None:
    held = [{n: t.clone() for n, t in u.sections["adapter"].tensors.items()} for u in SENT]
    found = aggregate.value(total(aggregate, SENT), BEFORE)
    assert found.keys() == BEFORE.keys()
    for name, section in found.items():
        assert (section.kind, dict(section.facts)) == (BEFORE[name].kind, dict(BEFORE[name].facts))
        for n, t in section.tensors.items():
            assert (t.shape, t.dtype) == (BEFORE[name].tensors[n].shape, torch.float32)
    for one, before in zip(SENT, held, strict=True):
        assert all(torch.equal(one.sections["adapter"].tensors[n], t) for n, t in before.items())


def test_merged_totals_are_the_total_of_both_whatever_the_order(aggregate: Any) -> None:
    whole = aggregate.value(total(aggregate, SENT), BEFORE)
    halves = aggregate.merge(total(aggregate, SENT[3:]), total(aggregate, SENT[:3]))
    for name, section in aggregate.value(halves, BEFORE).items():
        for n, t in section.tensors.items():
            torch.testing.assert_close(t, whole[name].tensors[n], rtol=1e-6, atol=1e-7)


def test_one_client_gets_back_what_it_sent_bit_for_bit(aggregate: Any) -> None:
    found = aggregate.value(total(aggregate, SENT[:1]), BEFORE)
    for name, section in found.items():
        for n, t in section.tensors.items():
            assert torch.equal(t, SENT[0].sections[name].tensors[n])


def test_nobody_amounts_to_nothing(aggregate: Any) -> None:
    with pytest.raises(RoundError, match="no client returned an update"):
        aggregate.value(aggregate.zero(), BEFORE)


def test_ours_is_the_mean() -> None:
    assert isinstance(aggregate_of(None), Mean)
