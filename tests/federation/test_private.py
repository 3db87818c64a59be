"""What a kit, a run or a cache holds is its owner's: nobody else on the machine reads it."""

import os
import runpy
import shutil
import stat
import subprocess
import sys
import tarfile
from collections.abc import Callable
from io import BytesIO
from pathlib import Path
from types import SimpleNamespace

import pytest
from typer.testing import CliRunner

pytest.importorskip("nvflare", reason="NVIDIA FLARE is not installed")

from triskel import cli
from triskel.core.files import write_text
from triskel.engines.local import LocalEngine
from triskel.errors import JobError
from triskel.experiment.compare import Request, run
from triskel.federation import kits, nodes
from triskel.federation.pack import encrypted, pack, unpack
from triskel.model.machine_cache import recalled, remember
from triskel.report.page import write_whole

patience = runpy.run_path(str(Path(__file__).parents[1] / "helpers" / "patience.py"))["patience"]

PASSWORD = b"a word that nobody guesses"


@pytest.fixture
def made(central_kits: Path) -> Path:
    return central_kits


@pytest.fixture
def open_umask() -> Callable[[], None]:
    before = os.umask(0)
    yield lambda: None  # type: ignore[misc]
    os.umask(before)


def bank(folder: Path) -> kits.Kit:
    return next(one for one in kits.kits_in(folder) if one.name == "bank")


def modes(folder: Path) -> set[int]:
    """Return what others may do with anything below a folder."""
    return {stat.S_IMODE(p.lstat().st_mode) & 0o077 for p in [folder, *folder.rglob("*")]}


def files(folder: Path) -> dict[str, bytes]:
    return {str(p.relative_to(folder)): p.read_bytes() for p in folder.rglob("*") if p.is_file()}


@pytest.mark.usefixtures("open_umask")
@pytest.mark.parametrize("password", [b"", PASSWORD])
def test_a_packed_kit_is_its_owners_and_comes_out_as_it_went_in(
    password: bytes, made: Path, tmp_path: Path
) -> None:
    kit = bank(made)
    (kit.path / "triskel").mkdir(exist_ok=True)
    (kit.path / "triskel" / "audit.jsonl").write_text("what left")
    file = pack(kit, tmp_path / "bank.kit", password)
    assert stat.S_IMODE(file.stat().st_mode) == 0o600
    got = unpack(file, tmp_path / "there", password)
    assert encrypted(file) == bool(password)
    assert modes(got.path) == {0}
    assert (got.name, got.kind) == ("bank", "site")
    for part in ("startup", "local"):
        assert files(got.path / part) == files(kit.path / part)
    assert not (got.path / "triskel").exists()
    assert os.access(got.path / "startup" / "start.sh", os.X_OK)


def test_without_the_password_nothing_comes_out(made: Path, tmp_path: Path) -> None:
    file = pack(bank(made), tmp_path / "bank.kit", PASSWORD)
    with pytest.raises(JobError, match="is encrypted"):
        unpack(file, tmp_path / "there")
    with pytest.raises(JobError, match="the password is another one"):
        unpack(file, tmp_path / "there", PASSWORD + b"x")
    for at in (20, 40, -1):
        data = bytearray(file.read_bytes())
        data[at] ^= 1
        other = tmp_path / f"changed{at}.kit"
        other.write_bytes(data)
        with pytest.raises(JobError, match="or the file was changed"):
            unpack(other, tmp_path / "there", PASSWORD)
    assert list((tmp_path / "there").glob("*")) == []


def test_nothing_is_written_over(made: Path, tmp_path: Path) -> None:
    file = pack(bank(made), tmp_path / "bank.kit")
    with pytest.raises(JobError, match="exists"):
        pack(bank(made), file)
    unpack(file, tmp_path / "there")
    with pytest.raises(JobError, match="exists; remove it"):
        unpack(file, tmp_path / "there")
    (tmp_path / "link.kit").symlink_to(tmp_path / "elsewhere")
    with pytest.raises(JobError):
        pack(bank(made), tmp_path / "link.kit")
    assert not (tmp_path / "elsewhere").exists()


def archive(*entries: tarfile.TarInfo, data: bytes = b"x") -> bytes:
    out = BytesIO()
    with tarfile.open(fileobj=out, mode="w:gz") as packed:
        for info in entries:
            info.size = len(data) if info.isreg() else 0
            packed.addfile(info, BytesIO(data) if info.isreg() else None)
    return out.getvalue()


def entry(name: str, kind: bytes = tarfile.REGTYPE, link: str = "") -> tarfile.TarInfo:
    info = tarfile.TarInfo(name)
    info.type, info.linkname = kind, link
    return info


HOSTILE: dict[str, Callable[[], bytes]] = {
    "a place outside": lambda: archive(entry("bank/../../evil")),
    "an absolute place": lambda: archive(entry("/srv/evil")),
    "a link": lambda: archive(entry("bank/startup", tarfile.SYMTYPE, "/etc")),
    "a hard link": lambda: archive(entry("bank/x", tarfile.LNKTYPE, "/etc/passwd")),
    "a device": lambda: archive(entry("bank/x", tarfile.CHRTYPE)),
    "two folders": lambda: archive(entry("bank/x"), entry("shop/x")),
    "the same file twice": lambda: archive(entry("bank/x"), entry("bank/x")),
    "a gigabyte": lambda: archive(*[entry(f"bank/{i}") for i in range(9)], data=bytes(8 << 20)),
    "no kit": lambda: archive(entry("bank/x")),
    "nothing": lambda: b"",
    "no archive": lambda: b"not an archive" * 99,
}


