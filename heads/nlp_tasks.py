"""The 37 language tasks by name, and `NLPTaskConfig`, the description of one task."""

from __future__ import annotations

import dataclasses
from collections.abc import Mapping
from dataclasses import dataclass
from enum import StrEnum
from typing import Any

from heads.config import check_range, member_of


class NLPTaskType(StrEnum):
    """The 37 language tasks that `create_nlp_head` knows by name."""

    TOKEN_CLASSIFICATION = "token_classification"
    NAMED_ENTITY_RECOGNITION = "named_entity_recognition"
    PART_OF_SPEECH_TAGGING = "part_of_speech_tagging"
    DEPENDENCY_PARSING = "dependency_parsing"
    SEMANTIC_ROLE_LABELING = "semantic_role_labeling"
    WORD_SENSE_DISAMBIGUATION = "word_sense_disambiguation"
    TEXT_CLASSIFICATION = "text_classification"
    SENTIMENT_ANALYSIS = "sentiment_analysis"
    EMOTION_DETECTION = "emotion_detection"
    INTENT_CLASSIFICATION = "intent_classification"
    TOPIC_CLASSIFICATION = "topic_classification"
    SPAM_DETECTION = "spam_detection"
    QUESTION_ANSWERING = "question_answering"
    SPAN_EXTRACTION = "span_extraction"
    COREFERENCE_RESOLUTION = "coreference_resolution"
    EVENT_EXTRACTION = "event_extraction"
    RELATION_EXTRACTION = "relation_extraction"
    TEXT_SIMILARITY = "text_similarity"
    NATURAL_LANGUAGE_INFERENCE = "natural_language_inference"
    PARAPHRASE_DETECTION = "paraphrase_detection"
    DUPLICATE_DETECTION = "duplicate_detection"
    TEXT_GENERATION = "text_generation"
    MASKED_LANGUAGE_MODELING = "masked_language_modeling"
    TEXT_SUMMARIZATION = "text_summarization"
    MACHINE_TRANSLATION = "machine_translation"
    TEXT_COMPLETION = "text_completion"
    DIALOGUE_GENERATION = "dialogue_generation"
    TEXT_REGRESSION = "text_regression"
    READABILITY_SCORING = "readability_scoring"
    QUALITY_SCORING = "quality_scoring"
    MULTIPLE_CHOICE = "multiple_choice"
    RANKING = "ranking"
    SEQUENCE_LABELING = "sequence_labeling"
    TEXT_MATCHING = "text_matching"
    KEY_PHRASE_EXTRACTION = "key_phrase_extraction"
    FACT_EXTRACTION = "fact_extraction"
    OPINION_EXTRACTION = "opinion_extraction"

    @classmethod
    def from_string(cls, name: str) -> NLPTaskType:
        """Return the member called `name`, ignoring case and surrounding space; ValueError if there is none."""
        return member_of(cls, name, "NLPTaskType")

    @classmethod
    def all_tasks(cls) -> list[NLPTaskType]:
        """Return all members in order of definition."""
        return list(cls)

    @classmethod
    def get_task_categories(cls) -> dict[str, list[NLPTaskType]]:
        """Return the members by group: token, sequence, span, pair, generation, regression, structured, extraction."""
        members, categories, start = list(cls), {}, 0
        for name, size in _CATEGORY_SIZES.items():
            categories[name] = members[start : start + size]
            start += size
        return categories


_CATEGORY_SIZES = {
    "token": 6,
    "sequence": 6,
    "span": 5,
    "pair": 4,
    "generation": 6,
    "regression": 3,
    "structured": 4,
    "information_extraction": 3,
}


CLASSIFICATION_TASKS = frozenset(
    {
        NLPTaskType.TOKEN_CLASSIFICATION,
        NLPTaskType.NAMED_ENTITY_RECOGNITION,
        NLPTaskType.PART_OF_SPEECH_TAGGING,
        NLPTaskType.SEMANTIC_ROLE_LABELING,
        NLPTaskType.WORD_SENSE_DISAMBIGUATION,
        NLPTaskType.TEXT_CLASSIFICATION,
        NLPTaskType.SENTIMENT_ANALYSIS,
        NLPTaskType.EMOTION_DETECTION,
        NLPTaskType.INTENT_CLASSIFICATION,
        NLPTaskType.TOPIC_CLASSIFICATION,
        NLPTaskType.SPAM_DETECTION,
        NLPTaskType.NATURAL_LANGUAGE_INFERENCE,
        NLPTaskType.SEQUENCE_LABELING,
        NLPTaskType.KEY_PHRASE_EXTRACTION,
        NLPTaskType.FACT_EXTRACTION,
        NLPTaskType.OPINION_EXTRACTION,
    }
)
"""Tasks that need `num_classes`."""


