"""What transformers knows of a model before any weight is read: parameters, expert modules, names in checkpoints.

The model is built once on the meta device, which costs no memory for weights, and asked. Nothing here knows a family:
how a checkpoint's tensor names become the model's parameters is transformers' own conversion mapping, the same that
``from_pretrained`` applies.
"""

from __future__ import annotations

import contextlib
import copy
import threading
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass
from typing import Any

import torch
import transformers
from transformers.conversion_mapping import get_model_conversion_mapping
from transformers.core_model_loading import WeightConverter, WeightRenaming, rename_source_key
from transformers.models.auto.modeling_auto import MODEL_FOR_CAUSAL_LM_MAPPING
from transformers.utils.generic import ContextManagers

from meshmoe.core.errors import CheckpointError
from meshmoe.model.config_file import brief
from meshmoe.model.experts_modules import ExpertsModule, find_experts_modules
from meshmoe.model.tensors import TensorSpec

CONTEXT_LENGTH_DEFAULT = 8192
"""For state-space models whose configuration names no longest sequence."""

BUILD_LOCK = threading.RLock()
"""Building a model patches torch and transformers globally for its duration, so only one thread at a time may do it."""


@dataclass(frozen=True, slots=True)
class ExpertsShape:
    """One MoE layer as the model wants it.

    Attributes:
        name: Path of the experts module.
        n_experts: Routed experts.
        top_k: Experts a token is routed to, where the model says so.
        parameters: Shape of one expert's part of each experts parameter, by its name relative to the module.
    """

    name: str
    n_experts: int
    top_k: int | None
    parameters: dict[str, tuple[int, ...]]


class Architecture:
    """A model's skeleton.

    Attributes:
        config: The transformers configuration that the model class is built from.
        model_class: The stock causal language model class.
        family: transformers model type, such as ``qwen3_moe``.
        experts: The MoE layers in the model's order.
        parameters: Shape of every parameter and persistent buffer, by full name.
    """

    def __init__(self, config: Any, origin: str) -> None:
        """Build the skeleton.

        Args:
            config: A transformers configuration.
            origin: Where it came from, for messages.

        Raises:
            CheckpointError: No causal language model exists for it, it cannot be built, or it has no routed experts.
        """
        self.model_class = _model_class(config, origin)
        if self.model_class.config_class is config.sub_configs.get("text_config"):
            config = config.get_text_config()
        self.config = config
        self.family = str(config.model_type)
        with BUILD_LOCK, quiet_transformers(), ContextManagers(_meta_contexts(self.model_class)):
            try:
                model = self.model_class(copy.deepcopy(config))
            except Exception as error:  # whatever a family's constructor makes of a bad configuration
                raise CheckpointError(
                    f"{origin}/config.json: no {self.family} model can be built: {brief(error)}"
                ) from error
            transforms = get_model_conversion_mapping(model)
        self._base_prefix = str(model.base_model_prefix)
        self._renamings = [t for t in transforms if isinstance(t, WeightRenaming)]
        self._converters = [t for t in transforms if isinstance(t, WeightConverter)]
        self._converter_of_pattern = {p: c for c in self._converters for p in c.source_patterns}
        self.parameters = {name: tuple(tensor.shape) for name, tensor in model.state_dict().items()}
        self.experts = tuple(
            ExpertsShape(
                found.name,
                found.n_experts,
                found.top_k or _top_k(config),
                {name: _expert_shape(found, self.parameters[f"{found.name}.{name}"]) for name in found.parameter_names},
            )
            for found in find_experts_modules(model)
        )
        if not self.experts:
            unknown = {type(m).__name__ for m in model.modules() if type(m).__name__.endswith("Experts")}
            if unknown:
                raise CheckpointError(
                    f"{origin} keeps its experts in {min(unknown)} modules ({self.family}), which cannot be computed "
                    "one by one; choose another Mixture-of-Experts checkpoint"
                )
            raise CheckpointError(
                f"{origin} is a dense model ({self.family}): it has no routed experts to spread over nodes; "
                "choose a Mixture-of-Experts checkpoint"
            )

    @property
    def context_length(self) -> int:
        """Longest sequence of tokens that the model was made for."""
        text = self.config.get_text_config()
        named = (getattr(text, name, None) for name in ("max_position_embeddings", "max_seq_len", "seq_length"))
        return next((int(value) for value in named if value), CONTEXT_LENGTH_DEFAULT)

    def dtype(self, trunk: Iterable[TensorSpec]) -> torch.dtype:
        """What ``from_pretrained(dtype="auto")`` loads: what the configuration says, else what is stored first."""
        for config in (self.config, self.config.get_text_config()):
            if isinstance(config.dtype, torch.dtype):
                return config.dtype
        stored = (spec.torch_dtype for spec in trunk)
        return next((dtype for dtype in stored if dtype.is_floating_point), torch.float32)

    def resolve(self, key: str) -> tuple[str | None, str | None]:
        """Say what becomes of a checkpoint's tensor.

        Returns:
            The model's parameter (None when the model has no use for the tensor), and the pattern of the converter that
            the tensor must pass through (None when it is used as it is).
        """
        target, pattern = rename_source_key(key, self._renamings, self._converters, self._base_prefix, self.parameters)
        if target not in self.parameters and key in self.parameters:
            target, pattern = rename_source_key(key, [], [], self._base_prefix, self.parameters)
        return (target if target in self.parameters else None), pattern

    def convert(self, parameter: str, parts: Sequence[tuple[str, str | None, torch.Tensor]]) -> torch.Tensor:
        """Turn one expert's stored tensors into its part of a parameter, as transformers does for all experts at once.

        Args:
            parameter: Full name of the model's parameter.
            parts: ``(checkpoint key, converter pattern, tensor)``; all have a pattern, or there is one without.

        Returns:
            The converted tensor, possibly a view of a part, with whatever expert axis of length 1 the converter made.
        """
        pattern = parts[0][1]
        if pattern is None:
            return parts[0][2]
        converter: Any = copy.deepcopy(self._converter_of_pattern[pattern])
        for key, source_pattern, tensor in parts:
            converter.add_tensor(parameter, key, source_pattern, tensor)
        converted = next(iter(converter.convert(parameter, config=self.config).values()))
        result: torch.Tensor = converted[0] if isinstance(converted, list) else converted
        return result


