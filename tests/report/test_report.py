"""The page and the tables, from made-up results: whole, partial, many, and hostile."""

import copy
import html
import io
import json
import re
import runpy
import tomllib
from html.parser import HTMLParser
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import plotly.graph_objects as go
import pytest
from rich.console import Console

from triskel.errors import CheckpointError
from triskel.report.conclusions import verdict
from triskel.report.figures import draw
from triskel.report.links import LINKS, wait
from triskel.report.page import render, write_report
from triskel.report.reading import read
from triskel.report.tables import final_table, markdown

SAMPLES = SimpleNamespace(
    **runpy.run_path(str(Path(__file__).parents[1] / "helpers" / "report_samples.py"))
)
EVIL = '</script><img src=x onerror="alert(1)">%{y}&amp;\u2028'
VOID = {"meta", "link", "br", "img", "hr", "input"}
FIGURES = {"by-round", "by-bytes", "per-client", "compute", "memory", "links", "labels"}


class Page(HTMLParser):
    """Reads a page strictly: every element that opens must close, in order."""

    def __init__(self, source: str) -> None:
        super().__init__()
        self.open: list[str] = []
        self.elements: list[tuple[str, dict[str, str | None]]] = []
        self.words: list[str] = []
        self.scripts: list[str] = []
        self.styles = ""
        self.feed(source)
        self.close()
        assert self.open == []

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        self.elements.append((tag, dict(attrs)))
        if tag not in VOID:
            self.open.append(tag)

    def handle_startendtag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        self.elements.append((tag, dict(attrs)))

    def handle_endtag(self, tag: str) -> None:
        assert self.open.pop() == tag

    def handle_data(self, data: str) -> None:
        inside = self.open[-1] if self.open else ""
        if inside == "script":
            self.scripts.append(data)
        elif inside == "style":
            self.styles += data
        else:
            self.words.append(data)

    @property
    def text(self) -> str:
        return " ".join(" ".join(self.words).split())

    def all(self, tag: str) -> list[dict[str, str | None]]:
        return [attrs for name, attrs in self.elements if name == tag]

    def figures(self) -> dict[str, Any]:
        return json.loads(self.scripts[0])


def many() -> dict[str, Any]:
    clients = {f"hospital {i:03d}": (40 + i * 37 % 300, 20 + i % 15) for i in range(100)}
    labels = {c: {f"intent {j}": i * j * 7 % 13 for j in range(77)} for i, c in enumerate(clients)}
    return SAMPLES.result(clients, labels)


def hostile() -> dict[str, Any]:
    clients = {f"{EVIL}{i}": (10, 5) for i in range(3)}
    found = SAMPLES.result(clients, {c: {EVIL: 4, "ok": 6} for c in clients})
    found["job"] |= {"name": EVIL, "note": EVIL}
    found["environment"] = {EVIL: EVIL, "platform": EVIL}
    found["skipped"] = {"split": EVIL}
    found["baselines"]["base"]["what"] = EVIL
    found["triskel"] = EVIL
    for one in found["modes"]["params"]["rounds"]:
        for cost in one["clients"].values():
            cost["up"]["sections"][EVIL] = {"payload_bytes": 3}
    return found


def golden(task: str) -> dict[str, Any]:
    """Return a result that a version without columns and tests wrote."""
    place = Path(__file__).parents[1] / "golden" / f"result-1-{task}.json"
    return json.loads(place.read_text(encoding="utf-8"))


def bare() -> dict[str, Any]:
    found = SAMPLES.result(modes=("params",), rounds=1)
    found |= {"baselines": {}, "data": {}, "environment": {}}
    return found


def printed(result: dict[str, Any]) -> str:
    console = Console(width=400, file=io.StringIO(), record=True)
    console.print(final_table(result))
    return console.export_text()


SHAPES: dict[str, Any] = {
    "whole": SAMPLES.result,
    "causal": lambda: SAMPLES.result(causal=True),
    "one client": lambda: SAMPLES.result({"alone": (9, 3)}, {"alone": {"a": 9}}),
    "no clients": lambda: SAMPLES.result({}, {}),
    "many": many,
    "hostile": hostile,
    "bare": bare,
    "interrupted": lambda: SAMPLES.result(rounds=1),
    "nothing": lambda: {"schema": 1},
    "tested": SAMPLES.modern,
    "tested, causal": lambda: SAMPLES.modern(causal=True),
    "seeds": SAMPLES.seeds,
    "seeds, causal": lambda: SAMPLES.seeds(2, causal=True),
    "old": lambda: golden("classify"),
    "old, causal": lambda: golden("causal"),
}


