"""The embedding path of mlx-vlm: what its server's ``/v1/embeddings`` runs, in batches as the texts come or sorted."""

from __future__ import annotations

import argparse
from importlib.metadata import version
from pathlib import Path
from typing import Any

from protocol import Engine, Inputs, fast_blas, in_batches, serve


def load(args: argparse.Namespace) -> Engine:
    blas = fast_blas()
    import mlx.core as mx
    import numpy as np
    from mlx_vlm.embedding_loader import load_embedding_model
    from transformers import AutoTokenizer

    model = load_embedding_model(Path(args.model))
    tokenizer = AutoTokenizer.from_pretrained(args.model)
    longest = args.max_length or min(int(tokenizer.model_max_length or 512), 8192)

    def forward(batch: list[Any]) -> np.ndarray:
        if isinstance(batch[0], str):
            tokens = tokenizer(batch, padding=True, truncation=True, max_length=longest, return_tensors="np")
            ids, mask = mx.array(tokens["input_ids"]), mx.array(tokens["attention_mask"])
        else:
            ids = mx.array(batch)
            mask = mx.ones_like(ids)
        return np.asarray(model(ids, attention_mask=mask).text_embeds.astype(mx.float32))

    def encode(inputs: Inputs) -> np.ndarray:
        return in_batches(inputs, args.batch_size, args.sort, forward)

    about = {"engine": "mlx-vlm", "version": version("mlx-vlm"), "mlx": version("mlx")}
    return Engine(encode, about | {"device": str(mx.default_device()), "blas": blas, "sorted": args.sort})


if __name__ == "__main__":
    serve(load)
