"""Names and options of every head: the enums and the one `HeadConfig`.

Two families of names describe the same heads: `HeadConfig` with `create_head` names the head and all its options;
`NLPTaskConfig` with `create_nlp_head` (`heads.nlp_tasks`) names the language task and is translated into the first.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from enum import StrEnum
from typing import Any


class HeadType(StrEnum):
    """Names of the built-in heads; the value is the registry name (`time_series` resolves by its task)."""

    BINARY_CLASSIFICATION = "binary_classification"
    MULTICLASS_CLASSIFICATION = "multiclass_classification"
    MULTILABEL_CLASSIFICATION = "multilabel_classification"
    REGRESSION = "regression"
    ORDINAL_REGRESSION = "ordinal_regression"
    TIME_SERIES = "time_series"
    TIME_SERIES_CLASSIFICATION = "time_series_classification"
    TIME_SERIES_REGRESSION = "time_series_regression"
    RANKING = "ranking"
    HIERARCHICAL = "hierarchical"
    CONTRASTIVE = "contrastive"
    METRIC_LEARNING = "metric_learning"
    ENSEMBLE = "ensemble"
    MULTI_TASK = "multi_task"
    TEXT_CLASSIFICATION = "text_classification"
    TOKEN_CLASSIFICATION = "token_classification"
    QUESTION_ANSWERING = "question_answering"
    TEXT_SIMILARITY = "text_similarity"
    TEXT_GENERATION = "text_generation"
    MULTIPLE_CHOICE = "multiple_choice"
    MULTI_TASK_NLP = "multi_task_nlp"


class PoolingType(StrEnum):
    """How `(B, L, D)` becomes `(B, D)`; see `heads.pooling`."""

    CLS = "cls"
    MEAN = "mean"
    MAX = "max"
    ATTENTION = "attention"
    WEIGHTED_MEAN = "weighted_mean"
    LAST = "last"
    POOLER = "pooler"


class ActivationType(StrEnum):
    """The common activations; `HeadConfig.activation` also takes any other name of `heads.activations`."""

    RELU = "relu"
    GELU = "gelu"
    TANH = "tanh"
    SIGMOID = "sigmoid"
    SWISH = "swish"
    LEAKY_RELU = "leaky_relu"
    NONE = "none"


def member_of(enum: type[StrEnum], value: Any, where: str) -> Any:
    """Return the member of `enum` called `value`, ignoring case and surrounding space; ValueError if there is none."""
    try:
        return enum(str(value).strip().lower())
    except ValueError:
        names = ", ".join(member.value for member in enum)
        raise ValueError(f"[{where}] expected one of {names} but got {value!r}. Choose one of these names.") from None


def _name_ormember_of(enum: type[StrEnum], value: str) -> str:
    """Return the enum member for a known name and the plain string for a name registered elsewhere."""
    name = str(value).strip().lower()
    return enum(name) if name in {member.value for member in enum} else name


def check_range(where: str, name: str, value: float | None, low: float, high: float) -> None:
    """Raise ValueError unless `value` is None or in `[low, high)`."""
    if value is not None and not low <= value < high:
        raise ValueError(f"[{where}] expected {name} in [{low}, {high}) but got {value}. Choose a value in range.")


@dataclass(frozen=True)
class HeadConfig:
    """All options of a head. The processing order is the same for every head:

    `x -> [x + Dropout(Attention(Norm(x), mask))] -> pool(x, mask) -> [norm] -> dropout -> blocks -> [ffn] -> output`

    Args:
        head_type: `HeadType`, its value, or the name of a registered head.
        input_size: Width `D` of the hidden states.
        output_size: Number of classes, labels, or values. Always 2 for binary heads (one logit, two classes) and 1
            for regression (use the option `num_targets` for several values).
        hidden_sizes: Width of each hidden block between pooling and output; empty for a linear head.
        dropout_prob: Dropout probability inside blocks, task attention and FFN.
        input_dropout: Dropout probability on the input of the first block.
        use_layer_norm: Whether blocks normalise, with `normalization_type`.
        use_batch_norm: Batch normalisation in the blocks; only when `use_layer_norm` is off.
        normalization_type: Name in `heads.normalization`.
        normalization_options: Keyword arguments of the normalisation (`eps`, `bias`, ...).
        use_input_norm: Whether to normalise the (pooled) input of the first block.
        norm_after_activation: Block order `dense -> activation -> norm` instead of `dense -> norm -> activation`.
        activation: Name in `heads.activations`.
        activation_options: Keyword arguments of the activation.
        use_pooling: Whether `(B, L, D)` input is pooled; without it only `(B, D)` is accepted.
        pooling_type: Name in `heads.pooling`; None is "last" for time series and "cls" for all others.
        pooling_options: Keyword arguments of the pooling.
        use_task_attention: Whether the head contextualises the sequence with its own attention layer first.
        attention_type: Name in `heads.attention`.
        num_attention_heads: Heads of the task attention; the largest divisor of the width not above it is used.
        attention_options: Keyword arguments of the attention.
        use_ffn: Whether a feed-forward block follows the blocks.
        ffn_type: Name in `heads.ffn`.
        ffn_expansion_factor: Inner width of the feed-forward block over its input width.
        ffn_size: Output width of the feed-forward block; None keeps the width.
        ffn_options: Keyword arguments of the feed-forward block.
        use_residual_connections: Adds the block's input to its output (through a Linear if the widths differ).
        use_weight_norm: Dense layers of the blocks use `w = g * v / |v|` (Salimans & Kingma 2016).
        hidden_bias: Whether the dense layers of the blocks have a bias.
        output_bias: Whether the output layer has a bias.
        initializer_range: Standard deviation of the output layer's truncated normal initialisation.
        label_smoothing: Smoothing of the classification loss, in [0, 1).
        class_weights: Weight of each class (or label) in the loss.
        competition_metric: Name of the metric that selects the best model.
        use_competition_tricks: Classification heads: focal loss, plus a learned temperature (binary) or label
            smoothing of 0.1 (multiclass). Off, the loss is the plain one.
        ensemble_size: Number of members of the ensemble head (1 means its default).
        use_uncertainty: Regression: also predict the variance and train with the Gaussian likelihood.
        loss_weight: Factor of this head's loss in multi-task training.
        name: Name of the head; defaults to `"<head_type>_head"`.
        extra: Options that only this head type has; the head lists them in `OPTIONS` and refuses others.

    Raises:
        ValueError: If a value is out of range or two options exclude each other.
    """

    head_type: str
    input_size: int
    output_size: int = 2
    hidden_sizes: list[int] = field(default_factory=list)
    dropout_prob: float = 0.1
    input_dropout: float = 0.0
    use_layer_norm: bool = True
    use_batch_norm: bool = False
    normalization_type: str = "layer_norm"
    normalization_options: dict[str, Any] = field(default_factory=dict)
    use_input_norm: bool = False
    norm_after_activation: bool = False
    activation: str = ActivationType.GELU
    activation_options: dict[str, Any] = field(default_factory=dict)
    use_pooling: bool = True
    pooling_type: str | None = None
    pooling_options: dict[str, Any] = field(default_factory=dict)
    use_task_attention: bool = False
    attention_type: str = "multi_head"
    num_attention_heads: int = 8
    attention_options: dict[str, Any] = field(default_factory=dict)
    use_ffn: bool = False
    ffn_type: str = "mlp"
    ffn_expansion_factor: float = 4
    ffn_size: int | None = None
    ffn_options: dict[str, Any] = field(default_factory=dict)
    use_residual_connections: bool = False
    use_weight_norm: bool = False
    hidden_bias: bool = True
    output_bias: bool = True
    initializer_range: float = 0.02
    label_smoothing: float = 0.0
    class_weights: list[float] | None = None
    competition_metric: str = "accuracy"
    use_competition_tricks: bool = False
    ensemble_size: int = 1
    use_uncertainty: bool = False
    loss_weight: float = 1.0
    name: str | None = None
    extra: dict[str, Any] = field(default_factory=dict)

    def __post_init__(self) -> None:
        put = lambda name, value: object.__setattr__(self, name, value)  # noqa: E731
        put("head_type", _name_ormember_of(HeadType, self.head_type))
        if self.pooling_type is None:
            put("pooling_type", "last" if self.head_type.startswith("time_series") else "cls")
        put("pooling_type", member_of(PoolingType, self.pooling_type, "HeadConfig.pooling_type"))
        put("activation", _name_ormember_of(ActivationType, self.activation))
        put("hidden_sizes", [int(size) for size in self.hidden_sizes])
        put("extra", dict(self.extra))
        if self.class_weights is not None:
            put("class_weights", [float(weight) for weight in self.class_weights])
        if self.head_type == HeadType.BINARY_CLASSIFICATION:
            put("output_size", 2)
        elif self.head_type == HeadType.REGRESSION:
            put("output_size", 1)
        if self.name is None:
            put("name", f"{self.head_type}_head")
        for name in ("input_size", "output_size", "ensemble_size", "num_attention_heads"):
            if not isinstance(getattr(self, name), int) or getattr(self, name) < 1:
                raise ValueError(
                    f"[HeadConfig] expected a positive integer as {name} but got {getattr(self, name)!r}. Set {name}."
                )
        if any(size < 1 for size in self.hidden_sizes):
            raise ValueError(f"[HeadConfig] expected positive hidden_sizes but got {self.hidden_sizes}. Correct them.")
        for name in ("dropout_prob", "input_dropout", "label_smoothing"):
            check_range("HeadConfig", name, getattr(self, name), 0.0, 1.0)
        if (self.use_residual_connections or self.use_weight_norm) and not self.hidden_sizes:
            raise ValueError(
                "[HeadConfig] expected hidden_sizes with use_residual_connections or use_weight_norm but got none. "
                "Give hidden_sizes or switch them off."
            )

    @property
    def block_normalization(self) -> str | None:
        """Name of the normalisation inside the blocks, or None."""
        if self.use_layer_norm:
            return self.normalization_type
        return "batch_norm" if self.use_batch_norm else None

    def to_dict(self) -> dict[str, Any]:
        """Return all fields as JSON values."""
        fields = dataclasses.asdict(self)
        return {key: value.value if isinstance(value, StrEnum) else value for key, value in fields.items()}

    @classmethod
    def from_dict(cls, fields: Mapping[str, Any]) -> HeadConfig:
        """Return the config described by `fields`.

        `dropout_rate` and `activation_type` are accepted for `dropout_prob` and `activation`. A key that is no field is
        an option of the head (`extra`), which refuses the ones that it does not know.
        """
        known = {f.name for f in dataclasses.fields(cls)}
        own: dict[str, Any] = {}
        extra = dict(fields.get("extra") or {})
        for key, value in fields.items():
            key = _ALIASES.get(key, key)
            if key in known and key != "extra":
                own[key] = value
            elif key != "extra":
                extra[key] = value
        if missing := [name for name in ("head_type", "input_size") if name not in own]:
            raise ValueError(f"[HeadConfig] expected {' and '.join(missing)} but got {sorted(fields)}. Add them.")
        return cls(**own, extra=extra)

    @classmethod
    def of(cls, config: HeadConfig | Mapping[str, Any]) -> HeadConfig:
        """Return `config` itself, or the config described by a mapping."""
        return config if isinstance(config, HeadConfig) else cls.from_dict(config)

    def replace(self, **changes: Any) -> HeadConfig:
        """Return a copy with `changes`; unknown names go to `extra`, as in `from_dict`."""
        return HeadConfig.from_dict({**self.to_dict(), **changes})


_ALIASES = {"dropout_rate": "dropout_prob", "activation_type": "activation"}


def get_default_config_for_head_type(
    head_type: HeadType | str, input_size: int, output_size: int = 2, **overrides: Any
) -> HeadConfig:
    """Return the recommended options of a head type for hidden states of width `input_size`."""
    half, quarter = max(1, input_size // 2), max(1, input_size // 4)
    presets: dict[str, dict[str, Any]] = {
        "binary_classification": {"hidden_sizes": [half], "competition_metric": "auc"},
        "multiclass_classification": {"hidden_sizes": [half]},
        "multilabel_classification": {
            "hidden_sizes": [half],
            "pooling_type": "attention",
            "competition_metric": "f1_macro",
        },
        "regression": {
            "hidden_sizes": [half, quarter],
            "dropout_prob": 0.2,
            "activation": "relu",
            "pooling_type": "mean",
            "competition_metric": "rmse",
        },
        "ordinal_regression": {"hidden_sizes": [half], "competition_metric": "qwk"},
        "time_series_classification": {"dropout_prob": 0.2, "pooling_type": "last"},
        "time_series_regression": {"dropout_prob": 0.2, "pooling_type": "last", "competition_metric": "rmse"},
        "ranking": {"hidden_sizes": [half, quarter], "pooling_type": "attention", "competition_metric": "ndcg@10"},
        "hierarchical": {"pooling_type": "weighted_mean", "competition_metric": "f1_macro"},
        "ensemble": {"pooling_type": "mean"},
        "contrastive": {"pooling_type": "mean", "dropout_prob": 0.0, "competition_metric": "recall@1"},
        "metric_learning": {"pooling_type": "mean", "competition_metric": "recall@1"},
        "multi_task": {"pooling_type": "mean", "activation": "relu", "competition_metric": "mean"},
        "text_similarity": {"pooling_type": "mean", "competition_metric": "spearman"},
        "question_answering": {"competition_metric": "f1"},
        "token_classification": {"competition_metric": "f1_macro"},
        "text_generation": {"competition_metric": "perplexity"},
    }
    name = resolve_head_type(head_type, output_size, overrides.get("task"))
    return HeadConfig.from_dict(
        {"head_type": name, "input_size": input_size, "output_size": output_size, **presets.get(name, {}), **overrides}
    )


def resolve_head_type(head_type: HeadType | str, output_size: int = 2, task: str | None = None) -> str:
    """Return the registry name: `time_series` becomes classification or regression by `task`, else by `output_size`."""
    name = str(_name_ormember_of(HeadType, head_type))
    if name != HeadType.TIME_SERIES:
        return name
    if task not in (None, "classification", "regression"):
        raise ValueError(
            f"[HeadConfig] expected task 'classification' or 'regression' but got {task!r}. Choose one of the two."
        )
    return f"time_series_{task or ('regression' if output_size == 1 else 'classification')}"


__all__: Sequence[str] = [
    "ActivationType",
    "HeadConfig",
    "HeadType",
    "PoolingType",
    "get_default_config_for_head_type",
    "resolve_head_type",
]
