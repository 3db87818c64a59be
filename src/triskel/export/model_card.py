"""The model card of a saved adapter: what it is, code that runs, figures, limits, privacy."""

from collections.abc import Mapping
from pathlib import Path

from triskel.config.sections import AHEAD, OWN, RANKED, SCALED, called
from triskel.data.assets import ASSETS
from triskel.export.card_code import use
from triskel.export.manifest import Manifest, Training, asset_of

CARD = "README.md"
TRAINED = {"bitfit": "biases", "full": "weights"}
"""What of the model itself trains, by the kinds that train it."""
PAPER = "https://arxiv.org/abs/2501.04436"


def card(manifest: Manifest, *, merged: bool = False) -> str:
    """Return the model card: what it is, code that runs, figures, limits, privacy, citation."""
    parts = [
        _front(manifest, merged=merged),
        f"# {_title(manifest)}",
        _what(manifest, merged=merged),
        "## Use",
        use(manifest, merged=merged),
        "## Figures",
        _figures(manifest.training),
        "## How it was trained",
        _trained(manifest),
        "## Licence",
        _licence(manifest),
        "## Intended use and limits",
        _limits(manifest),
        "## Privacy",
        _privacy(manifest.training),
        "## Citation",
        _citation(manifest),
    ]
    return "\n\n".join(parts) + "\n"


def _front(manifest: Manifest, *, merged: bool) -> str:
    asset = asset_of(manifest.base)
    causal = not manifest.classes
    lines = [f"library_name: {'transformers' if merged else 'peft'}"]
    if asset:
        lines.append(f"license: {ASSETS[asset].licence.lower()}")
    elif not Path(manifest.base).is_absolute() and manifest.base:
        lines.append(f"base_model: {manifest.base}")
    lines.append(f"pipeline_tag: {'text-generation' if causal else 'text-classification'}")
    lines += ["tags:", "- triskel", "- federated-learning", f"- {manifest.kind}"]
    return "\n".join(["---", *lines, "---"])


def _title(manifest: Manifest) -> str:
    told = manifest.training
    return f"{told.job}, trained by {told.mode}" if told else "An adapter trained by Triskel"


def _what(manifest: Manifest, *, merged: bool) -> str:
    task = "continues texts"
    if manifest.classes:
        task = f"sorts texts into {len(manifest.classes)} classes: {', '.join(manifest.classes)}"
    own = manifest.kind in OWN
    made = f"`{called(manifest.base)}` with a {manifest.kind} adapter merged in"
    if own:
        made = f"`{called(manifest.base)}` with {TRAINED[manifest.kind]} trained ({manifest.kind})"
    if merged:
        return f"{made}. It {task}."
    base = (
        f"The base model is Triskel's asset `{asset_of(manifest.base)}`; `triskel assets get` "
        "fetches it, and where it lies in another folder, name that one below."
        if asset_of(manifest.base)
        else "Where the base model lies elsewhere, name that place below."
        if Path(manifest.base).is_absolute()
        else "The base model is named by its hub id."
    )
    head = " and head" if manifest.classes else ""
    if own:
        return (
            f"The {TRAINED[manifest.kind]}{head} that {manifest.kind} training left of "
            f"`{called(manifest.base)}`, as a PEFT folder. It {task}. {base}"
        )
    return (
        f"The {manifest.kind} adapter{head} for `{called(manifest.base)}`, as a PEFT folder. "
        f"It {task}. {base}"
    )


def _figures(told: Training | None) -> str:
    """Return both columns as a table, and whose texts and whose model each is of."""
    if told is None or not told.scores:
        return "None were recorded."
    single = told.own
    everybody = told.everybody or ({} if single else told.scores)
    own = told.scores if single else told.own_texts
    names = [name for name in told.scores if name in everybody or name in own]
    rows = [
        f"| {name.replace('_', ' ')} | {_figure(everybody, name)} | {_figure(own, name)} |"
        for name in names
    ]
    mine = f"this client's own {told.judge} texts" if single else f"own {told.judge} texts"
    head = [f"| | everybody's {told.judge} texts | {mine} |", "|---|---:|---:|"]
    said = [_whose(told, single=single), *([] if single else _spread(told))]
    return "\n".join([*head, *rows, "", "\n\n".join(said)])


def _figure(column: Mapping[str, float], name: str) -> str:
    return f"{column[name]:.4g}" if name in column else "–"


def _whose(told: Training, *, single: bool) -> str:
    """Say which model and which texts the two columns are of."""
    if single:
        return (
            f"Both columns are of this one client's model: on the {told.judge} texts of all "
            "clients together, where that was measured, and on those of this client."
        )
    if told.personal:
        return (
            f"Everybody's: this model, on the {told.judge} texts of all clients together. Own: not "
            f"this model but the clients' own, each on the {told.judge} texts of its client, "
            "pooled over texts."
        )
    return (
        f"Both columns are of this model: on the {told.judge} texts of all clients together, and "
        "on each client's own, pooled over texts."
    )


