"""sentence-transformers on torch: MPS on a Mac, CUDA where there is one, else the CPU with all threads allowed."""

from __future__ import annotations

import argparse
from typing import Any

from protocol import Engine, Inputs, in_batches, serve


def load(args: argparse.Namespace) -> Engine:
    import sentence_transformers
    import torch

    device = "mps" if torch.backends.mps.is_available() else "cuda" if torch.cuda.is_available() else "cpu"
    model = sentence_transformers.SentenceTransformer(args.model, device=device)
    if args.max_length:
        model.max_seq_length = args.max_length

    @torch.inference_mode()
    def forward(rows: list[list[int]]) -> Any:
        ids = torch.tensor(rows, device=device)
        return model({"input_ids": ids, "attention_mask": torch.ones_like(ids)})["sentence_embedding"].float().cpu()

    def encode(inputs: Inputs) -> Any:
        if isinstance(inputs[0], str):
            return model.encode(inputs, batch_size=args.batch_size, show_progress_bar=False)
        return in_batches(inputs, args.batch_size, False, forward)

    about = {"engine": "sentence-transformers", "version": sentence_transformers.__version__, "device": device}
    return Engine(encode, about | {"torch": torch.__version__, "threads": torch.get_num_threads()})


if __name__ == "__main__":
    serve(load)
