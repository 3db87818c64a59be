"""What parameter exchange is: options, payload, and what leaves a client."""

from collections.abc import Iterator
from typing import Annotated, Any, Literal

from pydantic import Field, ValidationError

from triskel.core.aggregate_spec import AggregateSpec
from triskel.core.choice import Chosen, name_of, options_of, settings_of
from triskel.core.mode_spec import Disclosure, ModeSpec, Payload, Sizes, Traits
from triskel.core.options import Options, Positive, Rate
from triskel.core.registry import AGGREGATES
from triskel.errors import PluginError
from triskel.modes.params import exchange as seeds

Trains = Literal["both", "ffa", "fedsa", "rolora", "fedsb"]
"""Which of the factors A and B train and travel: both; B alone; both, of which B stays with its
client; one of them by turns; both in round 1 and then a core between them."""
PAIRED = ("lora", "dora", "rslora")
"""Kinds of adapters that have A and B."""
ServerOptimizerName = Literal["sgd", "adam", "yogi", "adagrad", "nesterov"]


class Proximal(Options):
    """How strongly a client's tensors are drawn to what the server sent."""

    strength: Annotated[Rate, Field(description="mu or lambda: of the squared distance's half")] = (
        0.1
    )


class PFedMe(Proximal):
    """A Moreau envelope's: of T Dinh et al. 2020, Algorithm 1."""

    inner: Annotated[Positive, Field(description="K, steps of the personal model on a batch")] = 3
    rate: Annotated[Rate, Field(description="eta, of the local model's step towards it")] = 0.05


class Aligned(Options):
    """FedAdamW's."""

    alignment: Annotated[
        float, Field(ge=0, description="alpha: so much of everybody's last step in every step")
    ] = 0.5


class FineTune(Options):
    """Personal models of a last phase."""

    rounds: Annotated[Positive, Field(description="last rounds in which nothing is averaged")] = 1


LOCAL: dict[str, type[Options]] = {
    "plain": Options,
    "fedprox": Proximal,
    "scaffold": Options,
    "fedadamw": Aligned,
    "mr_mtl": Proximal,
    "ditto": Proximal,
    "pfedme": PFedMe,
    "finetune": FineTune,
}
"""How a client trains in a round, and what may be set of it."""
CORRECTED = ("scaffold", "fedadamw")
"""Those with which more than theta goes to clients, and back."""
PERSONAL = ("mr_mtl", "ditto", "pfedme", "finetune")
"""Those that leave every client a model of its own."""


class ParamsOptions(Options):
    """What trains, how clients train it, and the server's step."""

    trains: Annotated[
        Trains,
        Field(
            description="both factors; ffa: B only; fedsa: both, and B stays with its client; "
            "rolora: B and A by turns; fedsb: a core between them"
        ),
    ] = "both"
    head: Annotated[
        Literal["shared", "local"],
        Field(description="or every client keeps a task head of its own"),
    ] = "shared"
    local: Annotated[
        Chosen,
        Field(
            description="how clients train: plain, fedprox, scaffold, fedadamw, mr_mtl, ditto, "
            "pfedme, finetune"
        ),
    ] = "plain"
    moments: Annotated[
        Literal["fresh", "kept"], Field(description="clients' Adam begins anew in a round, or not")
    ] = "fresh"
    aggregate: Annotated[
        Chosen | None,
        Field(description="how updates become one; left out: their mean", examples=["mean"]),
    ] = None
    server_optimizer: Annotated[
        ServerOptimizerName, Field(description="sgd, adam, yogi, adagrad or nesterov (DiLoCo)")
    ] = "sgd"
    server_lr: Annotated[
        Rate, Field(description="the server moves by so much of the clients' mean change")
    ] = 1.0
    server_momentum: Annotated[
        float, Field(ge=0, lt=1, description="and keeps so much of its last move")
    ] = 0.0
    server_beta2: Annotated[
        float, Field(ge=0, lt=1, description="of squared changes: adam and yogi")
    ] = 0.99
    server_epsilon: Annotated[
        Rate, Field(description="added to their root: adam, yogi and adagrad")
    ] = 1e-3

    exchange: Annotated[
        seeds.Exchanged,
        Field(
            description="what travels: tensors, or scalars along seeds (fedkseed, fedmezo)",
            examples=["fedkseed"],
        ),
    ] = None


