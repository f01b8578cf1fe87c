"""All losses in one place: pure functions from logits (or embeddings, or scores) and labels to a scalar.

Each family has its own file; `LOSSES` names them all.
"""

from collections.abc import Callable

import mlx.core as mx

from heads.auxiliary_losses import (
    distillation_kl,
    distillation_loss,
    ensemble_diversity_loss,
    hierarchical_consistency_loss,
    uncertainty_weighted_loss,
)
from heads.class_weights import class_weights_from_counts, compute_class_weights
from heads.classification_losses import binary_cross_entropy, binary_focal_loss, cross_entropy, focal_loss
from heads.contrastive_losses import (
    cosine_mse_loss,
    info_nce_loss,
    multiple_negatives_ranking_loss,
    pair_contrastive_loss,
    pair_distances,
    supervised_contrastive_loss,
    triplet_loss,
    unit_vectors,
)
from heads.embedding_losses import (
    angle_similarities,
    batch_hard_triplet_loss,
    cosent_loss,
    margin_mse_loss,
    online_contrastive_loss,
    pair_similarities,
)
from heads.lookup import find_by_name
from heads.loss_reduction import IGNORE_INDEX, align_targets, reduce_loss
from heads.ordinal_losses import cumulative_logits_loss, ordinal_loss, ordinal_probabilities, ordinal_targets
from heads.ranking_losses import (
    lambda_loss,
    lambdarank_loss,
    listmle_loss,
    listnet_loss,
    pairwise_hinge_loss,
    pointwise_ranking_loss,
    ranknet_loss,
    score_margin_mse_loss,
)
from heads.regression_losses import gaussian_nll_loss, huber_loss, mae_loss, mse_loss, temporal_smoothness_loss

LOSSES: dict[str, Callable[..., mx.array]] = {
    "cross_entropy": cross_entropy,
    "focal": focal_loss,
    "binary_cross_entropy": binary_cross_entropy,
    "binary_focal": binary_focal_loss,
    "mse": mse_loss,
    "mae": mae_loss,
    "huber": huber_loss,
    "gaussian_nll": gaussian_nll_loss,
    "ordinal": ordinal_loss,
    "cumulative_logits": cumulative_logits_loss,
    "listnet": listnet_loss,
    "ranknet": ranknet_loss,
    "lambdarank": lambdarank_loss,
    "lambda": lambda_loss,
    "listmle": listmle_loss,
    "score_margin_mse": score_margin_mse_loss,
    "pairwise_hinge": pairwise_hinge_loss,
    "pointwise_ranking": pointwise_ranking_loss,
    "info_nce": info_nce_loss,
    "multiple_negatives_ranking": multiple_negatives_ranking_loss,
    "supervised_contrastive": supervised_contrastive_loss,
    "pair_contrastive": pair_contrastive_loss,
    "triplet": triplet_loss,
    "cosine_mse": cosine_mse_loss,
    "cosent": cosent_loss,
    "online_contrastive": online_contrastive_loss,
    "batch_hard_triplet": batch_hard_triplet_loss,
    "margin_mse": margin_mse_loss,
    "distillation": distillation_loss,
    "uncertainty": uncertainty_weighted_loss,
}


def get_loss(name: str) -> Callable[..., mx.array]:
    """Return the loss called ``name``; ValueError lists the names for an unknown one."""
    return find_by_name(LOSSES, name, "loss")


__all__ = [
    "IGNORE_INDEX",
    "LOSSES",
    "align_targets",
    "angle_similarities",
    "batch_hard_triplet_loss",
    "binary_cross_entropy",
    "binary_focal_loss",
    "class_weights_from_counts",
    "compute_class_weights",
    "cosent_loss",
    "cosine_mse_loss",
    "cross_entropy",
    "cumulative_logits_loss",
    "distillation_kl",
    "distillation_loss",
    "ensemble_diversity_loss",
    "focal_loss",
    "gaussian_nll_loss",
    "get_loss",
    "hierarchical_consistency_loss",
    "huber_loss",
    "info_nce_loss",
    "lambda_loss",
    "lambdarank_loss",
    "listmle_loss",
    "listnet_loss",
    "mae_loss",
    "margin_mse_loss",
    "mse_loss",
    "multiple_negatives_ranking_loss",
    "online_contrastive_loss",
    "ordinal_loss",
    "ordinal_probabilities",
    "ordinal_targets",
    "pair_contrastive_loss",
    "pair_distances",
    "pair_similarities",
    "pairwise_hinge_loss",
    "pointwise_ranking_loss",
    "ranknet_loss",
    "reduce_loss",
    "score_margin_mse_loss",
    "supervised_contrastive_loss",
    "temporal_smoothness_loss",
    "triplet_loss",
    "uncertainty_weighted_loss",
    "unit_vectors",
]
