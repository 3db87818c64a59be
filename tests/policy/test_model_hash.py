"""A model is known by all that is loaded of it, and held to that once it is loaded."""

import contextlib
import hashlib
import json
import os
import runpy
import shutil
from collections.abc import Callable
from pathlib import Path
from types import SimpleNamespace
from typing import Literal

import pytest
import torch
from safetensors.torch import load_file, save_file
from typer.testing import CliRunner

from triskel import cli
from triskel.config.sections import Adapter, Model
from triskel.errors import DataError
from triskel.model.load import load
from triskel.policy.model_hash import NAMED, Seals, Weights, weights

SMALL = SimpleNamespace(**runpy.run_path(str(Path(__file__).parents[1] / "helpers" / "small.py")))


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    place = tmp_path / "tiny"
    place.mkdir()
    (place / "model.safetensors").write_bytes(b"one")
    (place / "config.json").write_text('{"n_layer": 12}')
    (place / "tokenizer.json").write_text("{}")
    return place


@pytest.fixture
def sharded(tmp_path: Path) -> Path:
    place = tmp_path / "large"
    place.mkdir()
    for name in ("a", "b"):
        (place / f"{name}.safetensors").write_bytes(name.encode())
    (place / "config.json").write_text('{"num_hidden_layers": 3}')
    index(place, x="a.safetensors", y="b.safetensors")
    return place


def index(place: Path, **where: object) -> None:
    text = json.dumps({"weight_map": where})
    (place / "model.safetensors.index.json").write_text(text)


def by_hand(place: Path, *names: str) -> str:
    """The digest as `sha256sum` would print it."""
    sums = {name: hashlib.sha256((place / name).read_bytes()).hexdigest() for name in names}
    lines = [f"{sums[name]}  {name}\n" for name in sorted(sums)]
    return hashlib.sha256("".join(lines).encode()).hexdigest()


def test_the_digest_is_of_configuration_tokenizer_and_weights(folder: Path, sharded: Path) -> None:
    names = ("config.json", "model.safetensors", "tokenizer.json")
    assert weights(folder) == Weights(by_hand(folder, *names), 12)
    names = ("a.safetensors", "b.safetensors", "config.json", "model.safetensors.index.json")
    assert weights(sharded) == Weights(by_hand(sharded, *names), 3)


def test_what_is_not_loaded_does_not_count(folder: Path) -> None:
    before = weights(folder)
    (folder / "README.md").write_text("hello")
    (folder / "pytorch_model.bin").write_bytes(b"not loaded")
    (folder / "other.safetensors").write_bytes(b"nor this")
    index(folder, x="other.safetensors")  # a whole file is taken before an index
    assert weights(folder) == before
    (folder / "model.safetensors").unlink()
    assert weights(folder) != before


@pytest.mark.parametrize("name", sorted(NAMED))
def test_every_file_that_a_loader_opens_changes_the_digest(name: str, folder: Path) -> None:
    before = weights(folder)
    (folder / name).write_text('{"changed": 1}')
    assert weights(folder) != before


def test_a_folder_without_safetensors_holds_no_model(tmp_path: Path) -> None:
    (tmp_path / "config.json").write_text("{}")
    (tmp_path / "pytorch_model.bin").write_bytes(b"pickle")
    assert weights(tmp_path) is None


@pytest.mark.parametrize(
    "name",
    ["../out.safetensors", "/etc/x.safetensors", "sub/x.safetensors", "x.bin", ".x.safetensors",
     "..\\x.safetensors", 3, None, ""],
)  # fmt: skip
def test_an_index_names_files_of_its_folder_only(name: object, sharded: Path) -> None:
    (sharded.parent / "out.safetensors").write_bytes(b"others")
    index(sharded, x="a.safetensors", y=name)
    with pytest.raises(DataError, match=r"no file of the folder|cannot be read"):
        weights(sharded)


@pytest.mark.parametrize("text", ["{", "[]", "{}", '{"weight_map": 3}', '{"weight_map": {}}'])
def test_an_index_that_is_none_is_refused(text: str, sharded: Path) -> None:
    (sharded / "model.safetensors.index.json").write_text(text)
    with pytest.raises(DataError, match=r"model\.safetensors\.index\.json of model folder"):
        weights(sharded)


def outside(folder: Path) -> None:
    (folder.parent / "key").write_bytes(b"secret")
    (folder / "config.json").unlink()
    (folder / "config.json").symlink_to(folder.parent / "key")


def piped(folder: Path) -> None:
    (folder / "tokenizer.json").unlink()
    os.mkfifo(folder / "tokenizer.json")