def problems(options: ParamsOptions) -> Iterator[str]:
    """Yield what contradicts itself; each sentence begins with a key."""
    if options.exchange is not None:
        yield from seeds.problems(options.exchange, options)
        return
    name = name_of(options.local)
    if name not in LOCAL:
        yield f"local must be one of {', '.join(LOCAL)}, got {name!r}"
        return
    kind = LOCAL[name]
    for key in sorted(settings_of(options.local).keys() - kind.model_fields.keys()):
        known = ", ".join(kind.model_fields) or "nothing"
        yield f"local.{key} is no option of {name}, which has {known}"
        return
    try:
        options_of(options.local, kind)
    except ValidationError as error:
        for one in error.errors():
            where = ".".join(["local", *map(str, one["loc"])])
            yield f"{where}: {one['msg'].removeprefix('Value error, ')}, got {one['input']!r}"
    yield from _together(options, name)


def unsuited(options: ParamsOptions, job: Any) -> str | None:  # noqa: ANN401 - a job, known above
    """Return why another section of a job does not go with what travels."""
    if options.exchange is not None:
        return seeds.unsuited(options.exchange, job)
    if options.trains != "both" and job.adapter.kind not in PAIRED:
        return (
            f"params.trains {options.trains!r} is about factors A and B, which adapter.kind "
            f"{job.adapter.kind!r} does not have; take one of {', '.join(PAIRED)}"
        )
    if job.train.optimizer != "adamw" and name_of(options.local) == "fedadamw":
        return 'params.local fedadamw is about the moments of AdamW; set train.optimizer to "adamw"'
    if job.clients.sampling == "size" and name_of(options.local) == "scaffold":
        return (
            "params.local scaffold weighs every client by its examples in all rounds, and with "
            "clients.sampling size an update counts as often as its client was drawn; take "
            "uniform or poisson"
        )
    return None


def _together(options: ParamsOptions, local: str) -> Iterator[str]:
    """Yield which of the options cannot be had together."""
    if options.trains == "fedsa" and local != "plain":
        yield (
            'trains "fedsa" leaves every client a factor of its own already, so local must be '
            f"plain, got {local!r}"
        )
    if options.head == "local" and local not in {"plain", "fedprox"}:
        yield f'head "local" works with local plain and fedprox, not with {local}'
    if options.moments == "kept" and local not in {"plain", "fedprox", "scaffold"}:
        yield f'moments "kept" works with local plain, fedprox and scaffold, not with {local}'
    if options.trains == "rolora" and local == "fedadamw":
        yield "local fedadamw needs tensors that train in every round, and rolora takes turns"
    if options.trains == "fedsb" and local in {*CORRECTED, "finetune"}:
        yield (
            f'trains "fedsb" trains others after round 1, which local {local} cannot follow; '
            "take plain, fedprox, mr_mtl, ditto or pfedme"
        )
    if options.moments == "kept" and options.trains in {"rolora", "fedsb"}:
        yield (
            'moments "kept" needs tensors that train in every round, and '
            f"{options.trains} trains others after the first"
        )
    takes_over = options.server_optimizer == "sgd" and options.server_momentum == 0
    if options.server_optimizer == "adagrad" and options.server_momentum:
        yield "server_momentum is not read by server_optimizer adagrad; leave it at 0"
    if (spec := _aggregate_of(options)) is not None:
        yield from _under(options, spec, takes_over=takes_over and options.server_lr == 1)
        if local in CORRECTED and spec.name != AGGREGATES.default:
            yield f"local {local!r} is for the mean of the updates, not for {spec.name!r}"


def _under(options: ParamsOptions, spec: AggregateSpec, *, takes_over: bool) -> Iterator[str]:
    """Yield which of the options cannot be had with an aggregate."""
    if spec.side_factors and not takes_over:
        yield (
            f"aggregate {spec.name!r} makes side factors, the rest of what updates amount to, so "
            "the server must take it over: server_optimizer sgd, server_lr 1, server_momentum 0"
        )
    if options.trains not in {"both", spec.trains} and spec.name != AGGREGATES.default:
        yield (
            f"aggregate {spec.name!r} works on both factors, and trains {options.trains!r} "
            f"exchanges one of them; choose {AGGREGATES.default}"
        )
    if spec.trains not in {"", options.trains}:
        yield f"aggregate {spec.name!r} is for trains {spec.trains!r}, not for {options.trains!r}"


def _aggregate_of(options: ParamsOptions) -> AggregateSpec | None:
    """Return what the aggregate is, where it is known here."""
    name = name_of(options.aggregate or AGGREGATES.default)
    try:
        return AGGREGATES.spec(name) if name in AGGREGATES.ours else None
    except PluginError:
        return None


def personal(options: ParamsOptions) -> bool:
    """Return whether every client ends with a model of its own."""
    local = name_of(options.local)
    return local in PERSONAL or options.trains == "fedsa" or options.head == "local"


