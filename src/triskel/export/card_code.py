"""The code on a model card: what loads a saved adapter, or a merged model, and asks it."""

import json

from triskel.config.sections import AHEAD
from triskel.core.task_spec import around, filled, names_of, words_in
from triskel.export.manifest import Manifest


def use(manifest: Manifest, *, merged: bool) -> str:
    """Return code that loads what the card is of, and asks it."""
    code = [
        *_loading(manifest, merged=merged),
        *(_asking(manifest) if manifest.classes else _going(manifest)),
    ]
    text = "\n".join(["```python", *code, "```"])
    if manifest.classes and not merged:
        text += "\n\ntransformers may say that the head is new: the adapter brings it."
    return text


def _loading(manifest: Manifest, *, merged: bool) -> list[str]:
    kind = "AutoModelForSequenceClassification" if manifest.classes else "AutoModelForCausalLM"
    lines = ["import torch"] + ([] if merged else ["from peft import PeftModel"])
    lines += [f"from transformers import {kind}, AutoTokenizer", ""]
    options = [
        f"dtype=torch.{manifest.dtype}",
        f"attn_implementation={_quoted(manifest.attention)}",
    ]
    if merged:
        return [
            *lines,
            'folder = "."  # where this card is',
            "tokenizer = AutoTokenizer.from_pretrained(folder)",
            f"model = {kind}.from_pretrained(",
            "    folder,",
            *(f"    {option}," for option in options),
            ").eval()",
            *_wide_head(manifest),
        ]
    if manifest.classes:
        names = ", ".join(f"{i}: {_quoted(name)}" for i, name in enumerate(manifest.classes))
        ids = ", ".join(f"{_quoted(name)}: {i}" for i, name in enumerate(manifest.classes))
        options += [f"id2label={{{names}}}", f"label2id={{{ids}}}", "ignore_mismatched_sizes=True"]
    lines += [
        f"base = {_quoted(manifest.base)}",
        'adapter = "."  # where this card is',
        "tokenizer = AutoTokenizer.from_pretrained(base)",
        f"model = {kind}.from_pretrained(",
        "    base,",
        *(f"    {option}," for option in options),
        ")",
        *_wide_head(manifest),
        "model = PeftModel.from_pretrained(model, adapter).eval()",
    ]
    if manifest.classes and manifest.pooling == "last":
        lines += [
            f"tokenizer.pad_token = {_quoted(manifest.padding)}",
            "model.config.pad_token_id = tokenizer.pad_token_id",
        ]
    return lines


def _wide_head(manifest: Manifest) -> list[str]:
    """Return what lets a classifier's head compute in float32 over a model in bfloat16."""
    if not manifest.classes or manifest.dtype != "bfloat16":
        return []
    head = "score" if manifest.pooling == "last" else "classifier"
    return [
        f"head = model.{head}.float()  # as it was trained",
        "head.register_forward_pre_hook(lambda _, inputs: (inputs[0].float(),))",
    ]


def _asking(manifest: Manifest) -> list[str]:
    told = manifest.training
    limit = f", max_length={told.max_tokens}" if told else ""
    if manifest.kind in AHEAD and manifest.pooling == "last":
        return _asking_one_by_one(limit)
    return [
        'tokenizer.padding_side = "right"',
        "",
        'texts = ["I like it.", "It broke on the second day."]',
        "batch = tokenizer(",
        f'    texts, padding=True, truncation=True{limit}, return_tensors="pt"',
        ")",
        "with torch.no_grad():",
        "    logits = model(",
        '        input_ids=batch["input_ids"], attention_mask=batch["attention_mask"]',
        "    ).logits",
        "for text, scores in zip(texts, logits.float().softmax(-1)):",
        '    print(text, "->", model.config.id2label[int(scores.argmax())], float(scores.max()))',
    ]


def _asking_one_by_one(limit: str) -> list[str]:
    """Return code for a decoder whose texts begin with virtual tokens.

    transformers takes the class off the last token then, padding or not.
    """
    return [
        "",
        'texts = ["I like it.", "It broke on the second day."]',
        "for text in texts:  # one by one: padding would be taken for the last token",
        f'    batch = tokenizer(text, truncation=True{limit}, return_tensors="pt")',
        "    with torch.no_grad():",
        "        logits = model(",
        '            input_ids=batch["input_ids"], attention_mask=batch["attention_mask"]',
        "        ).logits",
        "    scores = logits[0].float().softmax(-1)",
        '    print(text, "->", model.config.id2label[int(scores.argmax())], float(scores.max()))',
    ]


def _going(manifest: Manifest) -> list[str]:
    layout = manifest.training.prompt if manifest.training else ""
    special = ""
    if layout == "chat":
        special = ", add_special_tokens=False"
        lines = [
            'turns = [{"role": "user", "content": "What is federated learning?"}]',
            "text = tokenizer.apply_chat_template(",
            "    turns, tokenize=False, add_generation_prompt=True",
            ")",
        ]
    elif layout:
        lines = _laid_out(around(layout, "response")[0])
    else:
        lines = ['text = "Federated learning is"']
    return [
        "",
        *lines,
        f'batch = tokenizer(text{special}, return_tensors="pt")',
        "with torch.no_grad():",
        "    tokens = model.generate(",
        '        input_ids=batch["input_ids"],',
        '        attention_mask=batch["attention_mask"],',
        "        max_new_tokens=40,",
        "        do_sample=False,",
        "    )",
        'print(tokenizer.decode(tokens[0, batch["input_ids"].shape[1] :]))',
    ]


def _laid_out(before: str) -> list[str]:
    """Return lines that fill a prompt in, and the columns beside it that a layout names."""
    asked = "What is federated learning?"
    if words_in(before) == ["prompt"] and "{{" not in before:
        return [
            f'prompt = "{asked}"',
            f'text = {_quoted(before)}.replace("{{prompt}}", prompt)',
        ]
    parts = filled(before, {})
    row = {name: asked if name == "prompt" else "..." for name in names_of(parts)}
    pieces = [
        part for text, name in parts.parts for part in (_quoted(text), f"row[{_quoted(name)}]")
    ]
    shown = [part for part in (*pieces, _quoted(parts.tail)) if part != _quoted("")]
    return [f"row = {json.dumps(row, ensure_ascii=False)}", f"text = {' + '.join(shown)}"]


def _quoted(text: str) -> str:
    """Return a text as a Python literal in double quotes."""
    return json.dumps(text, ensure_ascii=False)