@pytest.fixture(params=SHAPES, ids=str)
def shape(request: pytest.FixtureRequest) -> dict[str, Any]:
    return SHAPES[request.param]()


@pytest.fixture(autouse=True)
def _without_plotly(monkeypatch: pytest.MonkeyPatch) -> None:
    """Leave 5 MB of script out, which every test would otherwise parse."""
    monkeypatch.setattr("triskel.report.page._plotly", lambda: "/* plotly */")


def test_every_result_becomes_a_well_formed_page_that_loads_nothing(shape: dict[str, Any]) -> None:
    page = Page(render(shape))
    for tag, attrs in page.elements:
        assert "src" not in attrs, tag
        assert not any(name.startswith("on") for name in attrs), tag
        link = attrs.get("href") or "#"
        assert link.startswith(("#", "data:")), link
    policy = [m["content"] for m in page.all("meta") if m.get("http-equiv")]
    assert policy
    assert "default-src 'none'" in str(policy[0])
    assert "url(" not in page.styles


def test_a_page_has_one_title_a_heading_per_section_and_links_that_lead_to_them(
    shape: dict[str, Any],
) -> None:
    page = Page(render(shape))
    ids = [str(attrs["id"]) for _, attrs in page.elements if "id" in attrs]
    assert len(ids) == len(set(ids))
    assert len(page.all("h1")) == len(page.all("title")) == 1
    assert len(page.all("section")) == len(page.all("h2")) == 9
    assert {str(a["href"])[1:] for a in page.all("a")} <= set(ids)


def test_tables_name_their_columns_and_rows_and_figures_have_words(shape: dict[str, Any]) -> None:
    page = Page(render(shape))
    assert len(page.all("caption")) == len(page.all("table"))
    assert all(th.get("scope") in {"col", "row"} for th in page.all("th"))
    places = [attrs for attrs in page.all("div") if attrs.get("class") == "plot"]
    assert {p["id"] for p in places} == set(page.figures())
    assert all(p["role"] == "img" and len(str(p["aria-label"])) > 15 for p in places)


def test_every_figure_is_valid_plotly_with_finite_numbers(shape: dict[str, Any]) -> None:
    for figure in draw(read(shape)).values():
        go.Figure(dict(figure))
        json.dumps(figure, allow_nan=False)


def test_a_whole_result_has_every_figure_and_one_colour_per_mode() -> None:
    figures = draw(read(SAMPLES.result()))
    assert set(figures) == FIGURES
    for name in ("by-round", "by-bytes"):
        colours = {t["name"]: t["line"]["color"] for t in figures[name]["data"]}
        assert colours["params"] == "#0072B2"
        assert colours["logits"] == "#E69F00"
        assert colours["split"] == "#009E73"
    assert figures["compute"]["data"][0]["marker"]["color"] == ["#0072B2", "#E69F00", "#009E73"]


def test_hostile_names_stay_text_in_the_page_and_in_the_figures() -> None:
    source = render(hostile())
    page = Page(source)
    assert not page.all("img")
    assert len(page.all("script")) == 3
    assert "onerror" in page.text
    drawn = json.dumps(page.figures())
    assert "<img" not in drawn
    assert "&lt;/script" in drawn
    assert "\u2028" not in source.split('id="figures"')[1].split("</script>")[0]


def test_a_template_in_a_name_is_not_read_as_one() -> None:
    for figure in draw(read(hostile())).values():
        for trace in figure["data"]:
            assert "img" not in trace.get("hovertemplate", "")
            assert "texttemplate" not in trace


def test_who_was_missing_in_a_round_is_said() -> None:
    found = SAMPLES.result()
    for place in (0, 2):
        row = found["modes"]["params"]["rounds"][place]
        row["absent"] = {"shop": "not heard of for 8 s"}
    text = " ".join(verdict(read(found)))
    assert "Params did without shop in rounds 1 and 3; result.json says why." in text
    assert "Split did without" not in text


def test_what_a_network_carried_is_said_where_the_engine_counted_it() -> None:
    found = SAMPLES.result()
    assert "counted on the network" not in " ".join(verdict(read(found)))
    totals = found["modes"]["split"]["totals"]
    totals["up"]["wire_bytes"], totals["down"]["wire_bytes"] = 7_300_000, 7_100_000
    text = " ".join(verdict(read(found)))
    said = "All clients together, the engine counted on the network: Split 7.30 MB up and 7.10 MB"
    assert said in text