def last_rounds(options: ParamsOptions) -> int:
    """Return in how many last rounds nothing is averaged."""
    if name_of(options.local) != "finetune":
        return 0
    return options_of(options.local, FineTune).rounds


def counts_back(options: ParamsOptions) -> str | None:
    """Return why a round depends on how many come after it."""
    if not (last := last_rounds(options)):
        return None
    return f"params.local finetune averages nothing in the last {last} of all rounds"


def common(options: ParamsOptions) -> bool:
    """Return whether the server ends with a model: not where a part of it stays with clients."""
    return options.trains != "fedsa" and options.head == "shared"


def traits(options: ParamsOptions) -> Traits:
    """Return what these options need and can carry."""
    if options.exchange is not None:
        return Traits(linear_in_updates=True)
    spec = _aggregate_of(options)
    keeps = (
        personal(options)
        or name_of(options.local) == "scaffold"
        or options.moments == "kept"
        or options.trains in {"rolora", "fedsb"}
        or (spec is not None and spec.trains == "ffa")  # which moves A, that nobody trains
    )
    return Traits(
        linear_in_updates=spec is not None and spec.linear,
        needs_individual_updates=spec is not None and spec.keeps_updates,
        mixed_ranks=spec is not None
        and spec.ranks != "one"
        and options.trains == "both"
        and name_of(options.local) not in CORRECTED,
        one_body=True,
        changes=("adapter", "head") if _whole(options) else (),
        personal_models=personal(options),
        client_state=keeps,
    )


def _whole(options: ParamsOptions) -> bool:
    """Return whether a whole adapter and head travel in every round."""
    return options.trains == "both" and options.head == "shared" and not last_rounds(options)


def disclosure(options: ParamsOptions, _task: str) -> Disclosure:
    """Return what leaves a client: its trained adapter, or slopes along seeds."""
    if options.exchange is not None:
        return seeds.disclosure(options.exchange)
    stays, local = "the texts, their labels, every prediction and every hidden vector", ""
    if personal(options):
        stays += {
            "fedsa": ", and the factors B",
            "local": ", and the task head",
        }.get(options.trains if options.trains == "fedsa" else options.head, ", and its own model")
        local = " Each client ends with a model of its own, which stays with it."
    sections = {
        "adapter": ("the adapter after local training, or its change", "the averaged adapter"),
        "head": ("the task head after local training", "the averaged task head"),
    }
    if options.head == "local":
        del sections["head"]
    if name_of(options.local) == "scaffold":
        sections["control"] = (
            "the change of its mean gradient over the round's steps",
            "everybody's mean gradient",
        )
    if name_of(options.local) == "fedadamw":
        sections["control"] = ("nothing", "everybody's mean step of the last round")
        sections["squares"] = (
            "the mean of its second moments, one number a tensor",
            "everybody's mean of them",
        )
    if (spec := _aggregate_of(options)) is not None and spec.side_factors:
        sections["side"] = ("nothing", "frozen factors that the averaged ones lack")
    return Disclosure(
        sections=sections,
        stays=stays,
        risk=(
            "Trained parameters are computed from the texts. Whoever sees one client's update can "
            "test whether a given text took part and can rebuild fragments of small batches (Zhu "
            "et al. 2019; Balunović et al. 2022). The server sees each client's update on its own."
        ),
        trained=(
            "By exchange of parameters (Triskel's mode `params`): clients trained on their own "
            f"texts and sent the change of the adapter, which the server averaged.{local}"
        ),
        privacy="Texts stayed with their clients; the change of the adapter left them.",
    )


def payload(options: ParamsOptions, _epochs: int, sizes: Sizes) -> Payload:
    """Return what a client sends in a round, at most: adapter and head, and as much of control."""
    if options.exchange is not None:
        return seeds.payload(options.exchange)
    head = sizes.head if options.head == "shared" else 0
    local, once = name_of(options.local), sizes.adapter + head
    beside = {"scaffold": once, "fedadamw": sizes.tensors}.get(local, 0)
    return Payload(floats=once + beside)


SPEC = ModeSpec(
    name="params",
    gloss="adapter parameters travel",
    colour="#0072B2",
    marker="circle",
    options=ParamsOptions,
    algorithm="triskel.modes.params.mode:Params",
    traits=Traits(linear_in_updates=True, changes=("adapter", "head")),
    traits_of=traits,
    aggregate_key="aggregate",
    problems=problems,
    common=common,
    disclosure=disclosure,
    payload=payload,
    unsuited=unsuited,
    counts_back=counts_back,
    tensors_travel=lambda options: options.exchange is None,
)
