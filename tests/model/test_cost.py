"""FLOPs and memory, held against counts written out by hand, product by product.

A product of [m, k] and [k, n] is 2·m·k·n. LoRA on X W is X W + (X A) B, so training costs forward
X W, X A, (X A) B; backward dB, d(X A), dA; and d X through W and A only where something below needs
it. Nothing below the first block that trains has a backward pass.
"""

# ruff: noqa: ANN401 - stand-ins take whatever they are handed

import runpy
from collections.abc import Callable, Iterator
from pathlib import Path
from types import SimpleNamespace
from typing import Any, get_args

import pytest
import torch
from torch import Tensor, nn
from torch.utils.flop_counter import FlopCounterMode, flop_registry

from triskel.config.sections import DROPPING, VIRTUAL, Adapter, AdapterKind, Model
from triskel.engines.local import LocalEngine
from triskel.errors import MeterError
from triskel.experiment.resources import LocalResources
from triskel.model import flops, meter
from triskel.model.flops import Cost, Piece, count
from triskel.model.load import load
from triskel.model.meter import Costs
from triskel.model.shared import Choice, SharedModel
from triskel.training.autotune import FAST
from triskel.training.mode_setting import mode_of
from triskel.types import Batch
from triskel.wire.ledger import Ledger

HELPERS = Path(__file__).parents[1] / "helpers"
SMALL = SimpleNamespace(**runpy.run_path(str(HELPERS / "small.py")))
PAIRS = SimpleNamespace(**runpy.run_path(str(HELPERS / "pairs.py")))
L, D, M, H, V, C, R = 3, 16, 24, 2, 46, 3, 2
HEAD_DIM = D // H


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Callable[[str], Path]:
    room = tmp_path_factory.mktemp("cost")

    def of(kind: str) -> Path:
        place = room / kind
        return place if place.exists() else SMALL.save_model(place, kind)

    return of


class Bodies:
    """Bodies by what they are, loaded once."""

    def __init__(self, folder: Callable[[str], Path]) -> None:
        self.folder, self.known = folder, dict[Any, SharedModel]()

    def __call__(
        self, kind: str, task: Any = "classify", blocks: str = "all", attention: Any = "eager"
    ) -> SharedModel:
        key = (kind, task, blocks, attention)
        if key not in self.known:
            self.known[key] = load(
                str(self.folder(kind)),
                Model(dtype="float32", device="cpu", attention=attention),
                Adapter(rank=R, alpha=4.0, blocks=blocks),
                head="classes" if task == "classify" else "vocabulary",
                classes=C if task == "classify" else 0,
                seed=1,
            )
        return self.known[key]


@pytest.fixture(scope="module")
def bodies(folder: Callable[[str], Path]) -> Bodies:
    return Bodies(folder)


# --- by hand ----------------------------------------------------------------------------------


def linear(rows: int, into: int, out: int, *, rank: int, backward: bool, below: bool) -> int:
    """Return FLOPs of one frozen linear map, with LoRA where rank > 0.

    Args:
        rows: Rows of X.
        into: Width of X.
        out: Width of the output.
        rank: r, or 0 without an adapter.
        backward: Whether a backward pass comes through here.
        below: Whether X needs a gradient.
    """
    base, a, b = 2 * rows * into * out, 2 * rows * into * rank, 2 * rows * rank * out
    total = base + a + b
    if backward:
        total += (b + b + a) if rank else 0  # dB, d(X A), dA
        total += (base + a) if below else 0
    return total


def attention(rows: int, tokens: int, *, grads: int) -> int:
    """Return FLOPs of scores and mixture, with `grads` of the four backward products."""
    product = 2 * rows * H * tokens * tokens * HEAD_DIM
    return (2 + grads) * product


def llama_block(rows: int, tokens: int, *, rank: int, backward: bool, below: bool) -> int:
    n, narrow = rows * tokens, D // 2  # one key head of two
    way = {"backward": backward, "below": below}
    inside = {"backward": backward, "below": backward}
    total = linear(n, D, D, rank=rank, **way)  # q
    total += linear(n, D, narrow, rank=0, **way)  # k
    total += linear(n, D, narrow, rank=rank, **way)  # v
    total += attention(rows, tokens, grads=0 if not backward else 4 if below else 3)  # no dK
    total += linear(n, D, D, rank=0, **inside)  # o
    return total + 3 * linear(n, D, M, rank=0, **inside)  # gate, up, down


