"""Tiny random models, tokens and workers, and the plain thing that federations are held against.

Nothing here calls the code under test, except to build its inputs. `Plain` is transformers' own
model with PEFT's own layers, run by calling it with `input_ids` and `attention_mask`.
"""

from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass, replace
from fractions import Fraction
from typing import Any

import peft
import tokenizers
import torch
import transformers
from torch import Tensor, nn
from torch.nn.functional import cross_entropy
from torch.overrides import TorchFunctionMode

from triskel.config.job import Job
from triskel.config.sections import VIRTUAL
from triskel.core.registry import MODES
from triskel.data.federate import Federation, Holding
from triskel.data.rows import Rows
from triskel.engines.local import LocalEngine
from triskel.experiment.resources import LocalResources
from triskel.experiment.tokens import Share
from triskel.model.flops import Cost
from triskel.model.meter import Costs
from triskel.model.shared import SharedModel
from triskel.training.conversation import Conversation, Sent
from triskel.training.mode_setting import ModeSetting, options_in
from triskel.training.worker import Worker
from triskel.types import Batch, ClientId, ClientState, Examples, Message, Talk
from triskel.wire.ledger import Ledger

VOCABULARY, CLASSES, WINDOW, LAYERS = 37, 3, 4, 4
SIZES: dict[str, Any] = {
    "vocab_size": VOCABULARY,
    "hidden_size": 16,
    "intermediate_size": 24,
    "num_attention_heads": 2,
    "max_position_embeddings": 64,
    "pad_token_id": 0,
    "bos_token_id": 1,
    "eos_token_id": 2,
    "use_cache": False,  # a cache copies keys, and products of copies round differently
}
GROUPED = {**SIZES, "num_key_value_heads": 1, "head_dim": 8}
ALTERNATE = ["sliding_attention", "full_attention"] * (LAYERS // 2)
NARROW = {"use_sliding_window": True, "sliding_window": WINDOW, "max_window_layers": 2}
FAMILIES: dict[str, tuple[str, dict[str, Any]]] = {
    "llama": ("Llama", GROUPED),
    "qwen2": ("Qwen2", {**GROUPED, **NARROW}),
    "qwen3": ("Qwen3", {**GROUPED, **NARROW}),
    "mistral": ("Mistral", {**GROUPED, "sliding_window": WINDOW}),
    "smollm3": ("SmolLM3", {**GROUPED, "no_rope_layer_interval": 2}),
    "gemma": ("Gemma", GROUPED),
    "gemma2": ("Gemma2", {**GROUPED, "sliding_window": WINDOW, "final_logit_softcapping": 2.0}),
    "gemma3_text": ("Gemma3Text", {**GROUPED, "sliding_window": WINDOW, "layer_types": ALTERNATE}),
    "phi3": ("Phi3", {**GROUPED, "sliding_window": WINDOW}),
    "gpt2": ("GPT2", {**SIZES, "n_inner": 24}),
    "gpt_neox": ("GPTNeoX", SIZES),
    "opt": ("OPT", {**SIZES, "ffn_dim": 24, "word_embed_proj_dim": 8}),
    "falcon": ("Falcon", SIZES),
    "bloom": ("Bloom", SIZES),
    "bert": ("Bert", SIZES),
    "roberta": ("Roberta", {**SIZES, "pad_token_id": 1}),
    "distilbert": ("DistilBert", {**SIZES, "hidden_dim": 24}),
    "electra": ("Electra", {**SIZES, "embedding_size": 8}),
    "mpnet": ("MPNet", {**SIZES, "pad_token_id": 1}),
}
ENCODERS = ["bert", "roberta", "distilbert", "electra", "mpnet"]
DECODERS = [name for name in FAMILIES if name not in ENCODERS]
SLIDING = ["qwen2", "qwen3", "mistral", "gemma2", "gemma3_text", "phi3"]
TASKS = [(f, "classify") for f in FAMILIES] + [(f, "causal") for f in DECODERS]
ONE_TASK = ("phi3", "gpt_neox", "opt", "falcon")
"""With `sdpa` these are tried on one task, for time's sake."""
KERNELS = [
    (family, task, attention)
    for family, task in TASKS
    for attention in ("eager", "sdpa")
    if attention == "eager" or family not in {"gemma2", "bloom", "mpnet"}  # transformers has none
    if (task, attention) != ("classify", "sdpa") or family not in ONE_TASK
]
TARGETS = {"llama": ("q_proj", "v_proj"), "gpt2": ("c_attn",), "bert": ("query", "value")}
QUERIES = {
    **dict.fromkeys(("roberta", "electra"), ("query", "value")),
    **dict.fromkeys(("gpt_neox", "falcon", "bloom"), ("query_key_value",)),
    "distilbert": ("q_lin", "v_lin"), "mpnet": ("q", "v"), "phi3": ("qkv_proj",),
}  # fmt: skip
HEADS = {"llama": "score", "gpt2": "score", "bert": "classifier"}
JOINED = [("llama", "classify"), ("llama", "causal"), ("gpt2", "causal"), ("bert", "classify")]
ENDS = {"classify": "classes", "causal": "vocabulary"}
"""What a model of each task ends with."""


def model(
    family: str,
    task: str = "classify",
    *,
    dtype: torch.dtype = torch.float32,
    attention: str = "eager",
    seed: int = 0,
    wide: bool = False,
    **changes: Any,  # noqa: ANN401 - of its configuration
) -> nn.Module:
    """Return a model whose every weight, norms and biases included, is random.

    With `wide`, Llama's norm, which is float32 whatever comes in, is torch's own in float64, and
    its softmax is that of `sdpa`: a float32 step inside turns a difference of 1e-16 into 1e-8.
    """
    attention = "sdpa" if wide and family == "llama" else attention
    name, sizes = FAMILIES[family]
    options = {**sizes, "num_hidden_layers": LAYERS, "num_labels": CLASSES, **changes}
    config = getattr(transformers, f"{name}Config")(**options)
    kind = "CausalLM" if task == "causal" else "SequenceClassification"
    auto = getattr(transformers, f"AutoModelFor{kind}")
    with torch.random.fork_rng():
        made = auto.from_config(config, attn_implementation=attention).to(dtype)
    source = torch.Generator().manual_seed(seed)
    for parameter in made.parameters():
        noise = torch.empty(parameter.shape, dtype=torch.float64).normal_(0, 0.2, generator=source)
        base = 1.0 if parameter.dim() == 1 and bool((parameter == 1).all()) else 0.0
        parameter.data = (base + noise).to(dtype)
    if wide and family == "llama":
        for name, module in list(made.named_modules()):
            if name.endswith("norm"):
                norm = nn.RMSNorm(module.weight.numel(), eps=module.variance_epsilon)
                norm.weight = module.weight
                made.set_submodule(name, norm)
    return made.eval()


class Wide(TorchFunctionMode):
    """In here what is float64 stays so, where transformers takes a step in float32.

    Those steps are norms, and the softmax of `eager`. What they round away depends on the order of
    sums, which is another one on another processor or in a batch of another shape.
    """

    def __torch_function__(
        self,
        func: Callable[..., Any],
        types: object,
        args: Sequence[Any] = (),
        kwargs: Mapping[str, Any] | None = None,
    ) -> Any:  # noqa: ANN401 - whatever torch returns
        del types
        named = dict(kwargs or {})
        if args and isinstance(args[0], Tensor) and args[0].dtype == torch.float64:
            if func is Tensor.float:
                return args[0]
            kept = {torch.float32: torch.float64}
            args = [kept.get(a, a) if isinstance(a, torch.dtype) else a for a in args]
            named = {
                n: kept.get(a, a) if isinstance(a, torch.dtype) else a for n, a in named.items()
            }
        return func(*args, **named)


def tokenizer(words: Sequence[str] = ()) -> transformers.PreTrainedTokenizerFast:
    """Return a tokenizer of whole words: padding is 0, the end of a text is 2."""
    known = ["<pad>", "<unk>", "<end>", *words]
    inner = tokenizers.Tokenizer(
        tokenizers.models.WordLevel({w: i for i, w in enumerate(known)}, unk_token="<unk>")  # noqa: S106 - a token of text
    )
    inner.pre_tokenizer = tokenizers.pre_tokenizers.Whitespace()
    return transformers.PreTrainedTokenizerFast(
        tokenizer_object=inner,
        pad_token="<pad>",  # noqa: S106 - a token of text
        unk_token="<unk>",  # noqa: S106 - a token of text
        eos_token="<end>",  # noqa: S106 - a token of text
    )


def job(mode: str = "params", task: str = "classify", **sections: Any) -> Job:  # noqa: ANN401 - of the job
    """Return a job; `wire` is raw, so that nothing is rounded on its way."""
    causal = {"task": "causal", "source": "jsonl", "train": "none", "text": "text"}
    given: dict[str, Any] = {
        "mode": mode,
        "rounds": 1,
        "seed": 5,
        "wire": {"up": "raw", "down": "raw"},
        "data": causal if task == "causal" else {},
        **sections,
    }
    given["train"] = {"batch": 3, "lr": 0.01, "max_tokens": 48, **given.get("train", {})}
    asked = given.get("adapter", {})
    given["adapter"] = asked if asked.get("kind") in VIRTUAL else {"rank": 2, "alpha": 6.0, **asked}
    return Job.model_validate(given)


def body(
    family: str,
    job: Job,
    *,
    dtype: torch.dtype = torch.float32,
    seed: int = 0,
    **options: Any,  # noqa: ANN401 - of the model
) -> SharedModel:
    """Return a body around the same model that `model` returns for these options."""
    task = job.data.task
    targets = job.adapter.targets or TARGETS.get(family, ())
    if family not in TARGETS:
        targets = QUERIES.get(family, ("q_proj", "v_proj"))
    adds = job.adapter.kind in VIRTUAL  # before the text, and nothing to a module
    return SharedModel(
        model(family, task, dtype=dtype, seed=seed, **options),
        tokenizer([f"w{i}" for i in range(3, VOCABULARY)]) if task == "causal" else None,
        head=ENDS[task],
        classes=0 if task == "causal" else CLASSES,
        adapter=job.adapter.model_copy(update={} if adds else {"targets": tuple(targets)}),
        seed=job.seed,
    )


def examples(
    count: int, task: str = "classify", *, seed: int = 0, short: int = 2, long: int = 9
) -> Examples:
    """Return random texts of ragged length; no token is a padding token of any family."""
    source = torch.Generator().manual_seed(seed)

    def draw(low: int, high: int, *size: int) -> Tensor:
        return torch.randint(low, high, size, generator=source)

    ids = [draw(2, VOCABULARY, int(draw(short, long + 1))) for _ in range(count)]
    if task == "classify":
        return Examples(ids=ids, labels=draw(0, CLASSES, count).tolist())
    scored = [draw(0, 2, len(row)).bool() for row in ids]
    for row in scored:
        row[0], row[-1] = False, True
    return Examples(ids=ids, labels=(), scored=scored)


def random_like(tensors: Mapping[str, Tensor], seed: int, std: float = 0.3) -> dict[str, Tensor]:
    """Return random tensors of the same shapes, so that no factor hides another by being zero."""
    source = torch.Generator().manual_seed(seed)
    return {
        n: torch.empty(t.shape, dtype=torch.float64).normal_(0, std, generator=source).to(t.dtype)
        for n, t in tensors.items()
    }


class Free(Costs):
    """Costs that are not counted: every piece is free."""

    def __getitem__(self, piece: object) -> Cost:
        return Cost(flops=(0, 0, 0, 0, 0, 0), saved=(Fraction(0),) * 6)

    def bytes_of(self, *shape: object) -> int:  # noqa: ARG002 - the signature of Costs
        return 0

    def resident(self, pieces: object) -> int:  # noqa: ARG002 - the signature of Costs
        return 0


def ignore(event: Mapping[str, Any]) -> None:
    """Watch nothing."""


@dataclass(frozen=True, kw_only=True)
class Hired(Worker):
    """A worker that remembers the job it was made of, for what a test compares it with."""

    job: Job


def setting(mode: str, worker: Hired) -> ModeSetting[Any]:
    """Return what a mode is built from, with a client's model as the server's."""
    spec = MODES.spec(mode)
    options, each = options_in(worker.job, spec)
    return ModeSetting(
        spec=spec,
        options=options,
        each=each,
        training=worker.training,
        rounds=worker.rounds,
        seed=worker.seed,
        body=worker.body,
        meter=Free(worker.body).meter(),
        public=lambda: worker.public,
        models=lambda: [(worker.client, worker.body)],
        watch=ignore,
    )


def worker(  # noqa: PLR0913 - what a worker brings
    client: str,
    job: Job,
    body: SharedModel,
    train: Examples,
    *,
    test: Examples | None = None,
    public: Examples | None = None,
    costs: Costs | None = None,
    watch: Callable[[Mapping[str, Any]], None] = ignore,
) -> Hired:
    """Return a client; what is not given is empty."""
    empty = Examples(ids=(), labels=())
    return Hired(
        client=client,
        job=job,
        training=job.train,
        rounds=job.rounds,
        seed=job.seed,
        body=body,
        train=train,
        test=test or empty,
        public=public or empty,
        meter=(costs or Free(body)).meter(),
        watch=watch,
    )


def resources(
    job: Job, body: SharedModel, shares: Mapping[str, Share], public: Examples | None = None
) -> LocalResources:
    """Return a job, loaded, whose tokens were never text."""
    nothing = Holding(train=Rows(), test=Rows())
    classes = tuple(str(i) for i in range(body.classes))
    held = Federation(clients=dict.fromkeys(shares, nothing), public=Rows(), classes=classes)
    made = LocalResources.of(job, held, ignore)
    made.models._bodies[job.model.path, job.adapter.rank] = body
    made.tokens._shares.update(shares)
    if public is not None:
        made.tokens._public[id(body)] = public
    made.models.loaded.costs[id(body)] = Free(body)
    return made


def play(  # noqa: PLR0913 - what a round is made of
    mode: Any,  # noqa: ANN401 - any of the three
    job: Job,
    workers: Sequence[Worker],
    *,
    state: Any = None,  # noqa: ANN401 - the mode's own
    client_states: Mapping[str, ClientState] | None = None,
    rounds: int | None = None,
    ledger: Ledger | None = None,
    watch: Callable[[Mapping[str, Any]], None] = ignore,
) -> tuple[Any, dict[str, ClientState]]:
    """Play some rounds in the local engine; the meters of `workers` run on."""
    known = {w.client: w for w in workers}
    state = mode.start() if state is None else state
    kept = dict(client_states or {})
    for _ in range(rounds or job.rounds):
        state = LocalEngine(job).round(
            mode,
            state,
            sorted(known),
            worker=known.__getitem__,
            client_states=kept,
            keep=kept.__setitem__,
            ledger=ledger or Ledger(),
            watch=watch,
        )
    return state, kept


def opened(talk: Talk, client: ClientId = "ann") -> Conversation[tuple[Message, ClientState]]:
    """Return a talk as whoever drives it has it."""
    return Conversation(client, talk)


def until_ask(talk: Conversation[Any], reply: Message | None = None) -> Message:
    """Return what a client asks next, its own work run one by one.

    Args:
        talk: Of the client.
        reply: The answer to what it asked last, where it waits for one.
    """
    if reply is not None:
        assert talk.waits_for is not None
        talk.answer(talk.waits_for, reply)
    while not isinstance(step := talk.step(), Sent):
        assert step is not None, "it asks no more"
        talk.do(step)
    return step.ask


# --- the plain thing --------------------------------------------------------------------------


class Plain:
    """transformers' model with PEFT's adapter; tensors go by the names without PEFT's prefix.

    Attributes:
        net: What `peft.get_peft_model` returned.
        names: PEFT's name of each trainable tensor.
    """

    def __init__(
        self,
        family: str,
        job: Job,
        *,
        blocks: Sequence[int] | None = None,
        **options: Any,  # noqa: ANN401 - of the model
    ) -> None:
        task = job.data.task
        self.task = task
        self.base = model(family, task, **options)
        self.pad = int(self.base.config.pad_token_id or 0)
        self.net = peft.get_peft_model(
            self.base,
            peft.LoraConfig(
                r=job.adapter.rank,
                lora_alpha=job.adapter.alpha,  # type: ignore[arg-type]
                target_modules=list(TARGETS[family]),
                layers_to_transform=None if blocks is None else list(blocks),
                modules_to_save=None if task == "causal" else [HEADS[family]],
                fan_in_fan_out=family == "gpt2",
            ),
        )
        self.net.eval()
        self.names = {
            name.removeprefix("base_model.model.")
            .replace(".default", "")
            .replace(".modules_to_save", ""): name
            for name, p in self.net.named_parameters()
            if p.requires_grad
        }

    def parameters(self) -> dict[str, nn.Parameter]:
        """Return the tensors that train, in PEFT's order."""
        inside = dict(self.net.named_parameters())
        return {name: inside[full] for name, full in self.names.items()}

    def load(self, tensors: Mapping[str, Tensor]) -> "Plain":
        """Set the trainable tensors."""
        own = self.parameters()
        assert own.keys() == tensors.keys()
        for name, parameter in own.items():
            assert parameter.dtype == tensors[name].dtype
            parameter.data = tensors[name].clone()
        return self

    def now(self) -> dict[str, Tensor]:
        """Return copies of the trainable tensors."""
        return {n: p.detach().clone() for n, p in self.parameters().items()}

    def logits(self, batch: Batch, tensors: Mapping[str, Tensor] | None = None) -> Tensor:
        """Return logits at the scored positions, by the model's own forward."""
        inputs = called_with(batch, self.pad)
        if tensors is None:
            out = self.net(**inputs).logits
        else:
            given = {self.names[n]: t for n, t in tensors.items()}
            out = torch.func.functional_call(self.net, given, (), inputs).logits
        return out if self.task == "classify" else out[batch.rows, batch.columns]

    def loss(self, batch: Batch, tensors: Mapping[str, Tensor] | None = None) -> Tensor:
        """Return the mean cross-entropy over scored positions with a label."""
        return cross_entropy(self.logits(batch, tensors), batch.targets, ignore_index=-1)

    def picked_loss(self, batch: Batch) -> Tensor:
        """Return `loss`, the head seeing scored positions only: the same sums in another order."""
        inner = getattr(self.base, self.base.base_model_prefix)
        if self.base.config.model_type == "bert":
            return self.loss(batch)
        h = inner(**called_with(batch, self.pad)).last_hidden_state[batch.rows, batch.columns]
        logits = self.base.get_submodule("lm_head" if self.task == "causal" else "score")(h)
        total = cross_entropy(logits, batch.targets, ignore_index=-1, reduction="sum")
        return total / int((batch.targets >= 0).sum())

    def train(self, batches: Iterable[Batch], lr: float, weight_decay: float = 0.0) -> "Plain":
        """Train in place: the loop of every tutorial."""
        adam = torch.optim.AdamW(
            self.parameters().values(), lr=lr, weight_decay=weight_decay, fused=True
        )
        for batch in batches:
            adam.zero_grad()
            self.picked_loss(batch).backward()
            adam.step()
        return self


def called_with(batch: Batch, pad: int) -> dict[str, Tensor]:
    """Return what a transformers model is called with: ids padded on the right, and a mask."""
    real = torch.arange(batch.ids.shape[1])[None] < batch.lengths[:, None]
    return {"input_ids": batch.ids.masked_fill(~real, pad), "attention_mask": real.long()}


def apart(found: Mapping[str, Tensor], wanted: Mapping[str, Tensor]) -> float:
    """Return the largest relative distance of any tensor, by its norm."""
    assert found.keys() == wanted.keys()
    assert found, "nothing would be compared"
    gaps = {n: (found[n].double() - wanted[n].double()).norm() for n in wanted}
    return max(float(gap / wanted[n].double().norm().clamp(min=1e-12)) for n, gap in gaps.items())


def equal(found: Mapping[str, Tensor], wanted: Mapping[str, Tensor]) -> bool:
    """Return whether names, dtypes and every bit agree."""
    return found.keys() == wanted.keys() and all(
        found[n].dtype == wanted[n].dtype and torch.equal(found[n], wanted[n]) for n in wanted
    )


def relabelled(examples: Examples, labels: Sequence[int]) -> Examples:
    """Return the same texts with other labels."""
    return replace(examples, labels=labels)
