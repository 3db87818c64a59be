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

from triskel.aggregate.build import aggregate_of
from triskel.aggregate.mean import Mean
from triskel.config.read import parse
from triskel.engines.local import LocalEngine
from triskel.errors import JobError
from triskel.experiment.compare import Request, resume, run

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
def test_params_ends_with_the_middle_of_what_clients_alone_end_with(tmp_path: Path) -> None:
    """In one round a client trains as it does alone, so the server has the middle of the three."""
    one = job(tmp_path, params={"aggregate": "middle"})
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
    one = job(tmp_path, rounds=3, **{mode: {"aggregate": "middle"}})
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
    there = compared.house(tmp_path, **{"params.aggregate": '"middle"'})
    place = there.root / "server" / "local" / "policy.toml"
    refused = sites.Meeting(there, there.spec("params")).play()
    assert refused["refused"]
    assert "plugins.middle: the job adds up by 'middle'" in refused["error"]
    place.write_text(place.read_text() + '\n[plugins.middle]\npackage = "own-aggregate"\n')
    assert sites.Meeting(there, there.spec("params")).play()["done"]
    compared.same(there, ("params",), compared.result(there))


def test_one_that_is_not_here_is_refused_and_ours_are_named() -> None:
    with pytest.raises(JobError, match=r"params\.aggregate must be one of mean, .*got 'middle'"):
        parse('[params]\naggregate = "middle"')


def test_ours_is_the_mean() -> None:
    assert isinstance(aggregate_of(None), Mean)