def gpt2_block(rows: int, tokens: int, *, rank: int, backward: bool, below: bool) -> int:
    n = rows * tokens
    inside = {"backward": backward, "below": backward}
    total = linear(n, D, 3 * D, rank=rank, backward=backward, below=below)
    total += attention(rows, tokens, grads=4 if backward else 0)
    total += linear(n, D, D, rank=0, **inside)
    return total + 2 * linear(n, D, M, rank=0, **inside)


def bert_block(rows: int, tokens: int, *, rank: int, backward: bool, below: bool) -> int:
    n = rows * tokens
    way = {"backward": backward, "below": below}
    inside = {"backward": backward, "below": backward}
    total = linear(n, D, D, rank=rank, **way) + linear(n, D, D, rank=rank, **way)  # query, value
    total += linear(n, D, D, rank=0, **way)  # key
    total += attention(rows, tokens, grads=0 if not backward else 4 if below else 3)
    total += linear(n, D, D, rank=0, **inside)
    return total + 2 * linear(n, D, M, rank=0, **inside)


BLOCK = {"llama": llama_block, "gpt2": gpt2_block, "bert": bert_block}


def head(kind: str, task: str, scored: int, *, backward: bool, below: bool) -> int:
    if task == "causal":
        return 2 * scored * D * V * (1 + (backward and below))
    total = 2 * scored * D * C * (1 + backward + (backward and below))
    if kind == "bert":  # the frozen pooler
        total += 2 * scored * D * D * (1 + (backward and below))
    return total


def by_hand(kind: str, task: str, piece: Piece, trained: range, shape: tuple[int, int, int]) -> int:
    """Return FLOPs of a piece on (rows, tokens, scored)."""
    rows, tokens, scored = shape
    low, high = piece.low, L
    if piece.kind == "bottom":
        high = piece.high
    learns = piece.kind != "forward"
    total, below = 0, piece.kind == "top" and piece.slope
    if not piece.rows:
        for index in range(low, high):
            rank = R if index in trained else 0
            total += BLOCK[kind](
                rows,
                tokens,
                rank=rank,
                backward=learns and (below or rank > 0),
                below=below,
            )
            below = below or rank > 0
    if piece.kind == "bottom":
        return total
    return total + head(kind, task, scored, backward=learns, below=below)


PIECES = (
    Piece("train"),
    Piece("forward"),
    Piece("bottom", high=0),
    Piece("bottom", high=1),
    Piece("bottom", high=2),
    Piece("top", low=1),
    Piece("top", low=2),
    Piece("top", low=2, slope=False),
    Piece("top", low=3),
    Piece("top", low=3, rows=True),
    Piece("top", low=3, rows=True, slope=False),
)
NEW = ((1, 1, 1), (1, 7, 1), (5, 11, 5), (7, 20, 7))
BLOCKS = {"all": range(L), "top:2": range(1, L), "top:1": range(2, L), "0-0": range(1)}


@pytest.mark.parametrize(
    ("kind", "task"),
    [("llama", "classify"), ("llama", "causal"), ("gpt2", "classify"), ("gpt2", "causal"),
     ("bert", "classify")],
)  # fmt: skip
@pytest.mark.parametrize("blocks", BLOCKS)
def test_flops_are_those_counted_by_hand(kind: str, task: str, blocks: str, bodies: Bodies) -> None:
    body = bodies(kind, task, blocks)
    for piece in PIECES:
        if task == "causal" and piece.rows:
            continue
        found = count(body, piece)
        for shape in NEW:
            size = shape if task == "classify" else (*shape[:2], 2 * shape[2] + 1)
            expected = by_hand(kind, task, piece, BLOCKS[blocks], size)
            assert found.of(*size) == expected, (piece, size)


def test_training_with_lora_is_near_four_flops_a_parameter_and_token(bodies: Bodies) -> None:
    """Short texts, so that attention itself is small; 2 N forward, 2 N for activations."""
    body = bodies("llama")
    n = sum(p.numel() for name, p in body.blocks.list.named_parameters() if "lora" not in name)
    ratio = count(body, Piece("train")).of(100, 2, 100) / (n * 200)
    assert 3.5 < ratio < 5.5
    frozen = count(bodies("llama", blocks="top:1"), Piece("bottom", high=2)).of(100, 2, 100)
    assert 1.9 < frozen / (n * 2 / 3 * 200) < 2.2


