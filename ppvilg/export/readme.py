"""The README.md of an exported folder: its programs' inputs and outputs, and how anyone runs them."""

import re
from typing import Any

from ppvilg.model.config import ViLGConfig
from ppvilg.text import TextTokenizer

_HEAD = """# A text-to-image model for Paddle Inference

Written by ppvilg {ppvilg} with paddle {paddle}. `programs/` holds models that Paddle Inference loads without ppvilg, in C++ or
in Python; `manifest.json` names each one's weights file, inputs and outputs; open sizes are -1. `text/` is the text tokenizer's
vocabulary: begin token {begin}, end token {end}, padding {pad}; {padding}

Programs that share a weights file store it once, but each has its own copy in memory ({shared} bytes here).

## From a text to its image, in one run

```python
import numpy as np
from paddle import inference

config = inference.Config("programs/text_to_image.json", "programs/transformer.pdiparams")
config.disable_mkldnn()  # oneDNN is slower for small products
predictor = inference.create_predictor(config)
ids = np.array([{ids}])  # {text}, begin and end tokens around it
given = {{"ids": ids, "mask": np.ones_like(ids, dtype=bool), "top_k": np.int64([0])}}
given |= {{name: np.float32([1]) for name in ("temperature", "top_p", "guidance")}}
given["noise"] = np.random.default_rng(0).gumbel(size=[{tokens}, 1, {codes}]).astype("float32")
for name, array in given.items():
    predictor.get_input_handle(name).copy_from_cpu(array)
predictor.run()
image = predictor.get_output_handle("images").copy_to_cpu()[0]  # uint8, height x width x 3
```

A temperature of 0 takes the likeliest tokens, 0 for `top_k` and 1 for `top_p` mean no limit, and for a guidance other than 1
`ids` and `mask` have as many empty texts ({begin}, {end}) after the texts.

## Step by step

Greedy tokens; sampling, guidance and stopping are then up to the caller. The prefix and the empty caches are given once: a step
writes to the caches where they are.

```python
import json

import numpy as np
from paddle import inference

programs = json.load(open("manifest.json", encoding="utf-8"))["programs"]


def load(name):
    config = inference.Config(f"programs/{{name}}.json", f"programs/{{programs[name]['weights']}}")
    config.disable_mkldnn()
    return inference.create_predictor(config)


def run(predictor, **given):
    for name, array in given.items():
        predictor.get_input_handle(name).copy_from_cpu(array)
    predictor.run()
    return {{name: predictor.get_output_handle(name).copy_to_cpu() for name in predictor.get_output_names()}}


prefill, step, logits, decode = map(load, ["text_to_image_prefill", "text_to_image_decode_step", "image_logits", "decode"])
ids = np.array([{ids}])
mask = np.ones_like(ids, dtype=bool)
given = run(prefill, ids=ids, mask=mask) | {{"prefix_mask": mask}}
last = given.pop("states")[:, -1]
for name, shape in programs["text_to_image_decode_step"]["caches"].items():
    given[name] = np.zeros(shape, last.dtype)  # of one sequence; of several, as many times the rows
tokens = []
for i in range({tokens}):
    tokens.append(run(logits, states=last)["logits"].argmax(-1))
    last = run(step, ids=tokens[i], slots=np.array([i]), **given)["states"]
    given = {{}}
pixels = run(decode, ids=np.array(tokens).reshape([1, {rows}, {columns}]))["pixels"]  # about -1 to 1
```

## The programs

P prompts, s of their tokens, B sequences: as many of each prompt, one after another.
"""
_PADDING = {
    "hidden": "texts of a batch are padded to one length, with false in the mask.",
    "visible": "texts are padded to {length} tokens, with true in the mask.",
    "positional": "texts are padded to {length} tokens, with {first} + its position for padding, and true in the mask.",
}
_PROGRAMS = {
    "text_to_image": "Images of texts: the whole of it. `noise` is Gumbel noise for each token.",
    "text_to_image_prefill": "Reads P texts. The last real token's state decides the first image token.",
    "text_to_image_decode_step": "Reads one image token of each of B sequences; its state decides the token after it.",
    "image_to_text_prefill": "Reads P images' tokens{questions}.",
    "image_to_text_decode_step": "Reads one text token of each of B sequences, the begin token first.",
    "image_logits": "What a state says of the next image token.",
    "text_logits": "What a state says of the next text token.",
    "reconstruct": "Pixels of the states that have read an image's tokens.",
    "encode": "Image tokens of pixels in -1 to 1.",
    "decode": "Pixels of image tokens, about -1 to 1.",
    "embed_image": "The dual encoder's vector of an image, of length 1.",
    "embed_text": "The dual encoder's vector of a text, of length 1.",
}


def readme(manifest: dict[str, Any], config: ViLGConfig, tokenizer: TextTokenizer, shared_bytes: int) -> str:
    """The text for a manifest whose programs and versions are known."""
    word = tokenizer.size // 2
    first = config.text_vocab_size - config.max_text_length
    text = _HEAD.format(
        **manifest["versions"],
        begin=tokenizer.begin,
        end=tokenizer.end,
        pad=tokenizer.pad,
        padding=_PADDING[config.text_padding].format(length=config.max_text_length, first=first),
        shared=shared_bytes,
        ids=[tokenizer.begin, word, tokenizer.end],
        text=tokenizer.decode([word]).strip() or "a word",
        tokens=config.image_length,
        codes=config.image_vocab_size,
        rows=config.rows,
        columns=config.columns,
    )
    questions = f", each after the {config.question_length} slots for its question" if config.question_length else ""
    for name, program in manifest["programs"].items():
        text += f"\n### {name}\n\n{_PROGRAMS[name].format(questions=questions)} Weights: `{program['weights']}`.\n\n"
        text += "| | name | dtype | shape |\n|---|---|---|---|\n"
        for title in ("inputs", "outputs"):
            text += "".join(f"| {title[:-1]} | {row} |\n" for row in _rows(program[title]))
    return text


def _rows(arrays: dict[str, dict]) -> list[str]:
    """A line for each array; those that differ in their layer alone are one."""
    lines: dict[str, list[str]] = {}
    for name, array in arrays.items():
        lines.setdefault(f"`{re.sub('[0-9]+', '*', name)}` | {array['dtype']} | {array['shape']}", []).append(name)
    return [f"`{names[0]}` |{line.split('|', 1)[1]}" if len(names) == 1 else line for line, names in lines.items()]