def test_an_interrupted_run_says_where_it_stopped_and_counts_what_was_done() -> None:
    found = SAMPLES.result(rounds=1)
    for mode in found["modes"].values():
        del mode["totals"], mode["final"]
    found["modes"]["split"]["rounds"] = []
    text = Page(render(found)).text
    assert "Params stopped after round 1 of 3" in text.replace("\N{NO-BREAK SPACE}", " ")
    assert "Split finished no round." in text
    run = read(found).modes["params"]
    assert run.everybody.accuracy == 0.548
    assert run.total.up.payload_bytes == 4 * (1_843_200 + 6_912)
    whole = SAMPLES.result(rounds=1)
    assert run.total.flops == whole["modes"]["params"]["totals"]["client_flops"]


def test_a_missing_measurement_is_a_dash_and_never_a_zero() -> None:
    found = SAMPLES.result(modes=("params",))
    totals = found["modes"]["params"]["totals"]
    del totals["client_flops"], totals["seconds"]
    for one in found["modes"]["params"]["rounds"]:
        del one["seconds"]
        one["clients"]["film"]["flops"] = float("nan")
        del one["clients"]["film"]["compute_s"]
    row = next(line for line in markdown(found).splitlines() if line.startswith("| params"))
    assert [cell.strip() for cell in row.strip(" |").split("|")][-4:] == ["–", "–", "1.31 GB", "–"]
    seen = read(found)
    assert wait(seen.modes["params"], LINKS[0]) is None
    assert "links" not in draw(seen)


def test_a_skipped_mode_is_named_with_its_reason_everywhere() -> None:
    found = SAMPLES.result(modes=("params", "logits"))
    found["skipped"] = {"split": "adapter dora cannot be cut"}
    for text in (Page(render(found)).text, markdown(found), printed(found)):
        assert "adapter dora cannot be cut" in text


def test_a_round_that_was_run_twice_counts_once() -> None:
    found = SAMPLES.result(modes=("params",))
    rounds = found["modes"]["params"]["rounds"]
    again = copy.deepcopy(rounds[1]) | {"accuracy": 0.7}
    rounds.append(again)
    run = read(found).modes["params"]
    assert [one.number for one in run.rounds] == [1, 2, 3]
    assert run.rounds[1].score.accuracy == 0.7


def test_the_time_on_a_link_is_the_stated_formula() -> None:
    found = SAMPLES.result(modes=("params",), rounds=2)
    for one in found["modes"]["params"]["rounds"]:
        for client, cost in one["clients"].items():
            cost["compute_s"] = 3.0 if client == "film" else 1.0
            cost["up"] |= {"message_bytes": 2_500_000, "messages": 2}
            cost["down"] |= {"message_bytes": 5_000_000, "messages": 1}
    got = wait(read(found).modes["params"], LINKS[1])
    assert got is not None
    assert got.compute == 6.0
    assert got.transfer == pytest.approx(2 * (1.0 + 0.4))
    assert got.delay == pytest.approx(2 * 3 * 0.015)


def test_many_clients_and_labels_are_summed_up_and_the_page_says_so() -> None:
    page = Page(render(many()))
    figures = page.figures()
    assert len(figures["labels"]["data"]) == 8
    assert "70 other labels" in page.text
    assert {trace["type"] for trace in figures["per-client"]["data"]} == {"box"}
    assert page.text.count("hospital") < 60
    assert "of 100" in page.text
    total = sum(v for trace in figures["labels"]["data"] for v in trace["y"])
    counts = many()["data"]["clients"].values()
    assert total == sum(sum(c["labels"].values()) for c in counts)


def test_each_mode_says_what_left_what_stayed_and_what_can_be_learnt() -> None:
    page = Page(render(SAMPLES.result()))
    assert page.text.count("Stays with the client:") == 3
    assert page.text.count("What can still be learnt:") == 3
    for words in ("hidden vectors at the cut", "gradients that go up", "predictions on the public"):
        assert words in page.text
    titles = [str(td.get("title")) for td in page.all("td")]
    assert "87,000,000 bytes" in titles
    shared = SAMPLES.result()
    shared["job"]["split"]["labels"] = "shared"
    for one in shared["modes"]["split"]["rounds"]:
        for cost in one["clients"].values():
            cost["up"]["sections"]["labels"] = {"payload_bytes": 1600}
            del cost["down"]["sections"]["activations"]
    assert "the trunk's output" in page.text
    assert "the trunk's output" not in Page(render(shared)).text
    assert "the labels of the training texts" in Page(render(shared)).text
    assert "The server sees every label" in Page(render(shared)).text