@pytest.mark.parametrize("kind", ["llama", "gpt2"])
def test_sdpa_is_counted_by_its_own_formula(kind: str, bodies: Bodies) -> None:
    """The kernel recomputes the scores, so its backward pass is five products, in every block."""
    eager, fused = bodies(kind), bodies(kind, attention="sdpa")
    for piece in (Piece("train"), Piece("forward"), Piece("bottom", high=2)):
        for rows, tokens, scored in NEW[1:]:
            blocks = piece.high or L
            product = 2 * rows * H * tokens * tokens * HEAD_DIM
            by_blocks = [4] * blocks if kind == "gpt2" else [3] + [4] * (blocks - 1)
            more = sum(5 - grads for grads in by_blocks) if piece.kind != "forward" else 0
            found = count(fused, piece).of(rows, tokens, scored)
            assert found == count(eager, piece).of(rows, tokens, scored) + more * product


# --- over a round -----------------------------------------------------------------------------


def bench_of(
    folder: Callable[[str], Path], kind: str, tmp_path: Path, **sections: Any
) -> LocalResources:
    rows = SMALL.save_rows(tmp_path / "rows.csv", 40)
    return SMALL.resources(SMALL.job(folder(kind), rows, **sections))


def play(resources: LocalResources, mode: str) -> dict[str, Any]:
    """Play one round."""
    (rows,) = SMALL.play(resources, mode)
    return rows


@pytest.mark.parametrize(
    ("kind", "mode", "task"),
    PAIRS.pairwise(get_args(AdapterKind), ("params", "logits"), ("classify", "causal")),
)
def test_a_round_costs_what_torch_counts_while_it_runs(
    kind: str, mode: str, task: str, folder: Callable[[str], Path], tmp_path: Path
) -> None:
    adapter: dict[str, Any] = {"kind": kind, "dropout": 0.1 if kind in DROPPING else 0.0}
    if kind not in {"ia3", "bitfit", *VIRTUAL}:
        adapter["targets"] = ("q_proj", "v_proj")
    family = "gpt2" if kind == "bitfit" else "llama"  # which has no biases
    job = SMALL.job(
        folder(family), SMALL.save_rows(tmp_path / "rows.csv", 40), task=task, adapter=adapter,
        logits={"student": False},
    )  # fmt: skip
    plain = job.model.model_copy(update={"compute": "reference"})  # whose products torch knows
    resources = SMALL.resources(job.model_copy(update={"model": plain}))
    play(resources, mode)  # so that pieces are counted before the count begins
    with FlopCounterMode(display=False) as counter:
        rows = play(resources, mode)
    assert sum(r["flops"] for r in rows.values()) == counter.get_total_flops()
    assert len({r["flops"] for r in rows.values()}) > 1


@pytest.mark.parametrize("task", ["classify", "causal"])
@pytest.mark.parametrize(
    ("mode", "sections"),
    [
        *(("split", {"cut": cut, "labels": labels})
          for cut in ((0, 2), (1, 2), (1, 3)) for labels in ("private", "shared")),
        ("logits", {}),
        ("params", {}),
    ],
)  # fmt: skip
def test_clients_and_server_together_compute_what_torch_counts(
    mode: str,
    sections: dict[str, Any],
    task: str,
    folder: Callable[[str], Path],
    tmp_path: Path,
) -> None:
    rows = SMALL.save_rows(tmp_path / "rows.csv", 40)
    job = SMALL.job(folder("llama"), rows, task=task, **{mode: sections})
    plain = job.model.model_copy(update={"compute": "reference"})  # whose products torch knows
    resources = SMALL.resources(job.model_copy(update={"model": plain}))
    play(resources, mode)
    setting, ledger = resources.setting(mode, SMALL.watch), Ledger()
    it = mode_of(setting)
    with flops._Counter() as counter:  # torch's own follows modules, and fails at autograd.grad
        LocalEngine(resources.job).round(
            it, it.start(), resources.active(),
            worker=lambda c: resources.worker(c, SMALL.watch), client_states={},
            keep=lambda client, state: None,  # noqa: ARG005 - nothing is kept
            ledger=ledger, watch=SMALL.watch,
        )  # fmt: skip
    served = setting.meter.flops
    assert (served > 0) == (mode != "params")
    clients = sum(row["flops"] for row in ledger.rows().values())
    assert clients + served == counter.flops