@contextlib.contextmanager
def quiet_transformers() -> Iterator[None]:
    """Keep progress bars and loading reports off the terminal; what matters of them is raised as our own errors."""
    library: Any = transformers.utils.logging
    verbosity, bars = library.get_verbosity(), library.is_progress_bar_enabled()
    library.set_verbosity_error()
    library.disable_progress_bar()
    try:
        yield
    finally:
        library.set_verbosity(verbosity)
        if bars:
            library.enable_progress_bar()


def _meta_contexts(model_class: Any) -> Any:
    """transformers' own contexts for building a model without memory for its weights."""
    return model_class.get_init_context(torch.float32, False, False, None)


def _top_k(config: Any) -> int | None:
    """For families whose MoE block does not say (gemma4)."""
    named = (getattr(config, name, None) for name in ("num_experts_per_tok", "top_k_experts", "moe_topk", "moe_k"))
    return next((value for value in named if isinstance(value, int)), None)


def _expert_shape(found: ExpertsModule, shape: tuple[int, ...]) -> tuple[int, ...]:
    if found.kind == "dbrx":  # the experts' matrices are stacked on top of each other, without an axis of their own
        return (shape[0] // found.n_experts, *shape[1:])
    return shape[1:]


def _model_class(config: Any, origin: str) -> Any:
    try:
        found: Any = MODEL_FOR_CAUSAL_LM_MAPPING[type(config)]
    except KeyError:
        raise CheckpointError(
            f"{origin}: transformers {transformers.__version__} has no causal language model for "
            f"{config.model_type!r}; choose a text model, or update transformers"
        ) from None
    if not isinstance(found, (list, tuple)):
        return found
    named = {cls.__name__: cls for cls in found}
    return next((named[name] for name in config.architectures or () if name in named), found[0])