def test_a_single_point_has_labelled_axes_within_reason() -> None:
    found = SAMPLES.result(modes=("params",), rounds=1)
    found["baselines"] = {}
    figures = draw(read(found))
    low, high = figures["by-bytes"]["layout"]["xaxis"]["range"]
    assert low < int(high) <= high
    assert figures["by-round"]["layout"]["yaxis"]["range"] == pytest.approx([0.498, 0.588])


def test_sections_nobody_told_apart_are_shown_as_one() -> None:
    found = SAMPLES.result(modes=("params",))
    for one in found["modes"]["params"]["rounds"]:
        for cost in one["clients"].values():
            del cost["up"]["sections"], cost["down"]["sections"]
    page = Page(render(found))
    assert "(not told apart)" in page.text
    assert "5,550,336 bytes" in [td.get("title") for td in page.all("td")]


def test_the_job_on_the_page_is_toml_that_reads_back() -> None:
    found = SAMPLES.result()
    found["job"]["train"]["nothing"] = None
    source = render(found)
    shown = re.findall(r"<pre>(.*?)</pre>", source, re.DOTALL)
    back = tomllib.loads(html.unescape(shown[1]))
    assert back["adapter"]["rank"] == 8
    assert "nothing" not in back["train"]
    assert "triskel compare job.toml --set seed=1" in shown[0]
    assert "triskel run job.toml" in render(bare())


ALL = {
    "modes": ["params", "logits", "split"],
    "baselines": ["base", "local", "central", "local_equal"],
}
COMMANDS = [
    ({**ALL, "strict": False}, "compare job.toml"),
    ({**ALL, "modes": ["split", "params"]}, "compare job.toml --modes split,params"),
    ({**ALL, "baselines": []}, "compare job.toml --baselines none"),
    (
        {"modes": ["logits"], "baselines": ["base", "local"], "strict": False},
        "compare job.toml --modes logits --baselines base,local",
    ),
    ({"modes": ["logits"], "baselines": [], "strict": True}, "run job.toml --mode logits"),
    (
        {"modes": ["split"], "baselines": ["base", "central"], "strict": True},
        "run job.toml --mode split --baselines base,central",
    ),
    ({**ALL, "strict": False, "drop_share": 0.25}, "compare job.toml --drop-outs 0.25"),
]


def commands(found: dict[str, Any]) -> list[str]:
    shown = re.findall(r"<pre>(.*?)</pre>", render(found), re.DOTALL)[0]
    return [line for line in html.unescape(shown).splitlines() if line.startswith("triskel ")]


@pytest.mark.parametrize(("asked", "command"), COMMANDS, ids=[one for _, one in COMMANDS])
def test_a_run_again_is_asked_for_the_same_modes_and_baselines(
    asked: dict[str, Any], command: str
) -> None:
    found = SAMPLES.result() | {"request": asked}
    assert commands(found) == [f"triskel {command}", f"triskel {command} --set seed=1"]


@pytest.mark.parametrize("asked", [None, {**ALL, "strict": False, "drop_share": 0.5}])
def test_several_seeds_are_asked_for_again_and_others_are_a_list_too(
    asked: dict[str, Any] | None,
) -> None:
    found = SAMPLES.seeds(3)
    found["seeds"] = [4, 0, 2]
    found |= {"request": asked} if asked else {}
    command = f"triskel compare job.toml{' --drop-outs 0.5' if asked else ''}"
    assert commands(found) == [f"{command} --seeds 4,0,2", f"{command} --seeds 5,6,7"]
    found["seeds"] = [7]
    del found["runs"][1:]
    assert commands(found)[1].endswith(" --set seed=1")


def test_a_federations_run_again_is_submitted() -> None:
    found = SAMPLES.result() | {"request": {"modes": ["params", "split"], "strict": True}}
    found["job"]["data"] |= {"source": "clients", "train": "tickets"}
    command = "triskel federation submit FOLDER job.toml --mode params --mode split"
    assert commands(found)[0] == command
    found["job"]["data"]["train"] = "/home/anna/tickets"
    assert "federation" not in commands(found)[0]