@pytest.mark.parametrize("name", HOSTILE)
def test_a_hostile_archive_is_refused_and_writes_nothing(name: str, tmp_path: Path) -> None:
    file = tmp_path / "in" / "evil.kit"
    file.parent.mkdir()
    file.write_bytes(HOSTILE[name]())
    with pytest.raises(JobError, match=r"no packed kit|holds no kit"):
        unpack(file, tmp_path / "out")
    assert list((tmp_path / "out").glob("*")) == []
    assert {p.name for p in tmp_path.iterdir()} == {"in", "out"}


def test_the_commands_pack_and_unpack(made: Path, tmp_path: Path) -> None:
    secret, file = tmp_path / "secret", tmp_path / "bank.kit"
    secret.write_text("word\n")
    words = ["federation", "pack", str(bank(made).path), "--out", str(file)]
    got = CliRunner().invoke(cli.app, [*words, "--password-file", str(secret)])
    assert (got.exit_code, "encrypted" in got.output) == (0, True)
    words = ["federation", "unpack", str(file), str(tmp_path / "out")]
    got = CliRunner().invoke(cli.app, [*words, "--password-file", str(secret)])
    assert got.exit_code == 0, got.output
    assert (tmp_path / "out" / "bank" / "startup" / "client.key").is_file()
    secret.write_text("\n")
    got = CliRunner().invoke(cli.app, [*words, "--password-file", str(secret)])
    assert "holds no password" in got.output


@pytest.mark.usefixtures("open_umask")
def test_what_a_node_and_its_jobs_write_is_its_owners(made: Path, tmp_path: Path) -> None:
    kit = bank(made)
    with (tmp_path / "log").open("wb") as log:
        script = f"mkdir {tmp_path}/d; touch {tmp_path}/d/f; echo $TRISKEL_KIT > {tmp_path}/d/kit"
        assert nodes._spawn(["bash", "-c", script], kit, log).wait(patience(30)) == 0
    assert modes(tmp_path / "d") == {0}
    assert (tmp_path / "d" / "kit").read_text().strip() == str(kit.path)


# --- runs -------------------------------------------------------------------------------------


def test_whatever_the_command_line_writes_is_its_owners_whatever_the_umask(tmp_path: Path) -> None:
    script = "import os; os.umask(0); from triskel import cli; cli.main()"
    command = [sys.executable, "-c", script, "init", "job.toml"]
    done = subprocess.run(command, cwd=tmp_path, capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr
    assert stat.S_IMODE((tmp_path / "job.toml").stat().st_mode) == 0o600


@pytest.mark.usefixtures("open_umask")
def test_a_run_folder_opens_for_its_owner_alone_also_from_python(tmp_path: Path) -> None:
    write_text(tmp_path / "run" / "stages" / "done.json", "{}")
    assert stat.S_IMODE((tmp_path / "run").stat().st_mode) == 0o700
    assert modes(tmp_path / "run") == {0}
    for _ in range(2):
        write_text(tmp_path / "spent.json", "{}")  # in a folder that is open to others
        assert stat.S_IMODE((tmp_path / "spent.json").stat().st_mode) == 0o600
    write_whole(tmp_path / "report.html", "page")
    assert stat.S_IMODE((tmp_path / "report.html").stat().st_mode) == 0o600


SMALL = SimpleNamespace(**runpy.run_path(str(Path(__file__).parents[1] / "helpers" / "small.py")))


@pytest.mark.usefixtures("open_umask")
def test_nothing_that_a_run_leaves_can_be_read_by_others_in_a_folder_that_was_open(
    tmp_path: Path,
) -> None:
    """From Python, where nobody set an umask; the folder was there."""
    folder = tmp_path / "run"
    folder.mkdir()
    SMALL.save_model(tmp_path / "model")
    SMALL.save_rows(tmp_path / "rows.csv", 40)
    job = SMALL.job(tmp_path / "model", tmp_path / "rows.csv", clients={"count": 2}, rounds=2)
    run(job, Request(), folder, LocalEngine(job), SMALL.watch)
    left = {p for p in folder.rglob("*") if p.lstat().st_mode & 0o077}
    assert {str(p.relative_to(folder)) for p in left} == set()


def test_a_kit_that_was_open_is_closed_to_others_when_its_node_is_started(
    made: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    one = bank(Path(shutil.copytree(made, tmp_path / "f")))
    one.path.chmod(0o755)
    monkeypatch.setattr(nodes, "_spawn", lambda *_: SimpleNamespace(pid=1))
    assert nodes.start(one) == 1
    assert stat.S_IMODE(one.path.stat().st_mode) == 0o700
    (one.path / "node.pid").unlink()


@pytest.mark.usefixtures("open_umask")
def test_what_a_machine_remembers_is_its_owners(tmp_path: Path) -> None:
    remember(tmp_path / "cache" / "costs" / "one.json", {"a": 1}, print)
    assert recalled(tmp_path / "cache" / "costs" / "one.json") == {"a": 1}
    assert modes(tmp_path / "cache") == {0}
