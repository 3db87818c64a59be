"""A mode of another package between organisations: the policy decides before its code is imported.

What leaves a site is held to the policy by the kind of its sections, not by the package's word.
"""

# ruff: noqa: ANN401 - helpers are loaded by path

import runpy
import shutil
import sys
from collections.abc import Iterator
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest

from triskel.core.registry import MODES
from triskel.engines.flare import server_roster

TESTS = Path(__file__).resolve().parent.parent
plugins = SimpleNamespace(**runpy.run_path(str(TESTS / "helpers" / "plugins.py")))
compared = SimpleNamespace(**runpy.run_path(str(TESTS / "engines" / "flare" / "test_sites.py")))
house, Meeting, SITES = compared.house, compared.Meeting, compared.SITES
PINNED = '\n[plugins.sign]\npackage = "own-mode"\n'


@pytest.fixture(scope="module")
def package(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The example as pip installs it."""
    found: Path = plugins.install("own_mode", tmp_path_factory.mktemp("own"))
    return found


@pytest.fixture
def installed(package: Path) -> Iterator[None]:
    """With the example beside Triskel."""
    with plugins.beside(package, "own_mode"):
        yield


def more(counted: int, sent: int) -> bool:
    """Whether a network counted what was sent, and a little beside."""
    return sent < counted < 1.2 * sent + 20_000


def allow(there: Any, more: str, *names: str) -> None:
    """Let policies name the mode, and say more of its package."""
    for name in names or ("server", *SITES):
        place = there.root / name / "local" / "policy.toml"
        text = place.read_text().replace('"split"]', '"split", "sign"]')
        place.write_text(text + more)


@pytest.mark.usefixtures("installed")
def test_sites_end_with_the_adapters_bytes_and_flops_of_one_process(tmp_path: Path) -> None:
    there = house(tmp_path)
    allow(there, PINNED)
    spec = there.spec("params", "sign")
    assert Meeting(there, spec).play() == {"done": True, "refused": False}
    compared.same(there, ("params", "sign"), compared.result(there))


@pytest.mark.usefixtures("installed")
@pytest.mark.parametrize(
    ("more", "said"),
    [
        ("", ""),
        (PINNED.replace("own-mode", "other"), "plugins.sign: the job runs in mode 'sign'"),
        (PINNED + 'version = "2.0"\n', "plugins.sign: the job runs in mode 'sign'"),
        (PINNED + f'sha256 = "{"0" * 64}"\n', "plugins.sign: the job runs in mode 'sign'"),
    ],
    ids=["not named", "another package", "another version", "other source"],
)
def test_a_policy_refuses_what_it_does_not_pin_and_nothing_is_imported(
    tmp_path: Path, more: str, said: str
) -> None:
    there = house(tmp_path)
    if more:
        allow(there, more)
    ended = Meeting(there, plain(there, "sign")).play()
    assert ended["refused"]
    assert (said or "modes: the job runs in mode 'sign'") in ended["error"]
    assert "own_mode" not in sys.modules


@pytest.mark.usefixtures("installed")
def test_nothing_is_imported_for_who_may_not_submit(tmp_path: Path) -> None:
    there = house(tmp_path)
    allow(there, PINNED)
    spec = plain(there, "sign")
    ended = Meeting(there, spec, submitter="eve@lab.example").play()
    assert ended["refused"]
    assert "submitters" in ended["error"]
    assert "own_mode" not in sys.modules


def plain(there: Any, *modes: str, more: str = "") -> dict[str, Any]:
    """What is submitted, as text: nobody typed it here."""
    spec: dict[str, Any] = there.spec("params")
    return {**spec, "modes": list(modes), "job": spec["job"] + more}


@pytest.mark.usefixtures("installed")
def test_a_section_of_a_mode_that_is_not_played_is_not_imported(tmp_path: Path) -> None:
    there = house(tmp_path)
    meeting = Meeting(there, plain(there, "params", more="\n[sign]\nstep = 2.0\n"))
    assert meeting.play()["done"]
    assert "own_mode" not in sys.modules


def test_a_pin_of_a_task_imports_no_mode_of_the_same_name(package: Path, tmp_path: Path) -> None:
    both = shutil.copytree(package, tmp_path / "both")
    points = next(both.glob("*.dist-info")) / "entry_points.txt"
    points.write_text(points.read_text() + "\n[triskel.tasks]\nsign = own_mode:TASK\n")
    there = house(tmp_path / "house")
    for name in ("server", *SITES):
        place = there.root / name / "local" / "policy.toml"
        place.write_text(place.read_text() + PINNED)
    with plugins.beside(both, "own_mode"):
        meeting = Meeting(there, plain(there, "params", more="\n[sign]\nstep = 2.0\n"))
        assert meeting.play()["done"]
        assert "own_mode" not in sys.modules


def test_a_mode_that_is_not_installed_at_a_site_is_refused_there(
    package: Path, tmp_path: Path
) -> None:
    there = house(tmp_path)
    allow(there, PINNED)
    with plugins.beside(package, "own_mode"):
        spec = there.spec("sign")
    ended = Meeting(there, spec).play()
    assert ended["refused"]
    assert "plugins.sign" in ended["error"]


@pytest.mark.usefixtures("installed")
def test_both_sides_must_have_the_same_package(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    there = house(tmp_path)
    allow(there, PINNED)
    monkeypatch.setattr(server_roster, "own_plugins", lambda *_: {"mode sign": "own-mode 2.0 (ab)"})
    ended = Meeting(there, there.spec("sign")).play()
    assert not ended["done"]
    assert (
        "the server has own-mode 2.0 (ab) for mode sign and this side own-mode 1.0"
        in ended["error"]
    )


def test_what_leaves_is_held_to_the_policy_by_its_kind_not_by_the_packages_word(
    package: Path, tmp_path: Path
) -> None:
    """A package that says that it sends signs, and sends the texts' token ids as labels."""
    lying = shutil.copytree(package, tmp_path / "lying")
    code = (lying / "own_mode" / "mode.py").read_text()
    honest = '"signs": Section(kind="mask", tensors={n: x > 0 for n, x in moved.items()}),'
    assert honest in code
    texts = 'Section(kind="labels", tensors={"ids": worker.train.ids[0]})'
    code = code.replace(honest, f'{honest} "more": {texts},')
    (lying / "own_mode" / "mode.py").write_text(code)
    there = house(tmp_path / "house")
    allow(there, PINNED)
    for name in SITES:
        place = there.root / name / "local" / "policy.toml"
        place.write_text(place.read_text().replace("labels = true", "labels = false"))
    with plugins.beside(lying, "own_mode"):
        ended = Meeting(there, there.spec("sign")).play()
    assert not ended["done"]
    assert (
        "leave.labels: section 'more' holds labels; this site does not allow it" in ended["error"]
    )
    for name in SITES:
        log = (there.root / name / "triskel" / "audit.jsonl").read_text()
        assert '"left"' not in log
    assert "sign" not in MODES.names()