def adapted(folder: Path) -> None:
    (folder / "adapter_config.json").write_text("{}")


def linked_weights(folder: Path) -> None:
    (folder / "model.safetensors").rename(folder.parent / "weights")
    (folder / "model.safetensors").symlink_to(folder.parent / "weights")


@pytest.mark.parametrize("change", [outside, piped, adapted, linked_weights])
def test_a_folder_that_leads_elsewhere_is_not_loaded(
    change: Callable[[Path], None], folder: Path
) -> None:
    change(folder)
    with pytest.raises(DataError, match=r"link out of it|no plain file|remove it"):
        weights(folder)


def test_the_hubs_cache_may_link_into_its_own_blobs_and_nowhere_else(tmp_path: Path) -> None:
    snapshot, blobs = tmp_path / "m" / "snapshots" / "abc", tmp_path / "m" / "blobs"
    snapshot.mkdir(parents=True)
    blobs.mkdir()
    (blobs / "1").write_bytes(b"one")
    (snapshot / "model.safetensors").symlink_to("../../blobs/1")
    assert weights(snapshot) == Weights(by_hand(snapshot, "model.safetensors"), None)
    (tmp_path / "key").write_bytes(b"secret")
    (snapshot / "config.json").symlink_to("../../../key")
    with pytest.raises(DataError, match="link out of it"):
        weights(snapshot)


def edited(folder: Path) -> None:
    (folder / "tokenizer.json").write_text('{"x": 1}')


def edited_and_back(folder: Path) -> None:
    place = folder / "model.safetensors"
    about = place.stat()
    place.write_bytes(b"two")
    place.write_bytes(b"one")
    os.utime(place, ns=(about.st_atime_ns, about.st_mtime_ns))


def swapped_and_back(folder: Path) -> None:
    shutil.copy(folder / "config.json", folder / "evil")
    (folder / "config.json").rename(folder / "aside")
    (folder / "evil").rename(folder / "config.json")
    (folder / "config.json").rename(folder / "evil")
    (folder / "aside").rename(folder / "config.json")


def added(folder: Path) -> None:
    (folder / "generation_config.json").write_text("{}")


def removed(folder: Path) -> None:
    (folder / "tokenizer.json").unlink()


@pytest.mark.parametrize("change", [edited, edited_and_back, swapped_and_back, added, removed])
def test_what_was_changed_between_the_hash_and_the_load_is_found(
    change: Callable[[Path], None], folder: Path
) -> None:
    seals = Seals()
    assert seals.close(folder) == weights(folder)
    with seals.held(str(folder)):
        pass
    with pytest.raises(DataError, match="was changed while it was loaded"), seals.held(str(folder)):
        change(folder)


@pytest.fixture
def evil(folder: Path) -> Path:
    place = Path(shutil.copytree(folder, folder.with_name("evil")))
    (place / "model.safetensors").write_bytes(b"two")
    return place


def exchanged(one: Path, other: Path) -> None:
    """Put two folders in each other's place; no file of either is touched."""
    one.rename(one.with_name("aside"))
    other.rename(one)
    one.with_name("aside").rename(other)


def test_a_folder_that_takes_anothers_place_is_not_loaded_from(folder: Path, evil: Path) -> None:
    seals = Seals()
    seals.close(folder)
    with seals.held(str(folder)) as place:
        exchanged(folder, evil)
        assert (folder / "model.safetensors").read_bytes() == b"two"
        assert (Path(place) / "model.safetensors").read_bytes() == b"one"
        exchanged(folder, evil)


def test_a_folder_that_was_another_as_it_was_opened_is_found(folder: Path, evil: Path) -> None:
    seals = Seals()
    seals.close(folder)
    exchanged(folder, evil)
    with pytest.raises(DataError, match="was changed while it was loaded"), seals.held(str(folder)):
        exchanged(folder, evil)


def test_a_folder_that_is_gone_by_then_is_said(folder: Path) -> None:
    seals = Seals()
    seals.close(folder)
    shutil.rmtree(folder)
    with pytest.raises(DataError, match="cannot be read: No such file"), seals.held(str(folder)):
        pass


def test_a_folder_is_closed_whatever_happens(folder: Path) -> None:
    seals, before = Seals(), len(list(Path("/proc/self/fd").iterdir()))
    seals.close(folder)
    for fault in (None, ValueError("cannot be loaded")):
        with contextlib.suppress(ValueError), seals.held(str(folder)):
            assert len(list(Path("/proc/self/fd").iterdir())) == before + 1
            if fault:
                raise fault
        assert len(list(Path("/proc/self/fd").iterdir())) == before


