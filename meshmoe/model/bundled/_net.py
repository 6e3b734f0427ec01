"""The bundled model's architecture, written for fast training: Qwen3-MoE with all experts computed and then masked.

A token's router weights are spread over all experts, zero for those that it did not pick, so that a layer's experts are
two large matrix products whatever the routing.  For experts this narrow that beats gathering tokens an expert, and the
result is the same function that stock transformers computes.  Inference never uses this file.

Weights are kept as float32 with the experts stacked; ``load_checkpoint`` and ``save_checkpoint`` translate from and to
the standard checkpoint layout, which has one key an expert projection.
"""

import json
import math
import shutil
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
import torch.nn.functional as F  # noqa: N812
from safetensors.torch import load_file, save_file
from torch import Tensor, nn

__all__ = ["Net", "NetConfig", "load_checkpoint", "save_checkpoint"]

_COPIED_FILES = ("config.json", "generation_config.json", "tokenizer.json", "tokenizer_config.json")
"""What a checkpoint has beside its weights; copied where present."""


@dataclass(frozen=True)
class NetConfig:
    """The numbers of ``config.json`` that shape the network."""

    vocab_size: int
    hidden_size: int
    num_hidden_layers: int
    num_attention_heads: int
    num_key_value_heads: int
    head_dim: int
    num_experts: int
    num_experts_per_tok: int
    moe_intermediate_size: int
    rope_theta: float
    rms_norm_eps: float

    @classmethod
    def read(cls, directory: Path) -> "NetConfig":
        """Read a checkpoint's configuration.

        Args:
            directory: A Qwen3-MoE checkpoint whose layers are all sparse, with tied embeddings and normalised gates.

        Returns:
            The configuration.
        """
        values: dict[str, Any] = json.loads((directory / "config.json").read_text())
        if values["model_type"] != "qwen3_moe" or values["mlp_only_layers"] or values["attention_bias"]:
            raise ValueError(f"{directory} is not a Qwen3-MoE whose layers are all sparse")
        if not (values["tie_word_embeddings"] and values["norm_topk_prob"]):
            raise ValueError(f"{directory}: only tied embeddings and normalised router weights are handled")
        return cls(**{name: values[name] for name in cls.__dataclass_fields__})


def rotate(x: Tensor, cos: Tensor, sin: Tensor) -> Tensor:
    """Apply the rotary position embedding to ``[rows, heads, tokens, head_dim]``."""
    first, second = x.chunk(2, -1)
    return x * cos + torch.cat((-second, first), -1) * sin


class Attention(nn.Module):
    """Grouped-query attention with normalised queries and keys."""

    def __init__(self, config: NetConfig) -> None:
        super().__init__()
        hidden, dim = config.hidden_size, config.head_dim
        self.heads = (config.num_attention_heads, config.num_key_value_heads)
        self.head_dim, self.eps = dim, config.rms_norm_eps
        self.q_proj = nn.Linear(hidden, self.heads[0] * dim, bias=False)
        self.k_proj = nn.Linear(hidden, self.heads[1] * dim, bias=False)
        self.v_proj = nn.Linear(hidden, self.heads[1] * dim, bias=False)
        self.o_proj = nn.Linear(self.heads[0] * dim, hidden, bias=False)
        self.q_norm = nn.RMSNorm(dim, eps=self.eps)
        self.k_norm = nn.RMSNorm(dim, eps=self.eps)

    def forward(self, x: Tensor, cos: Tensor, sin: Tensor) -> Tensor:
        """Attend causally over ``x`` of shape ``[rows, tokens, hidden]``."""
        rows, tokens, _ = x.shape
        query = self.q_norm(self.q_proj(x).view(rows, tokens, -1, self.head_dim).float()).transpose(1, 2)
        key = self.k_norm(self.k_proj(x).view(rows, tokens, -1, self.head_dim).float()).transpose(1, 2)
        value = self.v_proj(x).view(rows, tokens, -1, self.head_dim).transpose(1, 2)
        query, key = rotate(query, cos, sin).to(value.dtype), rotate(key, cos, sin).to(value.dtype)
        groups = self.heads[0] // self.heads[1]
        key, value = key.repeat_interleave(groups, 1), value.repeat_interleave(groups, 1)
        mixed = F.scaled_dot_product_attention(query, key, value, is_causal=True)
        out: Tensor = self.o_proj(mixed.transpose(1, 2).reshape(rows, tokens, -1))
        return out


