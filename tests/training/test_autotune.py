"""How a body computes is chosen once, by measuring, and remembered."""

import json
import os
import runpy
import subprocess
import sys
from collections.abc import Callable
from contextlib import nullcontext
from dataclasses import asdict, replace
from pathlib import Path
from types import SimpleNamespace

import pytest
import torch

from triskel.config.sections import Model
from triskel.core import threads
from triskel.errors import CheckpointError, ModelError
from triskel.experiment import stage_memory
from triskel.experiment.compute_record import ComputeRecord
from triskel.experiment.resources import prepare
from triskel.model import load as loading
from triskel.model.flops import Cost, Piece
from triskel.model.load import dtype_of
from triskel.model.machine_cache import machine
from triskel.model.shared import Choice, SharedModel
from triskel.training import autotune as choosing
from triskel.training.autotune import FAST, choose, measured

here = Path(__file__)
tiny = SimpleNamespace(**runpy.run_path(str(here.parents[1] / "helpers" / "tiny.py")))
small = SimpleNamespace(**runpy.run_path(str(here.parents[1] / "helpers" / "small.py")))
Say = Callable[[str], None]


@pytest.fixture
def body() -> SharedModel:
    return tiny.body("llama", tiny.job())


@pytest.fixture
def large(monkeypatch: pytest.MonkeyPatch) -> None:
    """Let every model be worth timing."""
    monkeypatch.setattr(choosing, "WORTH_TIMING", 0)


def silent(text: str) -> None:
    raise AssertionError(f"nothing was to be timed: {text}")


def test_what_is_asked_for_is_taken(body: SharedModel, tmp_path: Path) -> None:
    assert choose(body, "reference", cache=tmp_path, say=silent) == Choice()
    assert choose(body, "fast", cache=tmp_path, say=silent) == FAST
    assert not list(tmp_path.iterdir())


def test_a_model_without_fused_blocks_takes_the_reference_path(tmp_path: Path) -> None:
    gpt2 = tiny.body("gpt2", tiny.job())
    assert choose(gpt2, "auto", cache=tmp_path, say=silent) == Choice()
    with pytest.raises(ModelError, match="gpt2 has no fused blocks"):
        choose(gpt2, "fast", cache=tmp_path, say=silent)


def test_a_small_model_is_not_timed(body: SharedModel, tmp_path: Path) -> None:
    assert choose(body, "auto", cache=tmp_path, say=silent) == FAST
    assert body.choice == Choice(), "choosing leaves the body as it was"


