"""mlx-embeddings through its own ``generate``, in batches as the texts come, or sorted by length with ``--sort``."""

from __future__ import annotations

import argparse
from importlib.metadata import version
from typing import Any

from protocol import Engine, Inputs, fast_blas, in_batches, pools_first_token, serve


def load(args: argparse.Namespace) -> Engine:
    blas = fast_blas()
    import mlx.core as mx
    import numpy as np
    from mlx_embeddings.utils import generate
    from mlx_embeddings.utils import load as load_model

    model, tokenizer = load_model(args.model)
    first = pools_first_token(args.model)
    longest = args.max_length or 512

    def take(output: Any) -> np.ndarray:
        vectors = output.last_hidden_state[:, 0] if first else output.text_embeds
        return np.asarray(vectors.astype(mx.float32))

    def forward(batch: list[Any]) -> np.ndarray:
        if isinstance(batch[0], str):
            return take(generate(model, tokenizer, batch, max_length=longest))
        ids = mx.array(batch)
        return take(model(ids, attention_mask=mx.ones_like(ids)))

    def encode(inputs: Inputs) -> np.ndarray:
        return in_batches(inputs, args.batch_size, args.sort, forward)

    about = {"engine": "mlx-embeddings", "version": version("mlx-embeddings"), "mlx": version("mlx")}
    return Engine(encode, about | {"device": str(mx.default_device()), "blas": blas, "sorted": args.sort})


if __name__ == "__main__":
    serve(load)
