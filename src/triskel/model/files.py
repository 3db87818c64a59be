"""The files of a base model, looked at without loading any: what is missing, and what must not be.

Nothing here needs torch, so a wrong path is said before anything slow begins.
"""

import difflib
from collections.abc import Collection, Iterator, Mapping
from dataclasses import replace
from importlib import import_module
from pathlib import Path
from typing import Any, cast

from triskel.core.faults import Fault
from triskel.core.task_spec import Head
from triskel.core.untrusted import HEADER_MOST, json_in, json_of, mistyped, table_of
from triskel.model.architectures import misfit

KEY = "model.path"
ADAPTER_CONFIG, ADAPTER_WEIGHTS = "adapter_config.json", "adapter_model.safetensors"
"""The two files of a PEFT folder."""
TIMEOUT_S = 1.5
"""How long the hub may take to say whether there is a model."""
GONE = {"RepositoryNotFoundError", "EntryNotFoundError", "RemoteEntryNotFoundError"}
"""What the hub's library raises where there is no such model."""
TOKENIZERS = (
    "tokenizer.json", "tokenizer.model", "vocab.json", "vocab.txt", "spiece.model",
    "sentencepiece.bpe.model", "tokenizer_config.json",
)  # fmt: skip
WHOLE, INDEX = "model.safetensors", "model.safetensors.index.json"
Json = Mapping[str, Any]


def lacking(path: str, assets: Collection[str], head: Head, key: str = KEY) -> Iterator[Fault]:
    """Return what keeps a model from being loaded, as far as its files say.

    Args:
        path: Name of an asset, path of a folder, or hub id.
        assets: Names of models that are fetched when they are needed.
        head: What it is to end with.
        key: The key of the job that names it.
    """
    yield from (replace(fault, key=key) for fault in _lacking(path, assets, head))


def unloadable(name: str, config: Json, head: Head) -> Iterator[str]:
    """Return why a model is never loaded, by its configuration: a sentence for each reason.

    Args:
        name: What the model is called.
        config: What its `config.json` holds.
        head: What it is to end with.
    """
    kind = config.get("model_type")
    if not kind:
        yield f"config.json of {name} names no model_type, so nobody knows how to load it"
    elif (why := misfit(str(kind), head)) is not None:
        code = next(_code(config), "")
        yield f"{why}{f'; its own code ({code}) is never run' if code else ''}"
    if kind == "falcon" and config.get("alibi"):
        yield f"model {name} is a falcon that tells places by alibi, and only rotary ones are run"
    told = config.get("quantization_config")
    if told:
        how = cast("Json", told).get("quant_method") if isinstance(told, dict) else None
        yield (
            f"model {name} is quantised ({how or 'quantization_config in its config.json'}), and "
            "adapters are trained on plain weights here: name the model that it was made from"
        )
    pad, rows = config.get("pad_token_id"), config.get("vocab_size")
    if isinstance(pad, int) and isinstance(rows, int) and pad >= rows:
        yield (
            f"config.json of {name} has pad_token_id = {pad} and vocab_size = {rows}: there is no "
            f"such token; name one below {rows} in it"
        )


def _lacking(path: str, assets: Collection[str], head: Head) -> Iterator[Fault]:
    if path in assets:
        return
    folder = Path(path).expanduser()
    if why := mistyped(path):
        yield Fault(KEY, f"model folder {why}")
    elif folder.is_dir():
        yield from _folder(path, folder, head)
    elif folder.exists():
        yield Fault(KEY, f"{path} is a file; name the folder of a model, with its config.json")
    elif path.startswith((".", "~")) or folder.is_absolute() or path.count("/") > 1:
        yield Fault(KEY, f"model folder {path} does not exist{_near(folder)}")
    else:
        yield from _hub(path, assets)


def _folder(path: str, folder: Path, head: Head) -> Iterator[Fault]:
    place = folder / "config.json"
    if not place.exists():
        yield Fault(KEY, f"model folder {path} has no config.json, so it is no model's folder")
        return
    try:
        config = table_of(json_in(place.resolve()))  # a cache is a folder of links
    except (OSError, ValueError, TypeError) as error:
        yield Fault(KEY, f"{place} cannot be read: {error}")
        return
    yield from (Fault(KEY, why) for why in unloadable(path, config, head))
    if (folder / ADAPTER_CONFIG).exists():
        yield Fault(
            KEY,
            f"model folder {path} also holds an adapter (adapter_config.json), which would be "
            "loaded unasked: take it out of the folder, and name it as adapter.start or merge it "
            "into the model",
        )
    if code := sorted(_code(config)):
        yield Fault(
            KEY,
            f"model {path} brings code of its own ({code[0]}), which is never run: it is loaded as "
            "the model that transformers knows by its type, or refused",
            refuses=False,
        )
    names = {p.name for p in folder.iterdir()}
    if not names & set(TOKENIZERS):
        yield Fault(KEY, f"model folder {path} has no tokenizer; copy tokenizer.json into it")
    if names & {WHOLE, INDEX}:
        yield from _tensors(folder, names)
    elif some := sorted(name for name in names if name.endswith(".safetensors")):
        yield Fault(
            KEY,
            f"model folder {path} has {some[0]} and neither {WHOLE} nor {INDEX}, which names the "
            "parts of a model; copy what is missing",
        )
    else:
        yield from _weights(path, names)


