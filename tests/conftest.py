"""What every test shares: no network, one thread, and visible skips where a file is absent."""

import functools
import os
import shutil
from collections.abc import Callable
from pathlib import Path

# Before torch, transformers or datasets is imported: they read these once.
os.environ["HF_HUB_OFFLINE"] = "1"
os.environ["HF_DATASETS_OFFLINE"] = "1"
os.environ["TOKENIZERS_PARALLELISM"] = "false"
# Tiny models gain nothing from threads, and two test processes that share two cores lose a lot.
os.environ["OMP_NUM_THREADS"] = "1"

import counted  # pyright: ignore[reportMissingImports]
import hypothesis
import pytest
import torch
from filelock import FileLock
from xdist.scheduler import LoadGroupScheduling

ROOT = Path(__file__).resolve().parent.parent
counted.install()
# Nobody cuts the power while tests run: what is written need not wait for the disk.
os.fsync = lambda _: None


# A busy machine is not a failure: no test of properties has a deadline, none draws too slowly.
SLOW = (hypothesis.HealthCheck.too_slow,)
hypothesis.settings.register_profile("house", deadline=None, suppress_health_check=SLOW)
hypothesis.settings.load_profile("house")

# Files whose tests share a federation, so that one worker runs them: xdist 3.8 reads no marks of
# groups under pytest 9.2. Links mostly wait, so they have a worker of their own.
GROUPS = {
    "test_commands.py": "federation",
    "test_flare.py": "federation",
    "test_flare_security.py": "federation",
    "test_flare_links.py": "links",
}


@functools.cache
def shares(file: str) -> bool:
    """Return whether tests of a file share what takes long to make: each worker would make it."""
    return 'scope="module"' in (ROOT / file).read_text(encoding="utf-8")


def turn(item: pytest.Item) -> int:
    """Return when a test comes: first those that wait most, last those that fill what is left."""
    file = item.nodeid.partition("::")[0]
    if file.rpartition("/")[2] in GROUPS:
        return 0
    return 1 if shares(file) or item.get_closest_marker("slow") else 2


class Scheduling(LoadGroupScheduling):
    """Deals tests to workers one by one, and those of a group together, in their order."""

    def _split_scope(self, nodeid: str) -> str:
        file = nodeid.partition("::")[0]
        group = GROUPS.get(file.rpartition("/")[2]) or (file if shares(file) else None)
        return group or super()._split_scope(nodeid)


@pytest.hookimpl(optionalhook=True)  # without xdist there is none
def pytest_xdist_make_scheduler(config: pytest.Config, log: object) -> Scheduling | None:
    """Use our groups where `--dist loadgroup` asks for groups."""
    if config.getvalue("dist") != "loadgroup":
        return None
    config.option.loadscopereorder = False  # the number of tests says little of how long they take
    return Scheduling(config, log)


def once(
    factory: pytest.TempPathFactory,
    config: pytest.Config,
    name: str,
    make: Callable[[Path], object],
) -> Path:
    """Return a folder that the first worker which asks for it makes, for all of them to copy."""
    place = factory.getbasetemp() / name
    if hasattr(config, "workerinput"):  # the workers' folders lie beside each other
        place = factory.getbasetemp().parent / name
    with FileLock(place.with_suffix(".lock")):
        if not place.exists():
            make(place.with_suffix(".part"))
            place.with_suffix(".part").rename(place)
    return place


@pytest.fixture(scope="session")
def central_kits(tmp_path_factory: pytest.TempPathFactory, pytestconfig: pytest.Config) -> Path:
    """A federation of bank and clinic whose kits were made centrally; to be copied, not changed."""
    from triskel.federation.provision import Plan, new  # noqa: PLC0415 - FLARE may not be there

    plan = Plan(("bank", "clinic"), server="localhost", port=8002, admin="anna@lab.ch")
    return once(tmp_path_factory, pytestconfig, "central-kits", lambda place: new(place, plan))


@pytest.fixture(scope="session")
def lead_kits(tmp_path_factory: pytest.TempPathFactory, pytestconfig: pytest.Config) -> Path:
    """The lead's side of a federation whose sites keep their keys; to be copied, not changed."""
    from triskel.federation.distributed import found  # noqa: PLC0415 - FLARE may not be there
    from triskel.federation.provision import Plan  # noqa: PLC0415

    plan = Plan(("x",), server="host.ch", port=8002, admin="anna@lab.ch")
    return once(tmp_path_factory, pytestconfig, "lead-kits", lambda place: found(place, plan))


@pytest.fixture
def central(central_kits: Path, tmp_path: Path) -> Path:
    """A federation whose kits were made centrally, to change."""
    return Path(shutil.copytree(central_kits, tmp_path / "central"))


@pytest.fixture
def lead(lead_kits: Path, tmp_path: Path) -> Path:
    """The lead's side of a federation whose sites keep their keys, to change."""
    return Path(shutil.copytree(lead_kits, tmp_path / "lead"))


MARKER_OF = {"shared_data": "data", "assets": "asset"}


@pytest.hookimpl(trylast=True)
def pytest_collection_modifyitems(config: pytest.Config, items: list[pytest.Item]) -> None:
    """Mark each test by the files it asks for, so that `-m "not asset"` leaves none out."""
    for item in items:
        for fixture in getattr(item, "fixturenames", ()):
            if fixture in MARKER_OF:
                item.add_marker(MARKER_OF[fixture])
    if hasattr(config, "workerinput"):
        items.sort(key=turn)


@pytest.fixture(autouse=True)
def _one_thread() -> None:
    """Fix the thread count, so that sums come in one order on every machine."""
    torch.set_num_threads(1)


@pytest.fixture(scope="session")
def shared_data() -> Path:
    """The folder of public data copies, see the marker `data`."""
    named = os.environ.get("TRISKEL_DATA")
    folder = Path(named) if named else ROOT.parent / "shared" / "data"
    if not folder.is_dir():
        pytest.skip(f"no data folder at {folder}: name one with TRISKEL_DATA")
    return folder


@pytest.fixture(scope="session")
def shared_models(shared_data: Path) -> Path:
    """The folder of small trained models beside the data folder."""
    folder = shared_data.parent / "models"
    if not folder.is_dir():
        pytest.skip(f"no folder of models at {folder}: put it beside the one TRISKEL_DATA names")
    return folder


@pytest.fixture(scope="session")
def assets() -> Path:
    """The cache that `triskel assets get` fills, see the marker `asset`."""
    named = os.environ.get("TRISKEL_CACHE")
    folder = Path(named) if named else Path.home() / ".cache" / "triskel"
    for name in ("smollm2-135m", "opinions"):
        if not (folder / name).is_dir():
            pytest.skip(f"asset {name} is not in {folder}: run `triskel assets get`")
    return folder
