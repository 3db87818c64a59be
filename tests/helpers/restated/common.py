"""What the three restatements share: a model with PEFT's adapter, batches, AdamW.

Nothing here knows Triskel. A job is the nested tables of its TOML file, texts are token ids, and
tensors go by PEFT's names, without its prefix and without the adapter's name.
"""

# ruff: noqa: ANN001, ANN002, ANN201, ANN204, PLR0913, PLR0917 - plain programs

import functools
import hashlib
import math

import peft
import torch
from torch.nn.functional import cross_entropy

BLOCKS = {"llama": "model.layers", "gpt2": "transformer.h", "bert": "bert.encoder.layer"}
PAD = 0
HEADS = {"llama": "score", "gpt2": "score", "bert": "classifier"}
KINDS = {"ia3": peft.IA3Config, "loha": peft.LoHaConfig, "lokr": peft.LoKrConfig}


def adapted(model, job):
    """Put PEFT's adapter into a transformers model; a classifier's head trains as well."""
    adapter, family = job["adapter"], model.config.model_type
    kind, count = adapter["kind"], model.config.num_hidden_layers
    top = adapter["blocks"].removeprefix("top:")
    inside = map(str, range(0 if top == "all" else count - int(top), count))
    options = {"target_modules": rf".*\.({'|'.join(inside)})\..*({'|'.join(adapter['targets'])})"}
    if kind in {"lora", "dora", "rslora"}:
        options |= {"lora_alpha": adapter["alpha"], "lora_dropout": adapter["dropout"]}
        options |= {"use_dora": kind == "dora", "use_rslora": kind == "rslora"}
    options |= {"r": adapter["rank"]} if kind != "ia3" else {}
    options |= {"alpha": adapter["alpha"]} if kind in {"loha", "lokr"} else {}
    options |= {"fan_in_fan_out": True} if family == "gpt2" else {}
    net = peft.get_peft_model(model, KINDS.get(kind, peft.LoraConfig)(**options)).to(model.dtype)
    if job["data"]["task"] == "classify":
        net.base_model.model.get_submodule(HEADS[family]).requires_grad_(requires_grad=True)
    return net.eval()


@functools.lru_cache(maxsize=4)
def leaves(net):
    """The tensors that train."""
    names = {n: p for n, p in net.named_parameters() if p.requires_grad}
    return {
        n.removeprefix("base_model.model.").replace(".default", ""): p for n, p in names.items()
    }


def predict(net, tensors, texts, rows):
    """Logits and truth of some texts: of their class, or of every token that is scored."""
    for name, leaf in leaves(net).items():
        leaf.data, leaf.grad = tensors[name].clone(), None
    some = [texts["ids"][i] for i in rows]
    ids = torch.nn.utils.rnn.pad_sequence(some, batch_first=True, padding_value=PAD)
    real = torch.arange(ids.shape[1]) < torch.tensor([[len(x)] for x in some])
    logits = net(input_ids=ids, attention_mask=real.long()).logits
    if not texts["scored"]:
        return logits, torch.tensor([texts["labels"][i] for i in rows])
    marks = [(j, int(t)) for j, i in enumerate(rows) for t in texts["scored"][i].nonzero()]
    places, tokens = torch.tensor(marks).T
    return logits[places, tokens - 1], ids[places, tokens]


def slopes(net, names):
    """The gradients that a backward pass left."""
    own = leaves(net)
    return {n: torch.zeros_like(own[n]) if own[n].grad is None else own[n].grad for n in names}


@functools.lru_cache(maxsize=4)
def parts(net):
    """All modules, by name."""
    return list(net.named_modules())


def drop(net, job, *path):
    """Switch the adapter's dropout on, drawn from the stream of this name."""
    for name, module in parts(net):
        if module.training != ("lora_dropout" in name):
            module.training = "lora_dropout" in name
    digest = hashlib.sha256("/".join(map(str, (job["seed"], *path))).encode()).digest()
    torch.default_generator.manual_seed(int.from_bytes(digest[:8], "little") >> 1)


def rate(job, round_):
    """The learning rate of a round."""
    done = (round_ - 1) / job["rounds"]
    falls = {"constant": 1, "linear": 1 - done, "cosine": (1 + math.cos(math.pi * done)) / 2}
    return job["train"]["lr"] * falls[job["train"]["schedule"]]


class Adam:
    """AdamW (arXiv:1711.05101, algorithm 2), moments from zero, after clipping to a norm."""

    def __init__(self, job):
        self.options, self.mean, self.square, self.steps = job["train"], {}, {}, {}

    def step(self, tensors, slopes, rate):
        norm = math.sqrt(sum(g.double().square().sum().item() for g in slopes.values()))
        most, after = self.options["max_grad_norm"], dict(tensors)
        for n, slope in slopes.items():
            g = slope * min(1.0, most / (norm + 1e-6)) if most else slope
            t = self.steps[n] = self.steps.get(n, 0) + 1
            self.mean[n] = 0.9 * self.mean.get(n, 0 * g) + 0.1 * g
            self.square[n] = 0.999 * self.square.get(n, 0 * g) + 0.001 * g * g
            size = (self.square[n] / (1 - 0.999**t)).sqrt() + 1e-8
            kept = (1 - rate * self.options["weight_decay"]) * tensors[n]
            after[n] = kept - rate * self.mean[n] / (1 - 0.9**t) / size
        return after


def learn(net, own, adam, job, texts, rows, path):
    """One step on labels: tensors after it, and the loss before it."""
    drop(net, job, *path)
    loss = cross_entropy(*predict(net, own, texts, rows))
    loss.backward()
    return adam.step(own, slopes(net, own), rate(job, path[1])), loss.item()