def _spread(told: Training) -> list[str]:
    """Say how far clients differ on their own texts, where that is known."""
    said = [
        f"The client that does worst on its own texts: {name.replace('_', ' ')} {value:.4g}."
        for name, value in told.worst.items()
    ]
    if told.alone:
        better, worse = told.alone["better"], told.alone["worse_sure"]
        count = told.alone["clients"]
        size = f"{count} {'client' if count == 1 else 'clients'}"
        text = f"Own texts, beside each client trained alone: {better} of {size} better"
        text += f", {told.alone['better_sure']} of them beyond chance" if better else ""
        said.append(f"{text}; {worse} worse beyond chance." if worse else f"{text}.")
    return said


def _shape(manifest: Manifest) -> str:
    """Say what trained, and beside what."""
    shape = f"The adapter is {manifest.kind}"
    if manifest.kind in OWN:
        shape = f"What trained are {TRAINED[manifest.kind]} of the model itself ({manifest.kind})"
    if manifest.kind in RANKED:
        shape += f" of rank {manifest.rank}"
    if manifest.kind in SCALED:
        shape += f", alpha {manifest.alpha:g}"
    if manifest.tokens:
        shape += f" of {manifest.tokens} virtual tokens"
    if manifest.side:
        shape += f", beside frozen factors of rank {manifest.side} that the server's aggregate made"
    place = " before a text" if manifest.kind in AHEAD else f", in blocks `{manifest.blocks}`"
    shape += f"{place}; hidden states were computed in {manifest.dtype}."
    if manifest.quantise != "none":
        shape += (
            f" The base was held in fewer bits ({manifest.quantise}) while it trained, and is "
            "loaded in full here: scores differ by what those bits left out."
        )
    return shape


def _trained(manifest: Manifest) -> str:
    told, shape = manifest.training, _shape(manifest)
    if told is None:
        return shape
    size = f"{told.clients} {'client' if told.clients == 1 else 'clients'}"
    span = f"{told.rounds} {'round' if told.rounds == 1 else 'rounds'}"
    text = f"{_how(told)} {size}, {span}, seed {told.seed}. {shape}"
    if told.start:
        text += (
            f" Training started from the adapter `{told.start['name']}` (SHA-256 of its tensors "
            f"{told.start['sha256']})."
        )
    if told.kept is not None:
        text += f" Kept is what round {told.kept} left, the best on validation texts."
    if told.up_bytes is not None and told.down_bytes is not None:
        up, down = told.up_bytes / 1e6, told.down_bytes / 1e6
        text += f" All clients together sent {up:.4g} MB and received {down:.4g} MB."
    return text


def _how(told: Training) -> str:
    return told.how or {
        "central": "On all texts in one place: a baseline for comparison.",
        "local": "On one client's texts alone: a baseline for comparison.",
    }.get(told.mode, f"In Triskel's mode `{told.mode}`.")


def _licence(manifest: Manifest) -> str:
    asset = asset_of(manifest.base)
    if asset:
        return (
            f"The base model is under {ASSETS[asset].licence}. What the texts allow is for their "
            "owners to say."
        )
    return (
        "The licence of the base model is not known here and binds whoever uses this; look it up "
        "where the base comes from. What the texts allow is for their owners to say."
    )


def _limits(manifest: Manifest) -> str:
    use = (
        "For texts like those it was trained on, sorted into the classes above; any other text is "
        "sorted into one of them too. Scores are not calibrated probabilities."
        if manifest.classes
        else "For prompts like those it was trained on. It can state what is not so."
    )
    told = manifest.training
    if told:
        use += f" {_read(told)}."
    judge = told.judge if told else "test"
    hold = f"The figures hold for {judge} texts of the same sources, for one seed"
    if judge == "validation":
        hold += "; where a setting was chosen by them, they are a little too good"
    return (
        f"{use} {hold}. It inherits the base model's faults, and was not tested for fairness "
        "between groups of people: test it on your own texts before anything depends on it."
    )


def _read(told: Training) -> str:
    """Return how much of a text was read, and what became of longer ones."""
    lost = f"{told.unread:.1%} of what the training texts have was not" if told.unread else ""
    if told.overlong == "drop":
        text = f"Texts of more than {told.max_tokens} tokens were dropped"
        return f"{text}: {lost} read" if lost else text
    text = f"Only the first {told.max_tokens} tokens of a text were read"
    return f"{text}: {lost}" if lost else text


def _privacy(told: Training | None) -> str:
    left = (
        {
            "central": "All texts were in one place. ",
            "local": "One client's texts were used, and nothing left it in training. ",
        }.get(told.mode, "")
        if told
        else ""
    )
    if told and told.privacy:
        left = f"{told.privacy} "
    return (
        f"{left}A trained model can hold traces of its training texts, and this one carries no "
        "formal privacy guarantee: whoever passes it on passes those on. This folder holds no "
        "text and no name of a client."
    )


def _citation(manifest: Manifest) -> str:
    asset = asset_of(manifest.base)
    text = (
        "- The three modes: Yan, Su, Deng and Schober, *Federated Fine-Tuning of LLMs: Framework "
        f"Comparison and Research Directions*, {PAPER}"
    )
    return f"{text}\n- The base model: {ASSETS[asset].citation}" if asset else text
