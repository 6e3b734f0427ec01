"""The training text: five domains of xz files, encoded once and kept as flat arrays of token ids.

A corpus directory holds ``DOMAIN.train.txt.xz`` and ``DOMAIN.val.txt.xz``: UTF-8 text, a NUL between documents.
Encoded, a split is one array of uint16 ids in which id 0 (end of text) stands after every document.
"""

import lzma
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import numpy.typing as npt
import torch
from tokenizers import Tokenizer

__all__ = ["DOMAINS", "MIX", "BatchSampler", "even_windows", "load_tokens"]

DOMAINS = ("prose", "python", "c", "dictionary", "arithmetic")
"""The domains, in the order of every table."""

MIX = {"prose": 0.29, "python": 0.25, "c": 0.17, "dictionary": 0.20, "arithmetic": 0.09}
"""The share of training windows drawn from each domain."""

END_OF_TEXT = 0
_ENCODE_BATCH = 256


def encode_file(path: Path, tokenizer: Tokenizer) -> npt.NDArray[np.uint16]:
    """Encode one split of one domain.

    Args:
        path: An xz file of UTF-8 documents with a NUL between them.
        tokenizer: The model's tokenizer; its ids must fit 16 bits.

    Returns:
        The ids of all documents, each followed by the end-of-text id.
    """
    if tokenizer.get_vocab_size() > 1 << 16:
        raise ValueError("the vocabulary does not fit 16-bit token ids")
    with lzma.open(path, "rt", encoding="utf-8", newline="") as stream:
        documents = [document for document in stream.read().split("\0") if document]
    ids: list[npt.NDArray[np.uint16]] = []
    for start in range(0, len(documents), _ENCODE_BATCH):
        encodings = tokenizer.encode_batch(documents[start : start + _ENCODE_BATCH], add_special_tokens=False)
        ids.extend(np.asarray([*encoding.ids, END_OF_TEXT], dtype=np.uint16) for encoding in encodings)
    return np.concatenate(ids)


def load_tokens(corpus: Path, tokenizer_file: Path, split: str, cache: Path | None = None) -> dict[str, torch.Tensor]:
    """Encode one split of every domain, or read it from the cache where it is already encoded.

    Args:
        corpus: The directory of ``DOMAIN.SPLIT.txt.xz`` files; with a filled cache it need not exist.
        tokenizer_file: The model's ``tokenizer.json``.
        split: ``train`` or ``val``.
        cache: Where to keep the encoded arrays, if anywhere.

    Returns:
        For each domain a one-dimensional int16 tensor on the CPU (ids stay below 2^15).
    """
    tokenizer = Tokenizer.from_file(str(tokenizer_file))
    tokens: dict[str, torch.Tensor] = {}
    for domain in DOMAINS:
        cached = cache / f"{domain}.{split}.u16" if cache else None
        if cached is not None and cached.is_file():
            ids = np.fromfile(cached, dtype=np.uint16)
        else:
            ids = encode_file(corpus / f"{domain}.{split}.txt.xz", tokenizer)
            if cached is not None:
                cached.parent.mkdir(parents=True, exist_ok=True)
                ids.tofile(cached)
        tokens[domain] = torch.from_numpy(ids.astype(np.int16))
    return tokens


def even_windows(tokens: torch.Tensor, length: int, count_max: int) -> torch.Tensor:
    """Cut windows that are spread evenly over a text and do not overlap.

    Args:
        tokens: The text, one-dimensional.
        length: Tokens a window.
        count_max: The most windows to cut; a short text yields fewer.

    Returns:
        Int64 ids of shape ``[windows, length]``.
    """
    count = min(count_max, tokens.numel() // length)
    if count == 0:
        raise ValueError(f"a text of {tokens.numel()} tokens has no window of {length}")
    starts = torch.linspace(0, tokens.numel() - length, count).long()
    return torch.stack([tokens[start : start + length] for start in starts.tolist()]).long()


@dataclass
class BatchSampler:
    """Draws random training windows, each from a domain drawn by ``MIX``, on the device that holds the text."""

    text: torch.Tensor
    starts: torch.Tensor
    sizes: torch.Tensor
    weights: torch.Tensor
    generator: torch.Generator

    @classmethod
    def create(cls, tokens: dict[str, torch.Tensor], device: torch.device, seed: int) -> "BatchSampler":
        """Put all domains' text on one device.

        Args:
            tokens: The training text of every domain.
            device: Where the windows are wanted.
            seed: Makes the sequence of windows repeatable.

        Returns:
            The sampler.
        """
        sizes = torch.tensor([tokens[domain].numel() for domain in DOMAINS])
        return cls(
            text=torch.cat([tokens[domain] for domain in DOMAINS]).to(device),
            starts=(sizes.cumsum(0) - sizes).to(device),
            sizes=sizes.to(device),
            weights=torch.tensor([MIX[domain] for domain in DOMAINS], device=device),
            generator=torch.Generator(device).manual_seed(seed),
        )

    def draw(self, rows: int, length: int) -> torch.Tensor:
        """Draw one batch.

        Args:
            rows: Windows in the batch.
            length: Tokens a window.

        Returns:
            Int64 ids of shape ``[rows, length]``.
        """
        device = self.text.device
        domain = torch.multinomial(self.weights, rows, replacement=True, generator=self.generator)
        fraction = torch.rand(rows, generator=self.generator, device=device, dtype=torch.float64)
        offset = self.starts[domain] + (fraction * (self.sizes[domain] - length + 1)).long()
        return self.text[offset[:, None] + torch.arange(length, device=device)].long()