@pytest.mark.parametrize("cut", [(1, 2), (0, 3), (2, 3)])
def test_split_counts_the_clients_part_of_each_padded_batch(
    cut: tuple[int, int], folder: Callable[[str], Path], tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
) -> None:  # fmt: skip
    resources = bench_of(folder, "llama", tmp_path, split={"cut": cut})
    shapes: dict[str, list[tuple[int, int, int]]] = {c: [] for c in resources.active()}
    batch_of = type(resources.worker("client-01", SMALL.watch)).batch

    def seen(self: Any, examples: Any, rows: Any) -> Batch:
        batch = batch_of(self, examples, rows)
        shapes[self.client].append((*batch.ids.shape, len(batch.rows)))
        return batch

    monkeypatch.setattr("triskel.training.worker.Worker.batch", seen)
    rows = play(resources, "split")
    low, high = cut
    pooled = high == L
    for client, row in rows.items():
        assert len(shapes[client]) > 1
        expected = sum(
            by_hand("llama", "classify", piece, range(L), shape)
            for shape in shapes[client]
            for piece in (
                Piece("bottom", high=low),
                Piece("top", low=high, rows=pooled, slope=True),
            )
        )
        assert row["flops"] == expected


def test_a_client_of_split_needs_less_memory_and_compute_than_one_of_params(
    folder: Callable[[str], Path], tmp_path: Path
) -> None:
    resources = bench_of(folder, "llama", tmp_path)
    whole, part = play(resources, "params"), play(resources, "split")
    for client, row in part.items():
        assert 0 < row["peak_client_bytes"] < whole[client]["peak_client_bytes"]
        assert 0 < row["flops"] < whole[client]["flops"]


# --- memory -----------------------------------------------------------------------------------


def saved_by(body: SharedModel, run: Callable[[], Tensor]) -> int:
    """Return bytes that autograd keeps while `run` runs, storages of the model left out."""
    own = {t.untyped_storage().data_ptr() for t in (*body.blocks.model.parameters(),
                                                    *body.blocks.model.buffers())}  # fmt: skip
    kept: dict[int, Any] = {}

    def keep(tensor: Tensor) -> Tensor:
        storage = tensor.untyped_storage()
        if storage.data_ptr() not in own:
            kept[storage.data_ptr()] = storage
        return tensor

    with torch.autograd.graph.saved_tensors_hooks(keep, lambda tensor: tensor):
        out = run()
    assert out is not None
    return sum(s.nbytes() for s in kept.values())


@pytest.mark.parametrize("kind", ["llama", "gpt2", "bert"])
@pytest.mark.parametrize("attention", ["eager", "sdpa"])
def test_bytes_saved_for_backward_are_predicted_for_shapes_never_seen(
    kind: str, attention: str, bodies: Bodies
) -> None:
    body = bodies(kind, attention=attention)
    found = count(body, Piece("train"))
    for rows, tokens in ((4, 11), (6, 17), (16, 33)):
        batch = Batch(
            ids=torch.randint(3, V, (rows, tokens)),
            lengths=torch.full((rows,), tokens),
            rows=torch.arange(rows),
            columns=torch.full((rows,), tokens - 1),
            targets=torch.zeros(rows, dtype=torch.int64),
        )
        leaves = body.parameters(body.initial)
        body.install(leaves, leaves)
        real = saved_by(body, lambda b=batch, p=leaves: body.logits(p, b))
        assert found.bytes_of(rows, tokens, rows) == pytest.approx(real, rel=0.01), (rows, tokens)


@pytest.mark.parametrize("task", ["classify", "causal"])
def test_bytes_of_long_texts_are_those_of_attention_that_keeps_no_scores(
    task: str, folder: Callable[[str], Path]
) -> None:
    body = Bodies(folder)("llama", task)
    body.use(Choice(path="fast", flash=20))
    costs, seen = Costs(body), list[float]()

    def kept(window: int | None, tokens: int) -> None:
        """Compare what is predicted with what autograd keeps."""
        body.blocks.config.sliding_window, body.blocks.config.layer_types = window, None
        body.blocks.config.model_type = "llama" if window is None else "mistral"
        batch = Batch(
            ids=torch.randint(3, V, (4, tokens)),
            lengths=torch.full((4,), tokens),
            rows=torch.arange(4),
            columns=torch.full((4,), tokens - 1),
            targets=torch.zeros(4, dtype=torch.int64),
        )
        leaves = body.parameters(body.initial)
        body.install(leaves, leaves)

        def run() -> Tensor:
            losses = body.label_losses([leaves], [batch])
            return body.logits(leaves, batch) if losses is None else losses[0]

        real = saved_by(body, run)
        found = costs.bytes_of(Piece("train"), 4, tokens, 4)
        assert found == pytest.approx(real, rel=0.02), (window, tokens)
        seen.append(real / tokens)

    for tokens in (16, 19, 20, 100):
        kept(None, tokens)
    assert seen[3] == pytest.approx(seen[2], rel=0.02), "linear in tokens"
    costs = Costs(body)
    for tokens in (24, 25, 60):  # beyond a window scores are kept again
        kept(24, tokens)


