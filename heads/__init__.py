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
from heads.config import (
    ActivationType,
    HeadConfig,
    HeadType,
    PoolingType,
    get_default_config_for_head_type,
)
from heads.language_modeling import TextGenerationHead
from heads.multiple_choice import MultipleChoiceHead
from heads.nlp_tasks import NLPTaskConfig, NLPTaskType
from heads.question_answering import QuestionAnsweringHead
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
from heads.token_classification import TokenClassificationHead

_CLASS, _LABELS = {"probabilities"}, {"probabilities", "thresholds"}
# name: (class, kinds of competition, priority among their heads, capabilities)
_BUILT_IN = {
    "binary_classification": (BinaryClassificationHead, ["binary_classification"], 10, _CLASS),
    "multiclass_classification": (MulticlassClassificationHead, ["multiclass_classification"], 10, _CLASS),
    "multilabel_classification": (MultilabelClassificationHead, ["multilabel_classification"], 10, _LABELS),
    "text_classification": (TextClassificationHead, ["multiclass_classification"], 5, _CLASS),
    "token_classification": (TokenClassificationHead, [], 0, _CLASS),
    "question_answering": (QuestionAnsweringHead, [], 0, set()),
    "text_generation": (TextGenerationHead, [], 0, set()),
    "multiple_choice": (MultipleChoiceHead, [], 0, _CLASS),
    "regression": (RegressionHead, ["regression"], 10, {"uncertainty"}),
}
for _name, (_class, _competitions, _priority, _capabilities) in _BUILT_IN.items():
    get_head_registry().register(_name, _class, None, _competitions, _priority, _capabilities)

__all__ = [
    "HEADS",
    "ActivationType",
    "BaseKaggleHead",
    "BinaryClassificationHead",
    "CompetitionType",
    "HeadConfig",
    "HeadRegistry",
    "HeadType",
    "MulticlassClassificationHead",
    "MultilabelClassificationHead",
    "MultipleChoiceHead",
    "NLPTaskConfig",
    "NLPTaskType",
    "PoolingType",
    "QuestionAnsweringHead",
    "RegressionHead",
    "TextClassificationHead",
    "TextGenerationHead",
    "TokenClassificationHead",
    "create_head",
    "create_head_from_competition",
    "get_default_config_for_head_type",
    "get_head_registry",
    "register_head_class",
    "select_best_head",
]