class Experts(nn.Module):
    """A router and its experts, all computed, the unpicked ones masked by a zero weight."""

    def __init__(self, config: NetConfig) -> None:
        super().__init__()
        self.experts, self.picked = config.num_experts, config.num_experts_per_tok
        inner = config.num_experts * config.moe_intermediate_size
        self.gate = nn.Linear(config.hidden_size, config.num_experts, bias=False)
        self.gate_up_proj = nn.Linear(config.hidden_size, 2 * inner, bias=False)
        self.down_proj = nn.Linear(inner, config.hidden_size, bias=False)

    def route(self, x: Tensor) -> tuple[Tensor, Tensor]:
        """Choose the experts of each token, in float32 so that training and any runtime agree on near ties.

        Returns:
            Weights ``[rows, tokens, experts]``, zero where not picked, and two concentrations: over the whole batch,
            and over each row, averaged.  A concentration is 1 when all experts are used alike, and ``experts / picked``
            when the same few do everything.
        """
        with torch.autocast(x.device.type, enabled=False):
            share = F.linear(x.float(), self.gate.weight).softmax(-1)
        index = torch.arange(self.experts, device=x.device)
        left, picked = share.detach(), torch.zeros_like(share, dtype=torch.bool)
        for _ in range(self.picked):  # a few fused maxima are faster than a top-k over rows this short
            best = index == left.argmax(-1, keepdim=True)
            left, picked = left.masked_fill(best, -1.0), picked | best
        weights = share * picked
        calls, means = picked.float().mean(1), share.mean(1)
        batch, row = (calls.mean(0) * means.mean(0)).sum(), (calls * means).sum(-1).mean()
        concentration = torch.stack((batch, row)) * (self.experts / self.picked)
        return weights / weights.sum(-1, keepdim=True), concentration

    def forward(self, x: Tensor) -> tuple[Tensor, Tensor]:
        """Return the experts' weighted sum for ``x`` of shape ``[rows, tokens, hidden]``, and the concentrations."""
        weights, concentration = self.route(x)
        gate, up = self.gate_up_proj(x).chunk(2, -1)
        inner = (F.silu(gate) * up).unflatten(-1, (self.experts, -1)) * weights.unsqueeze(-1).to(gate.dtype)
        return self.down_proj(inner.flatten(-2)), concentration


class Layer(nn.Module):
    """One decoder layer; dropout acts on what each half adds to the residual stream."""

    def __init__(self, config: NetConfig, dropout: float) -> None:
        super().__init__()
        self.input_layernorm = nn.RMSNorm(config.hidden_size, eps=config.rms_norm_eps)
        self.self_attn = Attention(config)
        self.post_attention_layernorm = nn.RMSNorm(config.hidden_size, eps=config.rms_norm_eps)
        self.mlp = Experts(config)
        self.dropout = nn.Dropout(dropout)

    def forward(self, x: Tensor, cos: Tensor, sin: Tensor) -> tuple[Tensor, Tensor]:
        """Return the new residual stream and the routing's concentrations."""
        x = x + self.dropout(self.self_attn(self.input_layernorm(x), cos, sin))
        added, concentration = self.mlp(self.post_attention_layernorm(x))
        return x + self.dropout(added), concentration


