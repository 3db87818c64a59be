"""A codec of another package travels like one of the house, and a peer's word never loads one."""

# ruff: noqa: ANN401 - helpers are loaded by path

import json
import runpy
from collections.abc import Iterator
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
import torch

from triskel.codec import decode, encode
from triskel.config.read import parse
from triskel.core.mode_spec import Sizes
from triskel.core.registry import CODECS
from triskel.engines.local import LocalEngine
from triskel.errors import JobError, MessageError
from triskel.experiment.compare import Request, run
from triskel.plan.payload import round_bytes
from triskel.types import Message, Section
from triskel.wire import pack, unpack

TESTS = Path(__file__).resolve().parent.parent
small = SimpleNamespace(**runpy.run_path(str(TESTS / "helpers" / "small.py")))
plugins = SimpleNamespace(**runpy.run_path(str(TESTS / "helpers" / "plugins.py")))
sites = SimpleNamespace(**runpy.run_path(str(TESTS / "helpers" / "sites.py")))
SOURCE = '''"""Bfloat16 under a name of its own."""

from triskel.core.codec_spec import CodecSpec

SPEC = CodecSpec(
    name="brain", gloss="bfloat16", algorithm="triskel.codec.cast:BF16", float_bytes=2
)
'''


@pytest.fixture(scope="module")
def package(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A package with one codec, as pip would leave it."""
    folder = tmp_path_factory.mktemp("codec")
    (folder / "own_codec.py").write_text(SOURCE)
    info = folder / "own_codec-1.0.dist-info"
    info.mkdir()
    (info / "METADATA").write_text("Metadata-Version: 2.1\nName: own-codec\nVersion: 1.0\n")
    (info / "entry_points.txt").write_text("[triskel.codecs]\nbrain = own_codec:SPEC\n")
    return folder


@pytest.fixture
def installed(package: Path) -> Iterator[None]:
    """With the package beside Triskel."""
    with plugins.beside(package, "own_codec"):
        yield


def job(folder: Path, codec: str) -> Any:
    model = small.save_model(folder / "model")
    return small.job(model, small.save_rows(folder / "rows.csv", 40), wire={"up": codec})


@pytest.mark.usefixtures("installed")
def test_a_run_under_it_is_the_run_under_what_it_does(tmp_path: Path) -> None:
    ends: list[tuple[bytes, int]] = []
    for codec in ("bf16", "brain"):
        one = job(tmp_path, codec)
        place = tmp_path / codec
        asked = Request(modes=("params",), baselines=())
        found = run(one, asked, place, LocalEngine(one), small.watch)["modes"]["params"]
        adapter = place / "adapters" / "params" / "adapter_model.safetensors"
        assert json.loads((place / "result.json").read_text())["job"]["wire"]["up"] == codec
        ends.append((adapter.read_bytes(), found["totals"]["up"]["payload_bytes"]))
        sizes = Sizes(blocks=[100], head=4)
        assert round_bytes(one, sizes) == 208
    assert ends[0] == ends[1]


def test_a_peer_that_names_one_that_is_not_in_the_job_loads_nothing(package: Path) -> None:
    section = Section(kind="dense", tensors={"x": torch.tensor([1.0, -2.5])})
    with plugins.beside(package, "own_codec"):
        sent, late = (
            pack(encode(Message(kind="update", sections={name: section}), "brain"))
            for name in "st"  # a table that was read once is not read again
        )
        assert decode(unpack(sent)).sections["s"].tensors["x"].tolist() == [1.0, -2.5]
    with plugins.beside(package, "own_codec"):
        assert "brain" in CODECS.names()
        with pytest.raises(MessageError, match="codec of section 't'"):
            unpack(late)


def test_a_codec_that_is_not_here_is_refused_and_ours_are_named() -> None:
    said = r"wire\.up must be one of raw, fp32, bf16, fp16, int8, int4, topk, sign, got 'brain'"
    with pytest.raises(JobError, match=said):
        parse('[wire]\nup = "brain"')


@pytest.mark.usefixtures("installed")
@pytest.mark.parametrize("pinned", [True, False])
def test_a_site_takes_it_where_its_policy_pins_it(tmp_path: Path, *, pinned: bool) -> None:
    there = sites.house(tmp_path, **{"wire.up": '"brain"'})
    for name in ("server", *sites.SITES):
        place = there.root / name / "local" / "policy.toml"
        text = place.read_text()
        if pinned:
            text = text.replace('"int8"]', '"int8", "brain"]')
            text += '\n[plugins.brain]\npackage = "own-codec"\n'
        place.write_text(text)
    ended = sites.Meeting(there, there.spec("params")).play()
    assert ended["done"] == pinned
    if not pinned:
        assert "codecs: the job travels as 'brain' (wire.up)" in ended["error"]