@pytest.mark.usefixtures("large")
def test_a_measurement_is_made_once(
    body: SharedModel, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    said: list[str] = []
    found = choose(body, "auto", cache=tmp_path, say=said.append)
    assert said == ["timing how this model trains fastest on this machine; done once"]
    (place,) = (tmp_path / "choices").iterdir()
    assert Choice(**json.loads(place.read_text())) == found
    assert choose(body, "auto", cache=tmp_path, say=silent) == found
    assert body.choice == Choice()
    place.write_text("{damaged", encoding="utf-8")
    choose(body, "auto", cache=tmp_path, say=said.append)
    assert len(said) == 2
    other = tiny.body("llama", tiny.job(adapter={"rank": 4}))
    choose(other, "auto", cache=tmp_path, say=said.append)
    kept = tmp_path / "choices"
    assert len(list(kept.iterdir())) == 2, "another adapter is another measurement"
    place.write_text('{"path": "fast", "speed": 9}', encoding="utf-8")
    assert choose(body, "auto", cache=tmp_path, say=said.append).path in {"fast", "reference"}
    assert len(said) == 4, "what is no choice is not believed"
    monkeypatch.setattr(choosing, "code_sha256", lambda: "of another version")
    choose(body, "auto", cache=tmp_path, say=said.append)
    assert len(said) == 5, "another version times anew"


@pytest.mark.usefixtures("large")
def test_a_cache_that_cannot_be_written_stops_nobody(body: SharedModel, tmp_path: Path) -> None:
    (tmp_path / "choices").write_text("no folder")
    said: list[str] = []
    choose(body, "auto", cache=tmp_path, say=said.append)
    assert said[1].startswith("this machine cannot remember what it found out about the model: ")


GPU = replace(FAST, flash=1)
"""What a GPU takes without timing."""


@pytest.mark.parametrize(
    ("default", "plain", "fast", "held", "flash", "apart", "joined", "wanted"),
    [
        (FAST, 1.0, 1.0, 1.0, 9.0, 1.0, 0.5, Choice()),
        (FAST, 1.2, 1.0, 1.0, 9.0, 1.0, 0.5, Choice(path="fast", flash=1024, join=512)),
        (FAST, 1.2, 1.0, 1.0, 9.0, 1.0, 1.0, Choice(path="fast", flash=1024, join=0)),
        (FAST, 1.2, 1.0, 9.0, 1.0, 1.0, 0.5, Choice(path="fast", flash=512, join=512)),
        (GPU, 1.2, 1.0, 9.0, 1.0, 1.0, 0.5, Choice(path="fast", flash=1, join=512)),
        (GPU, 1.2, 1.0, 1.0, 9.0, 1.0, 0.5, Choice(path="fast", flash=513, join=512)),
    ],
)
def test_the_faster_way_is_taken_and_the_plainer_one_in_doubt(  # noqa: PLR0913, PLR0917 - six times and what follows
    default: Choice, plain: float, fast: float, held: float, flash: float, apart: float,
    joined: float, wanted: Choice, body: SharedModel, monkeypatch: pytest.MonkeyPatch,
) -> None:  # fmt: skip
    times = iter([[plain, fast], [held, flash]])
    monkeypatch.setattr(choosing, "_ratio", lambda *_, **__: next(times))
    monkeypatch.setattr(choosing, "_apart_and_joined", lambda *_: (apart, joined))
    assert measured(body, default) == wanted


def test_only_the_device_that_computes_is_waited_for_and_named(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    waited: list[torch.device] = []
    monkeypatch.setattr(torch.cuda, "is_available", lambda: True)
    monkeypatch.setattr(torch.cuda, "synchronize", waited.append)
    monkeypatch.setattr(torch.cuda, "get_device_name", lambda device: f"card {device.index}")
    for name, words in (("cpu", set[str]()), ("cuda:1", {"card 1"})):
        device = torch.device(name)
        choosing._timed(device, lambda: None)
        assert {line for line in machine(device).splitlines() if "card" in line} == words
    assert waited == [torch.device("cuda:1")]


def test_bfloat16_that_a_gpu_emulates_is_not_chosen(monkeypatch: pytest.MonkeyPatch) -> None:
    """Cards before Ampere (compute capability 8) say yes to it, and are slow."""
    asked: list[object] = []
    monkeypatch.setattr(torch.cuda, "is_available", lambda: True)
    monkeypatch.setattr(torch.cuda, "device", lambda x: nullcontext(asked.append(x)))
    monkeypatch.setattr(torch.cuda, "current_device", lambda: 0)
    monkeypatch.setattr(torch.cuda, "_check_bf16_tensor_supported", lambda _: True)
    for major, wanted in ((7, torch.float32), (8, torch.bfloat16)):
        card = SimpleNamespace(major=major)
        monkeypatch.setattr(torch.cuda, "get_device_properties", lambda _, it=card: it)
        assert dtype_of(Model()) == wanted
    assert asked == [torch.device("cuda")] * 2, "the model's card is asked"
    assert dtype_of(Model(dtype="bfloat16")) == torch.bfloat16


ASK = """
import json, os, sys
from pathlib import Path
from triskel.config.sections import Model
from triskel.model import load

# torch reads the variables once in a process, and not before it is asked: each case is a child's.
for flags, limits in json.load(sys.stdin):
    if not (child := os.fork()):
        os.environ.update(limits)
        load.CPUINFO = Path(flags)
        print(load.dtype_of(Model(device="cpu")), flush=True)
        os._exit(0)
    assert os.waitpid(child, 0)[1] == 0
"""


def test_auto_is_bfloat16_where_the_processor_has_it_and_nothing_forbids_it(
    tmp_path: Path,
) -> None:
    limits: list[tuple[dict[str, str], bool]] = [
        ({}, True),
        ({"ATEN_CPU_CAPABILITY": "avx2"}, False),
        ({"ATEN_CPU_CAPABILITY": "default"}, False),
        ({"ATEN_CPU_CAPABILITY": "avx512"}, True),
        ({"ONEDNN_MAX_CPU_ISA": "AVX2"}, False),
        ({"ONEDNN_MAX_CPU_ISA": "avx512_core_vnni"}, False),
        ({"DNNL_MAX_CPU_ISA": "AVX512_CORE"}, False),
        ({"ONEDNN_MAX_CPU_ISA": "AVX512_CORE_BF16"}, True),
        ({"ONEDNN_MAX_CPU_ISA": "ALL"}, True),
        ({"ATEN_CPU_CAPABILITY": "avx2", "ONEDNN_MAX_CPU_ISA": "AVX2"}, False),
    ]
    cases: list[tuple[str, dict[str, str]]] = []
    wanted: list[str] = []
    for flag in ("avx512_bf16", "amx_bf16", "avx2"):
        place = tmp_path / flag
        place.write_text(f"flags\t\t: fpu avx2 {flag} sha_ni\n")
        for limit, allowed in limits:
            cases.append((str(place), limit))
            native = allowed and flag != "avx2"
            wanted.append(f"{flag} {limit} torch.{'bfloat16' if native else 'float32'}")
    own = {k: v for k, v in os.environ.items() if not k.endswith(("_CPU_ISA", "_CPU_CAPABILITY"))}
    done = subprocess.run(
        [sys.executable, "-c", ASK],
        input=json.dumps(cases),
        env=own,
        capture_output=True,
        text=True,
        check=True,
    )
    told = [
        f"{Path(place).name} {limit} {dtype}"
        for (place, limit), dtype in zip(cases, done.stdout.split(), strict=True)
    ]
    assert told == wanted


def test_a_run_goes_on_as_it_began(tmp_path: Path) -> None:
    model = small.save_model(tmp_path / "model")
    rows = small.save_rows(tmp_path / "rows.csv", 30)
    job, place = small.job(model, rows), tmp_path / "run" / "choices.json"
    place.parent.mkdir()
    assert prepare(job, small.watch, choices=place).body().choice == FAST
    name, *_ = json.loads(place.read_text())
    place.write_text("{cut", encoding="utf-8")
    with pytest.raises(CheckpointError, match=r"choices.json does not say how .*delete it"):
        prepare(job, small.watch, choices=place).body()
    other = Choice(path="fast", flash=7, join=3)
    place.write_text(json.dumps({name: asdict(other)}), encoding="utf-8")
    assert prepare(job, small.watch, choices=place).body().choice == other
    again = job.model_copy(update={"model": job.model.model_copy(update={"recompute": "always"})})
    assert prepare(again, small.watch).body().choice.recompute


def test_a_run_goes_on_with_as_many_threads_as_it_began_with(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.delenv(threads.COUNT, raising=False)
    model = small.save_model(tmp_path / "model")
    job, place = small.job(model, small.save_rows(tmp_path / "rows.csv", 30)), tmp_path / "c.json"
    before, said = torch.get_num_threads(), list[str]()

    def again() -> int:
        prepare(job, lambda event: said.append(event["text"]), choices=place).body()
        return torch.get_num_threads()

    try:
        torch.set_num_threads(3)
        assert again() == 3
        whole = place.read_text(encoding="utf-8")
        torch.set_num_threads(1)
        assert again() == 3
        assert said[-1] == "this run goes on with 3 threads, as it began, rather than 1"
        torch.set_num_threads(1)
        monkeypatch.setenv(threads.COUNT, "1")  # a user's
        assert again() == 1
        assert "began on 3 threads and goes on with 1, as OMP_NUM_THREADS says" in said[-1]
        monkeypatch.setenv(threads.OURS, "1")  # a node's, chosen when it started
        assert again() == 3
        assert place.read_text(encoding="utf-8") == whole
        place.write_text(whole.replace('"threads": 3', '"threads": "x"'), encoding="utf-8")
        monkeypatch.delenv(threads.COUNT)
        with pytest.raises(CheckpointError, match=r"c.json does not say how the run began"):
            again()
    finally:
        torch.set_num_threads(before)


def test_dtype_device_and_grouping_are_those_a_run_began_with(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    model = small.save_model(tmp_path / "model")
    job, place = small.job(model, small.save_rows(tmp_path / "rows.csv", 30)), tmp_path / "c.json"
    auto = job.model.model_copy(update={"dtype": "auto", "device": "auto"})
    job = job.model_copy(update={"model": auto})

    def began(**changes: object) -> None:
        name, grouping, *_ = json.loads(whole)
        rows = json.loads(whole)
        rows[name] |= {k: v for k, v in changes.items() if k in rows[name]}
        rows[grouping] |= {k: v for k, v in changes.items() if k in rows[grouping]}
        place.write_text(json.dumps(rows), encoding="utf-8")

    monkeypatch.setattr(torch.cuda, "is_available", lambda: False)
    monkeypatch.setattr(loading, "_native_bf16", lambda: True)
    assert prepare(job, small.watch, choices=place).body().dtype == torch.bfloat16
    whole = place.read_text(encoding="utf-8")
    row, numbers, process = json.loads(whole).values()
    assert process == {"threads": torch.get_num_threads()}
    assert (row["dtype"], row["device"]) == ("bfloat16", "cpu")
    assert (numbers["in_flight"], numbers["most"]) == (16, 2048)
    assert "trunk_padding" not in numbers, "of another mode"
    assert ComputeRecord(None, ["params", "split"])._grouping["trunk_padding"] == 1.1
    monkeypatch.setattr(loading, "_native_bf16", lambda: False)  # another machine
    monkeypatch.setattr(torch.cuda, "is_available", lambda: True)
    again = prepare(job, small.watch, choices=place).body()
    assert (again.dtype, again.device.type) == (torch.bfloat16, "cpu")
    assert again.choice == FAST
    assert place.read_text(encoding="utf-8") == whole
    began(device="cuda:7")
    with pytest.raises(CheckpointError, match=r"c.json: this run began on cuda:7, which cannot be"):
        prepare(job, small.watch, choices=place).body()
    began(most=4096)
    with pytest.raises(
        CheckpointError, match=r"began with grouping.most = 4096, and this version has 2048, .*anew"
    ):
        prepare(job, small.watch, choices=place).body()
    monkeypatch.setattr(torch.cuda, "is_available", lambda: False)
    name, row = next(iter(json.loads(whole).items()))
    del row["dtype"], row["device"]
    place.write_text(json.dumps({name: row}), encoding="utf-8")  # of a version that wrote neither
    assert prepare(job, small.watch, choices=place).body().dtype == torch.float32


@pytest.mark.parametrize("text", ["[]", '{"grouping": 3}', '{"grouping": {"most": 2048'])
def test_a_file_that_says_nothing_is_refused(text: str, tmp_path: Path) -> None:
    (tmp_path / "c.json").write_text(text, encoding="utf-8")
    with pytest.raises(CheckpointError, match=r"c.json does not say how .*put it back, or delete"):
        ComputeRecord(tmp_path / "c.json", ["params"])


def test_activations_are_computed_twice_where_memory_is_short(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    model = small.save_model(tmp_path / "model")
    job = small.job(model, small.save_rows(tmp_path / "rows.csv", 30))
    assert not prepare(job, small.watch).body().choice.recompute
    monkeypatch.setattr(stage_memory, "free_memory", lambda _: 1000.0)
    place = tmp_path / "choices.json"
    first = prepare(job, small.watch, choices=place)
    body = first.body()
    assert body.choice.recompute
    again = prepare(job, small.watch, choices=place)  # as a resumed run finds it
    bytes_of = [
        it.models.costs(it.body())[Piece("train")].bytes_of(4, 12, 4) for it in (first, again)
    ]
    assert bytes_of[0] == bytes_of[1]
    never = job.model_copy(update={"model": job.model.model_copy(update={"recompute": "never"})})
    assert not prepare(never, small.watch).body().choice.recompute


def test_activations_are_computed_twice_on_the_reference_path_too(tmp_path: Path) -> None:
    model = small.save_model(tmp_path / "model", "gpt2")
    job = small.job(model, small.save_rows(tmp_path / "rows.csv", 30))
    costs: list[Cost] = []
    for recompute in ("never", "always"):
        way = job.model.model_copy(update={"recompute": recompute})
        resources = prepare(job.model_copy(update={"model": way}), small.watch)
        assert resources.body().choice == Choice(recompute=recompute == "always")
        costs.append(resources.models.costs(resources.body())[Piece("train")])
    assert costs[0].flops == costs[1].flops, "what is computed twice is counted once"
    assert costs[1].bytes_of(8, 12, 8) < costs[0].bytes_of(8, 12, 8) / 4


def test_hidden_states_are_kept_where_they_fit(tmp_path: Path) -> None:
    model = small.save_model(tmp_path / "model")
    rows = small.save_rows(tmp_path / "rows.csv", 30)
    for adapter, megabytes, kept in (({}, 4096, False), ({"blocks": "top:1"}, 4096, True),
                                     ({"blocks": "top:1"}, 0, False)):  # fmt: skip
        job = small.job(model, rows, adapter=adapter)
        job = job.model_copy(update={"model": job.model.model_copy(update={"cache_mb": megabytes})})
        assert (prepare(job, small.watch).body().prefix is not None) is kept


def test_hidden_states_stay_for_the_next_stage_while_there_is_ample_room(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    model, rows = small.save_model(tmp_path / "model"), small.save_rows(tmp_path / "rows.csv", 30)
    job = small.job(model, rows)
    top = job.adapter.model_copy(update={"blocks": "top:1"})
    resources = prepare(job.model_copy(update={"adapter": top}), small.watch)
    body, mine = resources.body(), resources.tokens.share(resources.clients[0]).train
    assert body.prefix is not None
    body.prefix.get(body, mine, [0], body.frozen)
    kept = body.prefix.size
    assert kept > 0
    resources.forget()
    assert body.prefix.size == kept
    monkeypatch.setattr(stage_memory, "DEPTHS", 10**12)  # the next stage might not fit beside them
    resources.forget()
    assert body.prefix.size == 0