@dataclass(frozen=True)
class NLPTaskConfig:
    """What a language task is: its kind and its label space.

    Args:
        name: Unique name of the task; the key in multi-task dictionaries.
        task_type: The `NLPTaskType` or its name.
        num_classes: Number of labels; required by all classification tasks, 1 for regression tasks.
        num_labels: Another spelling of `num_classes`; whichever is given fills the other.
        vocabulary_size: Number of tokens; required by the generation tasks.
        dropout_rate: Overrides the head option `dropout_rate` when not None.
        loss_weight: Factor of this task's loss in multi-task training.
        hidden_size: Working width of the head and of its multi-task projection; overrides `intermediate_size`.
        label_smoothing: Smoothing of the head's cross-entropy, in [0, 1).
        use_crf: Token tasks only: a linear-chain CRF on top of the emissions.
        use_attention_pooling: Pool with learned attention instead of `pooling_type`.

    Raises:
        ValueError: If a size that the task needs is missing or a number is out of range.
    """

    name: str
    task_type: NLPTaskType
    num_classes: int | None = None
    num_labels: int | None = None
    vocabulary_size: int | None = None
    dropout_rate: float | None = None
    loss_weight: float = 1.0
    hidden_size: int | None = None
    label_smoothing: float = 0.0
    use_crf: bool = False
    use_attention_pooling: bool = False

    def __post_init__(self) -> None:
        where = f"NLPTaskConfig {self.name!r}"
        if not self.name:
            raise ValueError("[NLPTaskConfig] expected a non-empty name but got ''. Name the task.")
        object.__setattr__(self, "task_type", NLPTaskType.from_string(self.task_type))
        if self.num_classes is not None and self.num_labels is not None and self.num_classes != self.num_labels:
            raise ValueError(
                f"[{where}] expected num_classes and num_labels to agree but got {self.num_classes} and "
                f"{self.num_labels}. Give one of them."
            )
        classes = self.num_classes if self.num_classes is not None else self.num_labels
        categories = NLPTaskType.get_task_categories()
        if classes is None and self.task_type in categories["regression"]:
            classes = 1
        if classes is None and self.task_type in CLASSIFICATION_TASKS:
            raise ValueError(f"[{where}] expected num_classes for {self.task_type.value} but got None. Give it.")
        if self.task_type in categories["regression"] and classes != 1:
            raise ValueError(
                f"[{where}] expected num_classes of 1 for {self.task_type.value} but got {classes}. "
                "Use a classification task for classes."
            )
        if classes is not None and classes < 1:
            raise ValueError(f"[{where}] expected num_classes of at least 1 but got {classes}. Count the labels.")
        object.__setattr__(self, "num_classes", classes)
        object.__setattr__(self, "num_labels", classes)
        if self.task_type in categories["generation"] and not self.vocabulary_size:
            raise ValueError(
                f"[{where}] expected vocabulary_size for {self.task_type.value} but got {self.vocabulary_size}. "
                "Give the tokenizer's number of tokens."
            )
        check_range(where, "dropout_rate", self.dropout_rate, 0.0, 1.0)
        check_range(where, "label_smoothing", self.label_smoothing, 0.0, 1.0)
        if self.loss_weight < 0:
            raise ValueError(f"[{where}] expected loss_weight of at least 0 but got {self.loss_weight}. Raise it.")

    def to_dict(self) -> dict[str, Any]:
        """Return all fields as JSON values."""
        return {**dataclasses.asdict(self), "task_type": self.task_type.value}

    @classmethod
    def from_dict(cls, fields: Mapping[str, Any]) -> NLPTaskConfig:
        """Return the config that `to_dict` wrote; ValueError for an unknown field."""
        known = {f.name for f in dataclasses.fields(cls)}
        if unknown := sorted(set(fields) - known):
            raise ValueError(f"[NLPTaskConfig] expected fields among {sorted(known)} but got {unknown}. Remove them.")
        return cls(**fields)
