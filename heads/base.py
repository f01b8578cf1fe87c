"""The base of every head: one processing order, checked inputs, strict state.

Dimension key: B batch, L tokens, D width of the hidden states, F width after the projection.
"""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Mapping
from typing import Any, ClassVar

import mlx.core as mx
import mlx.nn as nn
from mlx.utils import tree_flatten, tree_unflatten

from heads.config import HeadConfig, PoolingType
from heads.initialization import truncated_normal_linear
from heads.masks import as_boolean_mask, zero_padding
from heads.pooling import create_pooling
from heads.projection import Projection, TaskAttention

# Options of HeadConfig that only some heads have a meaning for; a head lists those in FEATURES.
_OPTIONAL_FEATURES: dict[str, Any] = {
    "use_competition_tricks": False,
    "use_uncertainty": False,
    "ensemble_size": 1,
    "label_smoothing": 0.0,
    "class_weights": None,
}


class BaseKaggleHead(nn.Module, ABC):
    """A task head: hidden states and a mask in, a dict of arrays out. It knows no encoder and no tokenizer.

    Every head works in one order:
    `x -> [x + Dropout(Attention(Norm(x), mask))] -> pool(x, mask) -> [norm] -> dropout -> blocks -> [ffn] -> output`,
    token-level heads without the pooling. Construction builds pooling, projection, output layer and loss, in turn.

    A new head overrides `_build_output_layer`, `_build_loss_function`, `forward(hidden_states, attention_mask)` and
    `compute_loss(predictions, targets)`. It finds `self.config`, `self.head_type`, `self.projection`,
    `self.projection_output_size` and `self._apply_pooling(hidden_states, attention_mask)`.

    Args:
        config: A `HeadConfig` or a mapping of its fields.
        **extra: Options of this head (see `OPTIONS`), added to `config.extra`.

    Raises:
        TypeError: If the class does not define `forward` and `compute_loss`.
        ValueError: If an option is unknown to this head.
    """

    POOLED: ClassVar[bool] = True
    """Whether the head reads one vector per sequence; token-level heads set it to False."""
    OPTIONS: ClassVar[dict[str, Any]] = {}
    """The head's own options (`HeadConfig.extra`) with their defaults."""
    FEATURES: ClassVar[frozenset[str]] = frozenset()
    """Which of the options that not every head has (`_OPTIONAL_FEATURES`) this one has."""
    needs_labels: bool = True
    """Whether the loss needs labels; those of some losses of embeddings are the other rows of the batch."""
    labels_are_classes: bool = False
    """Whether labels are numbers of classes."""
    takes_groups: bool = False
    """Whether an example is a group of texts, `(N, L)` tokens, such as choices or a pair."""

    def __init__(self, config: HeadConfig | Mapping[str, Any], **extra: Any):
        if missing := sorted(getattr(type(self), "__abstractmethods__", ())):
            raise TypeError(f"[{type(self).__name__}] expected methods {', '.join(missing)}. Define them in the class.")
        super().__init__()
        config = HeadConfig.of(config)
        self.config = config.replace(extra={**config.extra, **extra}) if extra else config
        self.head_type = self.config.head_type
        self._check_options()
        if (size := self._fixed_output_size()) is not None:
            self.config = self.config.replace(output_size=size)
        self._build_pooling()
        self._build_projection()
        self._build_output_layer()
        self._build_loss_function()

    # -- building ------------------------------------------------------------------------------------------------

    def _check_options(self) -> None:
        name = type(self).__name__
        if unknown := sorted(set(self.config.extra) - set(self.OPTIONS)):
            accepted = ", ".join(sorted(self.OPTIONS)) or "no further options"
            raise ValueError(f"[{name}] expected options among {accepted} but got {', '.join(unknown)}. Remove them.")
        for option, default in _OPTIONAL_FEATURES.items():
            if getattr(self.config, option) != default and option not in self.FEATURES:
                raise ValueError(
                    f"[{name}] expected {option}={default!r} but got {getattr(self.config, option)!r}. "
                    "This head has no such option."
                )

    def _fixed_output_size(self) -> int | None:
        """Return the output size of a head for which it is not a matter of choice, else None."""
        return None

    def option(self, name: str) -> Any:
        """Return the value of one of this head's own options."""
        return self.config.extra.get(name, self.OPTIONS[name])

    def _build_pooling(self) -> None:
        config = self.config
        self.task_attention = TaskAttention(config) if config.use_task_attention else None
        if self.POOLED and config.use_pooling:
            self.pooling = self._new_pooling(config.pooling_type, config.input_size)

    def _new_pooling(self, name: str, size: int) -> nn.Module:
        options = dict(self.config.pooling_options)
        if name == PoolingType.ATTENTION:  # a plain linear score, unless create_nlp_head asks for the bounded one
            options.setdefault("score_activation", None)
        return create_pooling(name, size, **options)

    def _build_projection(self) -> None:
        self.projection = Projection(self.config, self.config.input_size)
        self.projection_output_size = self.projection.output_size

    def _output_layer(self, output_size: int) -> nn.Linear:
        config = self.config
        return truncated_normal_linear(
            self.projection_output_size, output_size, config.output_bias, config.initializer_range
        )

    def _build_output_layer(self) -> None:
        self.output = self._output_layer(self.config.output_size)

    def _build_loss_function(self) -> None:
        """Set up what `compute_loss` needs; the default needs nothing."""

    # -- running -------------------------------------------------------------------------------------------------

    def __call__(
        self, hidden_states: mx.array | Mapping[str, Any], attention_mask: mx.array | None = None, **kwargs: Any
    ) -> dict[str, Any]:
        """Return the outputs of the head.

        Args:
            hidden_states: `(B, L, D)`, `(B, D)` where the head allows it, or a mapping with `hidden_states` and
                optionally `attention_mask` (other keys are ignored).
            attention_mask: `(B, L)`, 1 for a real token; None means that nothing is padded.
            **kwargs: What the head's `forward` takes besides.
        """
        if isinstance(hidden_states, Mapping):
            inputs = hidden_states
            if inputs.get("hidden_states") is None:
                raise ValueError(
                    f"[{type(self).__name__}] expected a mapping with 'hidden_states' but got {sorted(inputs)}. "
                    "Add hidden_states of shape (B, L, D)."
                )
            hidden_states = inputs["hidden_states"]
            attention_mask = inputs.get("attention_mask") if attention_mask is None else attention_mask
        if hidden_states.shape[-1] != self.config.input_size:
            raise ValueError(
                f"[{type(self).__name__}] expected hidden states of width {self.config.input_size} but got shape "
                f"{hidden_states.shape}. Set input_size to the encoder's hidden size."
            )
        return self.forward(hidden_states, attention_mask, **kwargs)

    @abstractmethod
    def forward(self, hidden_states: mx.array, attention_mask: mx.array | None = None, **kwargs: Any) -> dict[str, Any]:
        """Return the outputs for `hidden_states (B, L, D)` and `attention_mask (B, L)`."""

    @abstractmethod
    def compute_loss(self, predictions: Mapping[str, Any], targets: Any, **kwargs: Any) -> mx.array:
        """Return the scalar loss of the outputs that `forward` gave."""

    def compute_metrics(self, predictions: Mapping[str, Any], targets: Any) -> dict[str, float]:
        """Return the metrics of the outputs that `forward` gave; a head without its own reports its loss."""
        return {"loss": float(self.compute_loss(predictions, targets))}

    def _contextualise(self, hidden_states: mx.array, attention_mask: mx.array | None) -> tuple[mx.array, Any]:
        """Return the sequence after the task attention `(B, L, D)` and the boolean mask."""
        if hidden_states.ndim != 3:
            raise ValueError(
                f"[{type(self).__name__}] expected hidden states (B, L, D) but got shape {hidden_states.shape}. "
                "Pass the encoder's last hidden state."
            )
        mask = as_boolean_mask(attention_mask, hidden_states.shape[:2])
        # From here on no content of a padded position, not even NaN, can reach an output or a gradient.
        hidden_states = zero_padding(hidden_states, mask)
        return (hidden_states if self.task_attention is None else self.task_attention(hidden_states, mask)), mask

    def _apply_pooling(self, hidden_states: mx.array, attention_mask: mx.array | None = None) -> mx.array:
        """Return one vector per sequence, `(B, D)`; `(B, D)` input passes unchanged."""
        if hidden_states.ndim == 2:
            if self.config.use_task_attention:
                raise ValueError(
                    f"[{type(self).__name__}] expected hidden states (B, L, D) for the task attention but got shape "
                    f"{hidden_states.shape}. Pass the sequence or set use_task_attention=False."
                )
            return hidden_states
        if "pooling" not in self:
            raise ValueError(
                f"[{type(self).__name__}] expected pooled hidden states (B, D) with use_pooling=False but got shape "
                f"{hidden_states.shape}. Pool them or set use_pooling=True."
            )
        hidden_states, mask = self._contextualise(hidden_states, attention_mask)
        return self.pooling(hidden_states, mask)

    def _pooled_features(self, hidden_states: mx.array, attention_mask: mx.array | None = None) -> mx.array:
        """Return what the output layer of a sequence-level head reads, `(B, F)`."""
        return self.projection(self._apply_pooling(hidden_states, attention_mask))

    def _token_features(self, hidden_states: mx.array, attention_mask: mx.array | None) -> tuple[mx.array, Any]:
        """Return what the output layer of a token-level head reads, `(B, L, F)`, and the boolean mask."""
        hidden_states, mask = self._contextualise(hidden_states, attention_mask)
        return self.projection(hidden_states, mask), mask

    # -- saving --------------------------------------------------------------------------------------------------

    def get_config(self) -> dict[str, Any]:
        """Return the config as JSON values; `from_config` builds an equal head."""
        return self.config.to_dict()

    @classmethod
    def from_config(cls, config: HeadConfig | Mapping[str, Any]) -> BaseKaggleHead:
        """Build the head that `get_config` described, with new weights."""
        return cls(HeadConfig.of(config))

    def _buffers(self) -> dict[str, tuple[nn.Module, str]]:
        """Return where each saved buffer lives: arrays that no optimiser touches (class attribute `SAVED_BUFFERS`)."""
        return {
            f"{path}.{name}" if path else name: (module, f"_{name}")
            for path, module in self.named_modules()
            for name in getattr(type(module), "SAVED_BUFFERS", ())
        }

    def state_arrays(self) -> dict[str, mx.array]:
        """Return all parameters and saved buffers under flat names."""
        arrays = dict(tree_flatten(self.parameters()))
        return arrays | {name: getattr(module, key) for name, (module, key) in self._buffers().items()}

    def load_state_arrays(self, arrays: Mapping[str, mx.array]) -> None:
        """Replace all parameters and saved buffers.

        Raises:
            ValueError: If a name is missing or unexpected, or a shape differs.
        """
        mine, where = self.state_arrays(), type(self).__name__
        missing, unexpected = sorted(set(mine) - set(arrays)), sorted(set(arrays) - set(mine))
        if missing or unexpected:
            raise ValueError(
                f"[{where}] expected the head's own arrays but got missing {missing} and unexpected {unexpected}. "
                "Load the state of a head with the same config."
            )
        for name, array in arrays.items():
            if array.shape != mine[name].shape:
                raise ValueError(
                    f"[{where}] expected {name} of shape {mine[name].shape} but got {array.shape}. "
                    "Load the state of a head with the same config."
                )
        buffers = self._buffers()
        for name, (module, key) in buffers.items():
            setattr(module, key, arrays[name])
        self.update(tree_unflatten([(name, array) for name, array in arrays.items() if name not in buffers]))