def test_a_peak_is_weights_gradients_moments_and_saved_bytes(bodies: Bodies) -> None:
    body = bodies("llama")
    costs = Costs(body)
    meter = costs.meter()
    batch = Batch(
        ids=torch.ones(4, 9, dtype=torch.int64),
        lengths=torch.full((4,), 9),
        rows=torch.arange(4),
        columns=torch.full((4,), 8),
        targets=torch.zeros(4, dtype=torch.int64),
    )
    leaves = body.parameters(body.initial)
    meter.ran(batch, Piece("train"), training=leaves)
    weights = 4 * sum(p.numel() for p in body.blocks.model.parameters())
    trained = sum(t.numel() for t in body.initial.values())
    saved = costs[Piece("train")].bytes_of(4, 9, 4)
    assert meter.peak_bytes == weights + 12 * trained + saved
    assert meter.tokens == 36
    before = meter.peak_bytes
    meter.ran(batch, Piece("forward"))
    assert meter.peak_bytes == before, "the largest, not the last"
    assert meter.tokens == 36


def test_a_count_that_took_long_is_remembered_for_this_model_and_code_only(
    bodies: Bodies, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    body, piece, counted = bodies("llama"), Piece("top", low=1), list[Piece]()

    def counting(body: SharedModel, piece: Piece) -> Cost:
        counted.append(piece)
        return count(body, piece)

    def asked(of: SharedModel = body, what: Piece = piece) -> Cost:
        return Costs(of, tmp_path, pytest.fail)[what]

    monkeypatch.setattr(meter, "count", counting)
    monkeypatch.setattr(meter, "WORTH_KEEPING_S", 60.0)
    asked()
    assert not (tmp_path / "costs").exists(), "what is counted soon is not worth a file"
    monkeypatch.setattr(meter, "WORTH_KEEPING_S", 0.0)
    wanted, counted[:] = asked(), []
    assert asked() == wanted == count(body, piece)
    assert not counted
    (place,) = (tmp_path / "costs").iterdir()
    whole = place.read_text()
    for damage in (whole[:9], "[]", whole.replace('"flops": [', '"flops": [1, '), '{"flops": [1]}'):
        place.write_text(damage)
        counted.clear()
        assert asked() == wanted
        assert counted == [piece], damage
    counted.clear()
    asked(what=Piece("train"))
    asked(bodies("llama", "causal"))
    before = body.choice
    body.use(FAST)
    asked()
    body.use(before)
    with monkeypatch.context() as other:
        config: Any = body.blocks.config
        now = "sdpa" if config._attn_implementation == "eager" else "eager"
        other.setattr(config, "_attn_implementation", now)
        asked()
    monkeypatch.setattr(meter, "code_sha256", lambda: "of another version")
    asked()
    assert len(counted) == 5, "another piece, task, path, attention and version are counted anew"
    (tmp_path / "file").write_text("no folder")
    said: list[str] = []
    assert Costs(body, tmp_path / "file", said.append)[piece] == wanted
    assert len(said) == 1


def test_parts_that_two_pieces_share_are_resident_once(bodies: Bodies) -> None:
    """The causal head of GPT-2 is its embedding."""
    body, costs = bodies("gpt2", "causal"), Costs(bodies("gpt2", "causal"))
    model = body.blocks.model
    block = 4 * sum(p.numel() for p in body.blocks.list[0].parameters())
    embeddings = 4 * (model.transformer.wte.weight.numel() + model.transformer.wpe.weight.numel())
    norm = 4 * sum(p.numel() for p in body.blocks.norm.parameters())  # type: ignore[union-attr]
    both = (Piece("bottom", high=1), Piece("top", low=2))
    assert costs.resident(both) == 2 * block + embeddings + norm
    assert costs.resident((Piece("bottom", high=1),)) == block + embeddings
    assert costs.resident((Piece("train"),)) == 3 * block + embeddings + norm
    assert costs.resident((Piece("train"), Piece("forward"))) == 3 * block + embeddings + norm


# --- a wrong zero is worse than an error ------------------------------------------------------


@pytest.fixture
def llama(folder: Callable[[str], Path]) -> SharedModel:
    """One that a test may spoil."""
    return Bodies(folder)("llama")


@pytest.fixture
def library() -> Iterator[torch.library.Library]:
    it = torch.library.Library("small_test", "FRAGMENT")
    yield it
    it._destroy()


def test_a_product_that_the_counter_does_not_know_raises(
    llama: SharedModel, library: torch.library.Library
) -> None:
    library.define("shadow_matmul(Tensor x, Tensor w) -> Tensor")
    library.impl("shadow_matmul", torch.matmul, "CompositeExplicitAutograd")

    class Shadow(nn.Module):
        def forward(self, x: Tensor) -> Tensor:
            return torch.ops.small_test.shadow_matmul(x.detach(), torch.eye(D))

    llama.blocks.list[1].mlp = Shadow()
    with pytest.raises(
        MeterError, match=r"^operation small_test\.shadow_matmul is a product that "
    ):
        count(llama, Piece("train"))


@pytest.mark.parametrize("piece", [Piece("train"), Piece("forward"), Piece("trunk", 1, 2)], ids=str)
@pytest.mark.parametrize("task", ["classify", "causal"])
def test_a_rotary_table_made_by_a_product_is_counted(
    task: str, piece: Piece, folder: Callable[[str], Path]
) -> None:
    """Versions of transformers differ: 5.17 makes it by a product, one for all rows."""
    body = Bodies(folder)("llama", task)
    rotary = body.blocks.model.model.rotary_emb
    plain = count(body, piece)

    class Product(nn.Module):
        def forward(self, x: Tensor, position_ids: Tensor) -> tuple[Tensor, Tensor]:
            inverse = rotary.inv_freq[None, :, None].expand(len(position_ids), -1, 1)
            angles = (inverse.float() @ position_ids[:, None, :].float()).transpose(1, 2)
            table = torch.cat((angles, angles), dim=-1)
            return table.cos().to(x.dtype), table.sin().to(x.dtype)

    body.blocks.model.model.rotary_emb = Product()
    found = count(body, piece)
    for rows, tokens, scored in ((1, 9, 1), (4, 6, 4), (5, 31, 5)):
        more = found.of(rows, tokens, scored) - plain.of(rows, tokens, scored)
        assert more == 2 * (HEAD_DIM // 2) * tokens


def test_a_cost_that_is_no_polynomial_of_its_shape_raises(llama: SharedModel) -> None:
    class Cubic(nn.Module):
        def forward(self, x: Tensor) -> Tensor:
            b, t, _ = x.shape
            return x + (torch.ones(t * b, t) @ torch.ones(t, t)).sum() * 0

    llama.blocks.list[1].mlp = Cubic()
    with pytest.raises(MeterError, match=r"FLOPs of Piece\(kind='forward'.* use model.attention ="):
        count(llama, Piece("forward"))


def test_every_kernel_of_attention_that_torch_leaves_at_zero_is_registered() -> None:
    names = {str(packet) for packet in flops._registry().keys() - flop_registry.keys()}
    assert names == {
        "aten._scaled_dot_product_flash_attention_for_cpu",
        "aten._scaled_dot_product_flash_attention_for_cpu_backward",
    }


def test_each_piece_is_counted_once(bodies: Bodies, monkeypatch: pytest.MonkeyPatch) -> None:
    calls: list[Piece] = []

    def counting(body: SharedModel, piece: Piece) -> Any:
        calls.append(piece)
        return real(body, piece)

    real = flops.count
    monkeypatch.setattr(meter, "count", counting)
    costs = Costs(bodies("llama"))
    assert costs[Piece("forward")] is costs[Piece("forward")]
    assert calls == [Piece("forward")]
    assert list(costs) == [Piece("forward")]
    assert len(costs) == 1


def test_counting_leaves_the_model_and_the_randomness_as_they_were(bodies: Bodies) -> None:
    body = bodies("llama")
    torch.manual_seed(4)
    wanted = torch.rand(2)
    torch.manual_seed(4)
    before = {n: t.clone() for n, t in body.initial.items()}
    mine = body.parameters(body.initial)
    body.install(mine, mine)
    count(body, Piece("train"))
    assert all(torch.equal(t, before[n]) for n, t in body.initial.items())
    assert all(p.grad is None for p in mine.values())
    assert torch.equal(torch.rand(2), wanted)