@pytest.mark.parametrize("asked", [None, 3, [], {"modes": 7}, {"modes": [EVIL, 5]}, {}], ids=str)
def test_a_request_that_cannot_be_read_is_none(asked: object) -> None:
    assert commands(SAMPLES.result() | {"request": asked})[0] == "triskel compare job.toml"


def test_what_was_asked_of_a_run_whose_result_does_not_say_it_stands_beside_it(
    tmp_path: Path,
) -> None:
    (tmp_path / "result.json").write_text(json.dumps(SAMPLES.result()), encoding="utf-8")
    (tmp_path / "request.json").write_text(json.dumps({**ALL, "baselines": []}), encoding="utf-8")
    source = write_report(tmp_path).read_text(encoding="utf-8")
    assert "triskel compare job.toml --baselines none" in source


@pytest.mark.parametrize(
    ("path", "name"),
    [
        ("/home/anna/models/llama-1b/", "llama-1b"),
        ("smollm2-135m", "smollm2-135m"),
        ("org/llama-1b", "org/llama-1b"),
    ],
)
def test_the_header_names_a_model_and_not_where_it_lies(path: str, name: str) -> None:
    found = SAMPLES.result()
    found["job"]["model"]["path"] = path
    head = re.search(r"<header>.*?</header>", render(found), re.DOTALL)
    assert head
    assert f"<li>{name}</li>" in head[0]


def test_the_three_tables_hold_the_same_cells(shape: dict[str, Any]) -> None:
    text, page = printed(shape), Page(render(shape)).text.replace("± ", "±")
    for line in markdown(shape).splitlines()[2:]:
        if line.startswith("|"):
            _, first, accuracy, *_ = (cell.strip() for cell in line.split("|"))
            assert accuracy in text
            assert accuracy in page
            assert first


def test_a_report_is_written_beside_its_result_and_replaces_the_old_one(tmp_path: Path) -> None:
    (tmp_path / "result.json").write_text(json.dumps(SAMPLES.result()), encoding="utf-8")
    (tmp_path / "report.html").write_text("old", encoding="utf-8")
    path = write_report(tmp_path)
    assert path == tmp_path / "report.html"
    assert path.read_text(encoding="utf-8") == render(SAMPLES.result())
    assert sorted(p.name for p in tmp_path.iterdir()) == ["report.html", "result.json"]


def test_a_mode_that_was_asked_for_and_is_not_there_is_missed(tmp_path: Path) -> None:
    (tmp_path / "result.json").write_text(
        json.dumps(SAMPLES.result(modes=("params",))), encoding="utf-8"
    )
    for asked, missed in ((["params", "split"], True), (["params"], False)):
        (tmp_path / "request.json").write_text(json.dumps({"modes": asked}), encoding="utf-8")
        page = write_report(tmp_path).read_text(encoding="utf-8")
        assert ("The run is not complete: no result for split." in page) is missed


@pytest.mark.parametrize(
    ("text", "says"),
    [
        (None, "does not exist"),
        ("{", "cannot be read"),
        ("[]", "JSON object"),
        ('{"schema": 3}', "schema 3"),
        ('{"schema": 2, "triskel": "0", "seeds": [0], "runs": []}', "holds no run"),
    ],
)
def test_what_is_not_a_result_is_refused_and_the_old_report_stays(
    text: str | None, says: str, tmp_path: Path
) -> None:
    (tmp_path / "report.html").write_text("old", encoding="utf-8")
    if text is not None:
        (tmp_path / "result.json").write_text(text, encoding="utf-8")
    with pytest.raises(CheckpointError, match=says):
        write_report(tmp_path)
    assert (tmp_path / "report.html").read_text(encoding="utf-8") == "old"
    assert not list(tmp_path.glob(".report-*"))


def test_figures_of_validation_texts_are_called_so_everywhere() -> None:
    found = SAMPLES.modern() | {"request": {"judge": "validation"}}
    words = re.sub(r"<[^>]+>|\N{NO-BREAK SPACE}", " ", render(found))
    assert "600 validation texts" in words
    assert re.findall(r"test texts[^.]*\.", words.lower()) == ["test texts were not read."]


def test_clients_of_a_causal_task_are_shown_by_what_ranks_them() -> None:
    page = render(SAMPLES.modern(causal=True))
    found = SAMPLES.modern(causal=True)["modes"]["split"]["rounds"][-1]["per_client"]["film"]
    assert "Perplexity of each client on its own texts" in page
    assert "Accuracy per client" not in page
    assert f"<td>{found['perplexity']:.2f}" in page
