"""What the tests of SentenceTransformerMTL and of its training share."""

import mlx.core as mx

from mlx_bert.mtl import SentenceTransformerMTL

SENTENCES = ["the good movie", "a very bad day and a very sad night in the old city", "we love food", "rain"]
OPTIONS = {  # every way to build the model
    "plain": {},
    "cls": {"pooling": "cls"},
    "normalized": {"normalize": True},
    "attention": {"task_attention": True},
    "soft": {"sharing": "soft"},
    "soft attention": {"sharing": "soft", "task_attention": True},
}


def new_model(folder, **options) -> SentenceTransformerMTL:
    mx.random.seed(3)
    model = SentenceTransformerMTL(folder, **{"output_dim": 16, **options})
    mx.eval(model.parameters())
    return model
