"""Records real routing sets of a model, for the placement benchmark.

    python -m tests.placement.record_traces --corpus DIR --out FILE [--model DIR] [--windows 28] [--length 256]

Reads windows of validation text of each domain (see `meshmoe.model.bundled._corpus`), runs them through transformers'
own forward pass, and keeps the experts that each router chose: for each domain ``[windows, length, layers, top_k]``
uint8, ascending within a set.
"""

import argparse
import re
from pathlib import Path

import numpy as np
import torch
from transformers import AutoModelForCausalLM

from meshmoe.model.bundled import bundled_model_dir
from meshmoe.model.bundled._corpus import even_windows, load_tokens


def record(model, windows, top_k):
    """Routing sets ``[windows, length, layers, top_k]`` of windows of token ids."""
    found = []
    with torch.no_grad():
        for window in windows:
            logits = model(window[None], output_router_logits=True).router_logits
            chosen = [torch.topk(layer.float().softmax(-1), top_k).indices.sort(-1).values for layer in logits]
            found.append(torch.stack(chosen, dim=1))
    return torch.stack(found).to(torch.uint8).numpy()


def main():
    parser = argparse.ArgumentParser(description=re.sub(r"\s+", " ", __doc__.splitlines()[0]))
    parser.add_argument("--corpus", type=Path, required=True)
    parser.add_argument("--out", type=Path, required=True)
    parser.add_argument("--model", type=Path, default=bundled_model_dir())
    parser.add_argument("--windows", type=int, default=28)
    parser.add_argument("--length", type=int, default=256)
    arguments = parser.parse_args()
    torch.set_num_threads(1)
    model = AutoModelForCausalLM.from_pretrained(arguments.model, dtype=torch.float32, attn_implementation="eager")
    text = load_tokens(arguments.corpus, arguments.model / "tokenizer.json", "val")
    top_k = model.config.num_experts_per_tok
    traces = {
        domain: record(model, even_windows(tokens, arguments.length, arguments.windows), top_k)
        for domain, tokens in text.items()
    }
    np.savez_compressed(arguments.out, **traces)


if __name__ == "__main__":
    main()