def _code(config: Json) -> Iterator[str]:
    """Yield the modules of its own that a model's configuration names."""
    for value in (config.get("auto_map"), config.get("custom_pipelines")):
        if isinstance(value, dict):
            yield from (str(name) for name in cast("Json", value).values())


def _tensors(folder: Path, names: set[str]) -> Iterator[Fault]:
    """Return files of tensors that are not there, or not whole."""
    parts = [WHOLE]
    if WHOLE not in names:
        try:
            told = table_of(json_in((folder / INDEX).resolve()))
            parts = sorted({str(one) for one in table_of(told["weight_map"]).values()})
        except (OSError, ValueError, KeyError, TypeError) as error:
            yield Fault(KEY, f"{folder / INDEX} cannot be read: {error}")
            return
        if lost := [name for name in parts if name not in names]:
            more = f" and {len(lost) - 1} more" if len(lost) > 1 else ""
            yield Fault(
                KEY,
                f"model folder {folder} lacks {lost[0]}{more}, of the {len(parts)} files that "
                f"{INDEX} names; copy or fetch them anew",
            )
    for name in parts:
        if name in names and (why := _cut(folder / name)):
            yield Fault(KEY, f"{folder / name} {why}; copy or fetch it anew")


def _cut(place: Path) -> str:
    """Return in what a file of tensors is not whole, by its header; empty where it is."""
    try:
        with place.open("rb") as file:
            length = int.from_bytes(file.read(8), "little")
            size = place.stat().st_size
            if not 0 < length <= min(size - 8, HEADER_MOST):
                return f"is no file of tensors, or was cut off: it has {size:,} bytes"
            told = table_of(json_of(file.read(length).decode("utf-8")))
        ends = [one["data_offsets"][1] for name, one in told.items() if name != "__metadata__"]
        whole = 8 + length + max(ends, default=0)
    except (OSError, ValueError, KeyError, TypeError, IndexError) as error:
        return f"cannot be read: {error}"
    return "" if size == whole else f"has {size:,} bytes of {whole:,}"


def _weights(path: str, names: set[str]) -> Iterator[Fault]:
    old = sorted(name for name in names if name.endswith((".bin", ".pt", ".pth")))
    packed = sorted(name for name in names if name.endswith(".gguf"))
    if packed:
        yield Fault(
            KEY,
            f"model folder {path} has its weights in {packed[0]}; take the model in safetensors "
            "that it was made from, or unpack it once: transformers' "
            f"from_pretrained(FOLDER, gguf_file={packed[0]!r}), then save_pretrained(FOLDER)",
        )
    elif old:
        yield Fault(
            KEY,
            f"model folder {path} has its weights in {old[0]}, a format that can run code when it "
            "is read; convert it once, where you trust it: transformers' from_pretrained, then "
            "save_pretrained(FOLDER)",
        )
    else:
        yield Fault(KEY, f"model folder {path} has no weights (*.safetensors)")


def _hub(path: str, assets: Collection[str]) -> Iterator[Fault]:
    """Return why a hub id is no model that can be had; without network only the cache is asked."""
    hub = cast("Any", import_module("huggingface_hub"))  # slow to import, seldom needed
    near = difflib.get_close_matches(path, assets, n=1, cutoff=0.6)
    hint = f"; did you mean {near[0]!r}?" if near else ""
    neither = f"model {path!r} is neither a folder here nor an asset{hint}"
    try:
        if isinstance(hub.try_to_load_from_cache(path, "config.json"), str):
            return
        if hub.constants.HF_HUB_OFFLINE:
            yield Fault(KEY, f"{neither}, and the hub is switched off (HF_HUB_OFFLINE)")
            return
        hub.get_hf_file_metadata(hub.hf_hub_url(path, "config.json"), timeout=TIMEOUT_S)
    except Exception as error:  # noqa: BLE001 - of any of the libraries below the hub's
        kinds = {kind.__name__ for kind in type(error).__mro__}
        if "HFValidationError" in kinds:
            yield Fault(KEY, f"{neither}, and cannot be the name of a model on the hub")
        elif kinds & GONE and "GatedRepoError" not in kinds:
            yield Fault(KEY, f"{neither}, and the hub has no such model, or not for everybody")
        else:  # loading decides
            why = type(error).__name__
            yield Fault(KEY, f"{neither}, and the hub does not say more ({why})", refuses=False)


def _near(folder: Path) -> str:
    try:
        names = [p.name for p in folder.parent.iterdir() if p.is_dir()]
    except OSError:
        return f": there is no folder {folder.parent}"
    near = difflib.get_close_matches(folder.name, names, n=1, cutoff=0.7)
    return f"; did you mean {near[0]!r}?" if near else ""
