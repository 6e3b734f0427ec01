"""The tables that the compiled step reads: which number stands in which column.

Compiled code takes arrays and integers, not objects, so a model is described to it by tables: ``shape`` (whole numbers
that hold for all layers), ``numbers`` (float32 constants), ``layers`` (a row a layer: addresses of weights, widths,
kinds), ``ends`` (what stands before and behind the layers), ``places`` (addresses of a batch's working memory) and
``rows`` (a row a token of the batch). An address of 0 means that the family has no such tensor.
"""

from __future__ import annotations

from enum import IntEnum


class Shape(IntEnum):
    """Columns of ``shape``: int64."""

    HIDDEN = 0
    HEADS = 1
    KV_HEADS = 2
    HEAD_DIM = 3
    ROTARY_DIM = 4
    """Leading numbers of a head that are rotated."""
    NORM = 5
    QK_NORM = 6
    ROUTER = 7
    NORMALISE = 8
    """Whether the chosen experts' weights are divided by their sum."""
    ROUND_WEIGHTS = 9
    """Whether they are then rounded to the model's dtype."""
    GROUPS = 10
    TOP_GROUPS = 11
    """Of `Router.SIGMOID_GROUPS`: groups of experts, and how many of them take part."""


class Norm(IntEnum):
    """How a hidden state is normalised."""

    RMS = 0
    LAYER = 1


class QkNorm(IntEnum):
    """How queries and keys are normalised."""

    NONE = 0
    HEAD = 1
    """Each head for itself."""
    WHOLE = 2
    """All heads together."""


class Router(IntEnum):
    """How experts are chosen."""

    SOFTMAX = 0
    """The likeliest of a softmax over all."""
    SPARSEMIXER = 1
    """Twice the best, each weighted by a softmax over those that come near it (arXiv 2409.12136)."""
    SIGMOID_GROUPS = 2
    """The best by sigmoid and a correction, within the best groups (DeepSeek-V3, arXiv 2412.19437)."""


class Number(IntEnum):
    """Entries of ``numbers``: float32."""

    NORM_EPS = 0
    QK_NORM_EPS = 1
    ATTENTION_SCALE = 2
    CLIP_QKV = 3
    """Bound of queries, keys and values; 0 for none."""
    JITTER = 4
    """Of `Router.SPARSEMIXER`."""
    ROUTED_SCALE = 5


class Layer(IntEnum):
    """Columns of ``layers``: int64, a row a layer."""

    IN_NORM = 0
    IN_NORM_BIAS = 1
    Q = 2
    Q_BIAS = 3
    K = 4
    K_BIAS = 5
    V = 6
    V_BIAS = 7
    O = 8  # noqa: E741
    O_BIAS = 9
    Q_NORM = 10
    K_NORM = 11
    POST_NORM = 12
    POST_NORM_BIAS = 13
    MOE = 14
    """Ordinal of the MoE layer; -1 for a dense layer."""
    ROUTER = 15
    CORRECTION = 16
    """Float32, of `Router.SIGMOID_GROUPS`."""
    EXPERTS = 17
    TOP_K = 18
    WIDTH = 19
    """Of a routed expert."""
    DENSE_GATE = 20
    DENSE_UP = 21
    DENSE_DOWN = 22
    DENSE_WIDTH = 23
    """The block that every token takes: a dense layer's, or a shared expert; width 0 for none."""
    DENSE_MIX = 24
    """``[1, H]``: how much of the shared expert is added; 0 for all of it."""


class End(IntEnum):
    """Entries of ``ends``: int64, what a model begins and ends with."""

    EMBEDDING = 0
    """Address of ``[V, H]``."""
    HEAD = 1
    """Address of ``[V, H]``, of the logits."""
    HEAD_BIAS = 2
    NORM = 3
    NORM_BIAS = 4
    VOCABULARY = 5


class Token(IntEnum):
    """Columns of ``rows``: int64, a row a token of the batch."""

    BLOCKS = 0
    """Address of the int64 addresses of its sequence's key-value blocks."""
    POSITION = 1
    COS = 2
    SIN = 3
    """Addresses of ``[rotary dim]`` float32, at the token's position."""
    COUNTS = 4
    """Which of the node's counters its activations go to: a row of ``counts``, or -1."""
    LOCAL = 5
    """1 where its router may choose among the resident experts only."""
    ALSO = 6
    """Address of a count and so many addresses as of `BLOCKS`, of sequences that read it as well; or 0."""
    TOKEN = 7
    """Its id."""
    LOGITS = 8
    """Whether its logits are wanted."""
    BEST = 9
    """Gets the place of the highest of its logits, the first of equal ones; -1 where nobody has looked, or where they
    are no numbers."""


class Place(IntEnum):
    """Entries of ``places``: addresses of float32 numbers, or (*narrow*) of numbers in the model's dtype.

    R is the number of rows in the batch; arrays are packed for that many.
    """

    X = 0
    """``[R, H]``: the hidden states between layers."""
    NORMED = 1
    """``[R, H]``, narrow: input of attention, later of the experts."""
    QKV = 2
    """``[R, heads * d]``, then ``[R, kv_heads * d]`` twice."""
    QUERIES = 3
    """``[heads, d]``, narrow: of the row at hand."""
    ATTENDED = 4
    """``[R, heads * d]``, narrow."""
    MIXED = 5
    """``[d]``."""
    SCORES = 6
    """``[heads of a group, tokens]``."""
    ONES = 7
    """``[tokens]``."""
    LOGITS = 8
    """``[R, E]``, of the router."""
    WORK = 9
    """``[2 * E]``."""
    WEIGHTS = 10
    """``[R, k]``: the router's weights of the chosen experts."""
    OUTPUTS = 11
    """``[R, k, H]``: of the chosen experts."""
    SUM = 12
    """``[R, H]``."""
    INNER = 13
    """Room for R times three times the widest of all widths."""
    GATHERED = 14
    """``[R, H]``, narrow: the rows of one expert."""
    COMPUTED = 15
    """``[R, H]``: what it makes of them."""
    DESK = 16
    """No numbers: where the crew of the thread works, 0 where there is none (`kernels.crew`)."""
