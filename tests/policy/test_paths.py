"""Jobs name things, and only this machine's own policy says where they are."""

import runpy
from pathlib import Path

import pytest

from triskel.errors import DataError, JobError
from triskel.policy import paths
from triskel.policy.model_hash import weights
from triskel.policy.paths import MODELS, datasets, model_folder, models_of, placed, weights_of
from triskel.policy.read import load

sites = runpy.run_path(str(Path(__file__).parents[1] / "helpers" / "sites.py"))
house = sites["house"]

PATHS = (
    "/", "/etc", "..", ".", "../tiny", "tiny/..", "tiny/../tiny", "tiny//x", "tiny/", "/tiny", "~",
    "~/tiny", "a/b/c", ".hidden", "tiny/.hidden", "tiny\n", "tiny\0", "", "C:\\tiny", "-x", "_x",
    "file:tiny", "tiny x", "http://x",
)  # fmt: skip


@pytest.mark.parametrize("name", PATHS, ids=repr)
def test_a_path_is_no_name_and_nothing_is_looked_for(
    tmp_path: Path, name: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    def touched(path: str) -> str:
        raise AssertionError(f"{path} was looked for")

    monkeypatch.setattr(paths, "resolve", touched)
    with pytest.raises(JobError, match="is no name"):
        model_folder(name, tmp_path / "policy.toml")


def test_a_name_is_a_folder_or_a_link_beside_the_policy(tmp_path: Path) -> None:
    there = house(tmp_path)
    policy = tmp_path / "bank" / "local" / "policy.toml"
    assert model_folder("tiny", policy) == policy.parent / MODELS / "tiny"
    own = policy.parent / MODELS / "lab" / "large"
    own.mkdir(parents=True)
    assert model_folder("lab/large", policy) == own
    found = placed(there.job, policy)
    assert found.model.path == str((tmp_path / "tiny").resolve())
    assert weights_of("tiny", policy) == weights(tmp_path / "tiny")
    assert weights_of("lab/large", policy) is None


def test_a_folder_where_the_process_stands_is_no_model(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    (tmp_path / "here" / "large").mkdir(parents=True)
    monkeypatch.chdir(tmp_path)
    for name in ("here", "here/large", "nowhere", "nobody/nothing"):
        assert model_folder(name, tmp_path / "policy.toml") is None
        assert weights_of(name, tmp_path / "policy.toml") is None
    (tmp_path / "file").write_text("x")
    assert model_folder("file", tmp_path / "policy.toml") is None
    job = house(tmp_path / "all", **{"model.path": '"here"'}).job
    with pytest.raises(JobError, match="model 'here' is not on this machine"):
        placed(job, tmp_path / "policy.toml")


def test_an_asset_and_a_downloaded_model_are_found_and_never_fetched(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("TRISKEL_CACHE", str(tmp_path / "cache"))
    assert model_folder("smollm2-135m", tmp_path / "policy.toml") is None
    monkeypatch.setattr(paths, "resolve", lambda _: str(tmp_path / "cache" / "asset"))
    assert model_folder("smollm2-135m", tmp_path / "policy.toml") == tmp_path / "cache" / "asset"

    def missing(name: str) -> str:
        raise DataError(f"{name} is not there")

    monkeypatch.setattr(paths, "resolve", missing)
    assert model_folder("smollm2-135m", tmp_path / "policy.toml") is None

    asked: dict[str, bool] = {}

    def snapshot(name: str, *, local_files_only: bool) -> str:
        asked[name] = local_files_only
        return str(tmp_path / "hub")

    monkeypatch.setattr(paths, "resolve", lambda name: name)
    monkeypatch.setattr("huggingface_hub.snapshot_download", snapshot)
    assert model_folder("lab/large", tmp_path / "policy.toml") == tmp_path / "hub"
    assert model_folder("large", tmp_path / "policy.toml") is None
    assert asked == {"lab/large": True}


@pytest.mark.parametrize("student", ["true", "false"])
def test_a_client_loads_its_own_model_and_the_servers(tmp_path: Path, student: str) -> None:
    keys = {"mode": '"logits"', "clients.each.bank.model": '"own"', "logits.student": student}
    job = house(tmp_path, **keys).job
    assert models_of(job, "bank") == ["own", "tiny"]
    assert models_of(job, "shop") == ["tiny"]


def test_only_the_own_model_of_a_client_is_placed_and_others_stay_names(tmp_path: Path) -> None:
    each = {"clients.each.bank.model": '"own"', "clients.each.shop.model": '"../other"'}
    job = house(tmp_path, **each).job
    policy = tmp_path / "bank" / "local" / "policy.toml"
    (policy.parent / MODELS / "own").mkdir()
    found = placed(job, policy, "bank").clients.each
    assert found["bank"].model == str((policy.parent / MODELS / "own").resolve())
    assert found["shop"].model == "../other"
    assert placed(job, policy).clients.each["bank"].model == "own"
    with pytest.raises(JobError, match="is no name"):
        placed(job, policy, "shop")


def test_datasets_are_where_the_policy_says_and_nowhere_else(tmp_path: Path) -> None:
    house(tmp_path)
    policy, _ = load(tmp_path / "bank" / "local" / "policy.toml")
    found = datasets(policy)
    assert set(found) == {"reviews", "tests", "news.csv"}
    assert found["reviews"].columns == {"text": "text", "label": "label", "answer": "answer"}
    (path,) = found["reviews"].paths
    assert path.resolve() == tmp_path / "bank" / "reviews.csv"
