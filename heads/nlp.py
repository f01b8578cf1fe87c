"""`create_nlp_head`: from a language task to its head, through the one `HeadConfig`."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

from heads.base import BaseKaggleHead
from heads.config import HeadConfig
from heads.multi_task import MultiTaskNLPHead
from heads.nlp_tasks import NLPTaskConfig, NLPTaskType
from heads.registry import create_head

_TOKEN = (
    "token_classification named_entity_recognition part_of_speech_tagging sequence_labeling semantic_role_labeling "
    "word_sense_disambiguation key_phrase_extraction fact_extraction opinion_extraction"
)
_TEXT = (
    "text_classification sentiment_analysis emotion_detection intent_classification topic_classification "
    "spam_detection natural_language_inference text_regression readability_scoring quality_scoring"
)
_GENERATION = (
    "text_generation masked_language_modeling text_summarization text_completion machine_translation "
    "dialogue_generation"
)
HEAD_OF_TASK: dict[NLPTaskType, str] = {
    NLPTaskType(task): head
    for head, tasks in {
        "token_classification": _TOKEN,
        "text_classification": _TEXT,
        "question_answering": "question_answering span_extraction",
        "text_similarity": "text_similarity paraphrase_detection duplicate_detection text_matching",
        "text_generation": _GENERATION,
        "multiple_choice": "multiple_choice",
        "ranking": "ranking",
    }.items()
    for task in tasks.split()
}
"""The registry name of each task's head; the four tasks that are missing need structures that no head here has."""

_TOKEN_LEVEL = {"token_classification", "question_answering", "text_generation"}


class NLPHeadConfiguration:
    """Recommended options by task; the defaults of `create_nlp_head` are plainer."""

    @staticmethod
    def get_default_config(task_type: NLPTaskType | str) -> dict[str, Any]:
        """Return recommended keyword arguments of `create_nlp_head` for a task."""
        task = NLPTaskType.from_string(task_type)
        base = {
            "dropout_rate": 0.1,
            "normalization_type": "layer_norm",
            "activation_type": "gelu",
            "use_intermediate": True,
            "initializer_range": 0.02,
        }
        by_head: dict[str, dict[str, Any]] = {
            "text_classification": {"pooling_type": "cls"},
            "token_classification": {"use_pooling": False},
            "question_answering": {"use_task_attention": True, "attention_type": "multi_head"},
            "text_similarity": {
                "pooling_type": "mean",
                "similarity_function": "cosine",
                "output_embeddings": True,
            },
            "text_generation": {"use_ffn": True, "ffn_type": "swiglu"},
        }
        return {**base, **by_head.get(HEAD_OF_TASK.get(task, ""), {})}


def create_nlp_head(
    task_config: NLPTaskConfig | Mapping[str, Any], input_dim: int | None = None, **options: Any
) -> BaseKaggleHead:
    """Build the head of a language task.

    Args:
        task_config: The task, as `NLPTaskConfig` or a mapping of its fields.
        input_dim: Width of the encoder's hidden states.
        **options: `normalization_type`, `activation_type`, `use_pooling`, `pooling_type`, `use_intermediate` (True),
            `intermediate_size` (`input_dim`), `use_task_attention`, `attention_type`, `use_ffn`, `ffn_type`,
            `ffn_expansion_factor`, `dropout_rate` (0.1), `initializer_range`, any other field of `HeadConfig`, and the
            head's own options such as `similarity_function` or `output_embeddings`.

    Example:
        >>> task = NLPTaskConfig(name="sentiment", task_type=NLPTaskType.SENTIMENT_ANALYSIS, num_classes=3)
        >>> head = create_nlp_head(task, input_dim=768, pooling_type="mean")

    Raises:
        ValueError: For a task without a head, a missing size, or an unknown option.
    """
    return create_head(nlp_head_config(task_config, input_dim, **options))


def nlp_head_config(
    task_config: NLPTaskConfig | Mapping[str, Any], input_dim: int | None = None, **options: Any
) -> HeadConfig:
    """Return the `HeadConfig` of the head that `create_nlp_head` builds from the same arguments."""
    task = task_config if isinstance(task_config, NLPTaskConfig) else NLPTaskConfig.from_dict(task_config)
    if not isinstance(input_dim, int) or input_dim < 1:
        raise ValueError(
            f"[create_nlp_head] expected input_dim to be a positive integer but got {input_dim!r}. "
            "Give the encoder's hidden size."
        )
    head = HEAD_OF_TASK.get(task.task_type)
    if head is None:
        raise ValueError(
            f"[create_nlp_head] expected one of {', '.join(sorted(HEAD_OF_TASK))} but got {task.task_type.value!r}. "
            "Choose one of these, or subclass BaseKaggleHead."
        )
    dropout = options.pop("dropout_rate", 0.1) if task.dropout_rate is None else task.dropout_rate
    options.pop("dropout_rate", None)
    intermediate, size = options.pop("use_intermediate", True), options.pop("intermediate_size", None)
    width = task.hidden_size or size or input_dim
    if head in _TOKEN_LEVEL and options.pop("use_pooling", False):
        raise ValueError(
            f"[create_nlp_head] expected use_pooling=False for {task.task_type.value}, which works on every token, but "
            "got True. Remove it."
        )
    fields: dict[str, Any] = {
        "head_type": head,
        "name": f"{task.name}_head",
        "input_size": input_dim,
        "output_size": _output_size(head, task, width),
        "dropout_prob": dropout,
        "input_dropout": dropout,
        "use_input_norm": True,
        "hidden_sizes": [width] if intermediate else [],
        "label_smoothing": task.label_smoothing,
        "loss_weight": task.loss_weight,
    }
    if options.get("use_ffn"):
        fields["ffn_size"] = width
    if task.use_attention_pooling:
        fields["pooling_type"] = "attention"
    fields |= options
    if fields.get("pooling_type") == "attention":
        fields["pooling_options"] = {"score_activation": "tanh", **fields.get("pooling_options", {})}
    if head == "token_classification" and task.use_crf:
        fields["use_crf"] = True
    elif task.use_crf:
        raise ValueError(f"[create_nlp_head] expected use_crf only for token tasks but got {head}. Remove it.")
    if head == "text_generation" and task.task_type != NLPTaskType.MASKED_LANGUAGE_MODELING:
        fields.setdefault("objective", "causal")
    return HeadConfig.from_dict(fields)


def _output_size(head: str, task: NLPTaskConfig, width: int) -> int:
    if head == "text_generation":
        return task.vocabulary_size
    if head == "text_similarity":
        return width
    return {"question_answering": 2, "multiple_choice": 1, "ranking": 1}.get(head) or task.num_classes


def create_multi_task_nlp_head(
    task_configs: Sequence[Any] | Mapping[str, Any],
    input_dim: int,
    use_task_specific_projections: bool = False,
    **options: Any,
) -> MultiTaskNLPHead:
    """Build one head per task on shared hidden states; the arguments are those of `MultiTaskNLPHead`.

    Args:
        task_configs: A list of `NLPTaskConfig` (the key is `config.name`), or a mapping of names to them.
        input_dim: Width of the encoder's hidden states.
        use_task_specific_projections: A Linear per task before its head.
        **options: Options of all heads; `head_kwargs={task: {...}}` for single ones; `use_uncertainty_weighting`.
    """
    return MultiTaskNLPHead(task_configs, input_dim, use_task_specific_projections, **options)