def test_files_of_a_hub_cache_are_held_too(folder: Path, tmp_path: Path) -> None:
    blobs, snapshot = tmp_path / "hub" / "blobs", tmp_path / "hub" / "snapshots" / "abc"
    snapshot.mkdir(parents=True)
    blobs.mkdir()
    for file in folder.iterdir():
        file.rename(blobs / file.name)
        (snapshot / file.name).symlink_to(f"../../blobs/{file.name}")
    seals = Seals()
    seals.close(snapshot)
    with seals.held(str(snapshot)) as place:
        assert (Path(place) / "model.safetensors").read_bytes() == b"one"
    with pytest.raises(DataError, match="was changed"), seals.held(str(snapshot)):
        edited_and_back(blobs)


def test_a_loader_is_shown_what_was_hashed_and_nothing_else(folder: Path) -> None:
    (folder / "README.md").write_text("hello")
    (folder / "secret.json").write_text("{}")
    seals = Seals()
    seals.close(folder)
    with seals.held(str(folder)) as place:
        shown = {file.name: file.read_bytes() for file in Path(place).iterdir()}
    assert shown == {
        name: (folder / name).read_bytes()
        for name in ("config.json", "model.safetensors", "tokenizer.json")
    }
    assert not Path(place).exists()


def test_a_tokenizer_of_one_version_of_the_library_counts_and_is_the_one_that_is_loaded(
    tmp_path: Path,
) -> None:
    """The configuration of a tokenizer may name another file for each version."""
    place = SMALL.save_model(tmp_path / "model")
    before = weights(place)
    config = json.loads((place / "tokenizer_config.json").read_text())
    config["fast_tokenizer_files"] = ["tokenizer.json", "tokenizer.4.0.0.json"]
    (place / "tokenizer_config.json").write_text(json.dumps(config))
    said = json.loads((place / "tokenizer.json").read_text())
    said["model"]["vocab"] = dict(sorted(said["model"]["vocab"].items(), key=lambda w: -w[1]))
    (place / "tokenizer.4.0.0.json").write_text(json.dumps(said))
    first = weights(place)
    assert first not in {None, before}
    (place / "tokenizer.4.0.0.json").write_text(json.dumps(said, indent=1))
    assert weights(place) != first
    seals = Seals()
    seals.close(place)
    with seals.held(str(place)) as held:
        assert {"tokenizer.json", "tokenizer.4.0.0.json"} <= {x.name for x in Path(held).iterdir()}
        options = {"head": "classes", "classes": 3, "seed": 0}
        assert load(str(place), Model(), Adapter(), place=held, **options)


def test_what_was_never_hashed_is_not_loaded(folder: Path, sharded: Path) -> None:
    seals = Seals()
    seals.close(folder)
    with (
        pytest.raises(DataError, match="was not held to the policy"),
        seals.held(str(sharded)),
    ):
        pass


@pytest.mark.parametrize("head", ["classes", "vocabulary"])
@pytest.mark.parametrize("dtype", ["float32", "bfloat16"])
def test_what_was_loaded_does_not_change_with_its_file(
    dtype: Literal["float32", "bfloat16"], head: Literal["classes", "vocabulary"], tmp_path: Path
) -> None:
    """Weights of the file's own type stay in the file as the libraries read them."""
    place = SMALL.save_model(tmp_path / "model")
    file = place / "model.safetensors"
    kept = {n: t.to(getattr(torch, dtype), copy=True) for n, t in load_file(file).items()}
    save_file(kept, file, metadata={"format": "pt"})
    seals = Seals()
    seals.close(place)
    with seals.held(str(place)) as held:
        body = load(
            str(place), Model(dtype=dtype), Adapter(), head=head, classes=3, seed=0, place=held
        )
    before = [p.clone() for p in body.blocks.model.parameters()]
    with file.open("r+b") as open_file:
        size = file.stat().st_size
        open_file.seek(size // 2)
        open_file.write(bytes(size - size // 2))
    assert all(map(torch.equal, before, body.blocks.model.parameters()))
    assert str(file) not in Path("/proc/self/maps").read_text()


def test_the_command_prints_the_line_of_a_policy(folder: Path, tmp_path: Path) -> None:
    found = weights(folder)
    assert found is not None
    got = CliRunner().invoke(cli.app, ["site", "hash", str(folder)])
    assert (got.exit_code, got.stdout) == (0, f'"tiny" = "{found.sha256}"\n')
    got = CliRunner().invoke(cli.app, ["site", "hash", str(tmp_path)])
    assert got.exit_code
    assert "holds no model in safetensors" in got.output
