"""Task heads: hidden states and a mask in, a dict of arrays out. They know no encoder.

`create_head(HeadConfig(...))` builds any head by name; `create_nlp_head(NLPTaskConfig(...), input_dim=...)` names the
language task instead. `HEADS` lists every head; `register_head_class` adds one.
"""

from heads.base import BaseKaggleHead
from heads.classification import (
    BinaryClassificationHead,
    MulticlassClassificationHead,
    MultilabelClassificationHead,
    TextClassificationHead,
)
from heads.config import ActivationType, HeadConfig, HeadType, PoolingType, get_default_config_for_head_type
from heads.contrastive import ContrastiveLearningHead, MetricLearningHead
from heads.ensemble import EnsembleClassificationHead
from heads.hierarchical import HierarchicalClassificationHead
from heads.language_modeling import TextGenerationHead
from heads.multi_task import MultiTaskHead, MultiTaskNLPHead
from heads.multiple_choice import MultipleChoiceHead
from heads.nlp import NLPHeadConfiguration, create_multi_task_nlp_head, create_nlp_head
from heads.nlp_tasks import NLPTaskConfig, NLPTaskType
from heads.ordinal import OrdinalRegressionHead
from heads.question_answering import QuestionAnsweringHead
from heads.ranking import RankingHead
from heads.registry import (
    HEADS,
    CompetitionType,
    HeadRegistry,
    create_head,
    create_head_from_competition,
    get_head_registry,
    register_head_class,
    select_best_head,
)
from heads.regression import RegressionHead
from heads.similarity import TextSimilarityHead
from heads.time_series import TimeSeriesClassificationHead, TimeSeriesRegressionHead
from heads.token_classification import TokenClassificationHead

_PROBABILITIES, _EMBEDDINGS = {"probabilities"}, {"embeddings"}
# name: (class, kinds of competition, priority among their heads, capabilities)
_BUILT_IN = {
    "binary_classification": (BinaryClassificationHead, ["binary_classification"], 10, _PROBABILITIES),
    "multiclass_classification": (MulticlassClassificationHead, ["multiclass_classification"], 10, _PROBABILITIES),
    "multilabel_classification": (
        MultilabelClassificationHead,
        ["multilabel_classification"],
        10,
        {"probabilities", "thresholds"},
    ),
    "regression": (RegressionHead, ["regression"], 10, {"uncertainty"}),
    "ordinal_regression": (OrdinalRegressionHead, ["ordinal_regression"], 10, _PROBABILITIES),
    "time_series_classification": (TimeSeriesClassificationHead, ["time_series"], 5, _PROBABILITIES),
    "time_series_regression": (TimeSeriesRegressionHead, ["time_series"], 10, {"forecast"}),
    "ranking": (RankingHead, ["ranking", "recommendation"], 10, set()),
    "hierarchical": (HierarchicalClassificationHead, [], 0, _PROBABILITIES),
    "contrastive": (ContrastiveLearningHead, ["recommendation"], 5, _EMBEDDINGS),
    "metric_learning": (MetricLearningHead, [], 0, _EMBEDDINGS),
    "ensemble": (EnsembleClassificationHead, ["multiclass_classification"], 5, {"probabilities", "ensemble"}),
    "multi_task": (MultiTaskHead, [], 0, {"multi_task"}),
    "text_classification": (TextClassificationHead, [], 0, _PROBABILITIES),
    "token_classification": (TokenClassificationHead, [], 0, _PROBABILITIES),
    "question_answering": (QuestionAnsweringHead, [], 0, {"spans"}),
    "text_similarity": (TextSimilarityHead, [], 0, _EMBEDDINGS),
    "text_generation": (TextGenerationHead, [], 0, set()),
    "multiple_choice": (MultipleChoiceHead, [], 0, _PROBABILITIES),
    "multi_task_nlp": (MultiTaskNLPHead, [], 0, {"multi_task"}),
}
for _name, (_class, _competitions, _priority, _capabilities) in _BUILT_IN.items():
    get_head_registry().register(_name, _class, None, _competitions, _priority, _capabilities)

__all__ = [
    "HEADS",
    "ActivationType",
    "BaseKaggleHead",
    "BinaryClassificationHead",
    "CompetitionType",
    "ContrastiveLearningHead",
    "EnsembleClassificationHead",
    "HeadConfig",
    "HeadRegistry",
    "HeadType",
    "HierarchicalClassificationHead",
    "MetricLearningHead",
    "MultiTaskHead",
    "MultiTaskNLPHead",
    "MulticlassClassificationHead",
    "MultilabelClassificationHead",
    "MultipleChoiceHead",
    "NLPHeadConfiguration",
    "NLPTaskConfig",
    "NLPTaskType",
    "OrdinalRegressionHead",
    "PoolingType",
    "QuestionAnsweringHead",
    "RankingHead",
    "RegressionHead",
    "TextClassificationHead",
    "TextGenerationHead",
    "TextSimilarityHead",
    "TimeSeriesClassificationHead",
    "TimeSeriesRegressionHead",
    "TokenClassificationHead",
    "create_head",
    "create_head_from_competition",
    "create_multi_task_nlp_head",
    "create_nlp_head",
    "get_default_config_for_head_type",
    "get_head_registry",
    "register_head_class",
    "select_best_head",
]