class Net(nn.Module):
    """The whole model, without the last product: the loss takes hidden states and the tied embedding."""

    def __init__(self, config: NetConfig, dropout: float = 0.0) -> None:
        super().__init__()
        self.config = config
        self.embed_tokens = nn.Embedding(config.vocab_size, config.hidden_size)
        self.layers = nn.ModuleList(Layer(config, dropout) for _ in range(config.num_hidden_layers))
        self.norm = nn.RMSNorm(config.hidden_size, eps=config.rms_norm_eps)
        self.dropout = nn.Dropout(dropout)

    def initialise(self, generator: torch.Generator) -> None:
        """Draw fresh weights: normal, the products that end a half layer scaled down by depth."""
        for name, parameter in self.named_parameters():
            if parameter.ndim < 2:
                nn.init.ones_(parameter)
                continue
            ends_half = name.endswith(("o_proj.weight", "down_proj.weight"))
            std = 0.02 / math.sqrt(2 * self.config.num_hidden_layers) if ends_half else 0.02
            nn.init.normal_(parameter, std=std, generator=generator)

    def compile_layers(self) -> None:
        """Compile one layer at a time: all layers share one compiled graph, so that it takes seconds."""
        for layer in self.layers:
            layer.compile(dynamic=False)

    def rotary(self, tokens: int, device: torch.device) -> tuple[Tensor, Tensor]:
        """Return cosine and sine of the rotary embedding, each ``[tokens, head_dim]``."""
        dim = self.config.head_dim
        frequency = self.config.rope_theta ** (-torch.arange(0, dim, 2, device=device, dtype=torch.float32) / dim)
        angle = torch.outer(torch.arange(tokens, device=device, dtype=torch.float32), frequency)
        return torch.cat((angle, angle), -1).cos(), torch.cat((angle, angle), -1).sin()

    def forward(self, ids: Tensor) -> tuple[Tensor, Tensor]:
        """Run the model on ids ``[rows, tokens]``.

        Returns:
            The logits ``[rows, tokens, vocabulary]``, and each layer's concentration of routing over the batch and
            over a row, ``[layers, 2]``.
        """
        cos, sin = self.rotary(ids.shape[1], ids.device)
        x = self.dropout(self.embed_tokens(ids))
        concentrations: list[Tensor] = []
        for layer in self.layers:
            x, concentration = layer(x, cos, sin)
            concentrations.append(concentration)
        return F.linear(self.norm(x), self.embed_tokens.weight), torch.stack(concentrations)


def load_checkpoint(directory: Path, dropout: float = 0.0) -> Net:
    """Read a checkpoint in the standard layout.

    Args:
        directory: A Qwen3-MoE checkpoint with one ``model.safetensors``.
        dropout: The share of each residual addition to drop in training.

    Returns:
        The network, in float32 on the CPU.
    """
    net = Net(NetConfig.read(directory), dropout)
    stored = {name.removeprefix("model."): value.float() for name, value in load_file(_weights(directory)).items()}
    state: dict[str, Tensor] = {name: value for name, value in stored.items() if ".experts." not in name}
    for layer in range(net.config.num_hidden_layers):
        prefix, experts = f"layers.{layer}.mlp.", range(net.config.num_experts)
        gate, up, down = (
            [stored[f"{prefix}experts.{expert}.{part}_proj.weight"] for expert in experts]
            for part in ("gate", "up", "down")
        )
        state[f"{prefix}gate_up_proj.weight"] = torch.cat([*gate, *up])
        state[f"{prefix}down_proj.weight"] = torch.cat(down, 1)
    net.load_state_dict(state)
    return net


def save_checkpoint(net: Net, directory: Path, like: Path) -> None:
    """Write a network in bfloat16 in the standard layout.

    Args:
        net: The network.
        directory: Where to write; made if absent.
        like: A checkpoint of the same shape, whose configuration and tokenizer are copied.
    """
    if NetConfig.read(like) != net.config:
        raise ValueError(f"{like} is a checkpoint of another shape")
    directory.mkdir(parents=True, exist_ok=True)
    for name in _COPIED_FILES:
        if (like / name).is_file() and (directory / name).resolve() != (like / name).resolve():
            shutil.copyfile(like / name, directory / name)
    stored: dict[str, Tensor] = {}
    for name, value in net.state_dict().items():
        weight = value.detach().to("cpu", torch.bfloat16)
        prefix, _, part = name.rpartition(".mlp.")
        experts = net.config.num_experts
        if part == "gate_up_proj.weight":
            gate, up = weight.chunk(2)
            parts = {"gate": gate.chunk(experts), "up": up.chunk(experts)}
        elif part == "down_proj.weight":
            parts = {"down": weight.chunk(experts, 1)}
        else:
            stored[f"model.{name}"] = weight.contiguous()
            continue
        for projection, weights in parts.items():
            for expert, one in enumerate(weights):
                stored[f"model.{prefix}.mlp.experts.{expert}.{projection}_proj.weight"] = one.clone().contiguous()
    save_file(stored, _weights(directory), metadata={"format": "pt"})


def _weights(directory: Path) -> Path:
    return directory / "model.safetensors"
