"""Tiny random checkpoints of any family: complete model directories of a few hundred kilobytes, made in a moment."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import torch
from tokenizers import Tokenizer, decoders, models, pre_tokenizers
from transformers import AutoModelForCausalLM, GenerationConfig, PreTrainedTokenizerFast

from meshmoe.model.architecture import BUILD_LOCK, quiet_transformers
from meshmoe.model.tiny_configs import tiny_config

_SPECIAL_TOKENS = ("<pad>", "<s>", "</s>")
_CHAT_TEMPLATE = (
    "{% for message in messages %}{{ message['role'] }}: {{ message['content'] }}\n{% endfor %}"
    "{% if add_generation_prompt %}assistant:{% endif %}"
)
_WEIGHT_GAIN = 0.6
_ROUTER_GAIN = 3.0
_BIAS_SCALE = 0.02


def make_tiny_checkpoint(
    family: str,
    directory: Path,
    seed: int = 0,
    dtype: torch.dtype = torch.float32,
    max_shard_bytes: int | None = None,
) -> Path:
    """Write a random model as a stock ``save_pretrained`` directory, with a byte-level tokenizer.

    Args:
        family: One of ``tiny_configs.TINY_FAMILIES``.
        directory: Created if need be.
        seed: Of the weights: the same seed gives the same files.
        dtype: Of the weights.
        max_shard_bytes: Split the weights into shards of at most this size; None for a single file.

    Returns:
        ``directory``.
    """
    directory.mkdir(parents=True, exist_ok=True)
    with BUILD_LOCK, quiet_transformers(), torch.random.fork_rng(devices=[]):
        torch.manual_seed(seed)
        auto: Any = AutoModelForCausalLM
        model = auto.from_config(tiny_config(family), dtype=dtype).eval()
        randomize(model, seed)
        # Greedy decoding, so that two runs of anything can be compared token by token.
        generation = {"bos_token_id": 1, "eos_token_id": 2, "pad_token_id": 0, "do_sample": False}
        model.generation_config = GenerationConfig.from_dict(generation)
        model.save_pretrained(directory, max_shard_size=max_shard_bytes or "100GB")
        tokenizer = byte_tokenizer()
        tokenizer.save_pretrained(directory)
    return directory


def randomize(model: torch.nn.Module, seed: int) -> None:
    """Draw all weights anew, so that hidden states keep their scale and routers choose all experts.

    Stock initialisation leaves many routers at zero or nearly so, and then every token takes the same experts.
    """
    generator = torch.Generator().manual_seed(seed)
    with torch.no_grad():
        for name, parameter in model.named_parameters():
            noise = torch.randn(parameter.shape, generator=generator)
            if parameter.dim() >= 2:
                router = "gate.weight" in name or "router" in name
                noise *= _WEIGHT_GAIN / parameter.shape[-1] ** 0.5 * (_ROUTER_GAIN if router else 1.0)
                parameter.copy_(noise)
            elif "bias" in name:
                parameter.copy_(noise * _BIAS_SCALE)


def byte_tokenizer() -> Any:
    """Make a tokenizer that maps every byte to a token of its own and back; any text survives the round trip."""
    alphabet = sorted(pre_tokenizers.ByteLevel.alphabet())
    vocabulary = {token: number for number, token in enumerate((*_SPECIAL_TOKENS, *alphabet))}
    tokenizer = Tokenizer(models.BPE(vocab=vocabulary, merges=[]))
    tokenizer.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    tokenizer.decoder = decoders.ByteLevel()
    pad, bos, eos = _SPECIAL_TOKENS
    wrapper: Any = PreTrainedTokenizerFast
    fast = wrapper(tokenizer_object=tokenizer, pad_token=pad, bos_token=bos, eos_token=eos)
    fast.chat_template = _CHAT_TEMPLATE
    return fast
