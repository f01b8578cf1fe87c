"""onnxruntime over a model that torch exported, written to ``--onnx`` at the first run; batches sorted by length."""

from __future__ import annotations

import argparse
import os
from pathlib import Path
from typing import Any

from protocol import Engine, Inputs, in_batches, pools_first_token, serve


def export(folder: str, path: Path) -> None:
    """Write the encoder's last hidden state as a graph with any batch and length."""
    import torch
    from transformers import AutoModel

    class Encoder(torch.nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.model = AutoModel.from_pretrained(folder, dtype=torch.float32).eval()

        def forward(self, input_ids: Any, attention_mask: Any) -> Any:
            return self.model(input_ids=input_ids, attention_mask=attention_mask).last_hidden_state

    ids = torch.randint(1, 100, (2, 16))
    mask = torch.ones_like(ids)
    mask[1, 9:] = 0
    sizes = {0: torch.export.Dim("batch"), 1: torch.export.Dim("length")}
    program = torch.onnx.export(
        Encoder(),
        (ids, mask),
        dynamo=True,
        input_names=["input_ids", "attention_mask"],
        output_names=["last_hidden_state"],
        dynamic_shapes=(sizes, sizes),
    )
    path.parent.mkdir(parents=True, exist_ok=True)
    partial = path.with_name(f"partial-{path.name}")
    program.save(partial)
    partial.replace(path)


def load(args: argparse.Namespace) -> Engine:
    import numpy as np
    import onnxruntime
    from tokenizers import Tokenizer

    if args.onnx is None:
        raise ValueError("[peers] expected --onnx, where the exported model is or will be.")
    if not (path := Path(args.onnx)).is_file():
        export(args.model, path)
    options = onnxruntime.SessionOptions()
    options.intra_op_num_threads = int(os.environ.get("OMP_NUM_THREADS", "0"))  # 0: all cores
    session = onnxruntime.InferenceSession(str(path), options, providers=["CPUExecutionProvider"])
    tokenizer = Tokenizer.from_file(str(Path(args.model) / "tokenizer.json"))
    tokenizer.enable_truncation(args.max_length or 512)
    tokenizer.enable_padding()
    first = pools_first_token(args.model)

    def forward(batch: list[Any]) -> np.ndarray:
        if isinstance(batch[0], str):
            encodings = tokenizer.encode_batch(batch)
            ids = np.array([encoding.ids for encoding in encodings], np.int64)
            mask = np.array([encoding.attention_mask for encoding in encodings], np.int64)
        else:
            ids = np.array(batch, np.int64)
            mask = np.ones_like(ids)
        (states,) = session.run(None, {"input_ids": ids, "attention_mask": mask})
        if first:
            return states[:, 0]
        weights = mask.astype(np.float32)
        return (weights[:, None] @ states)[:, 0] / weights.sum(axis=1, keepdims=True)

    def encode(inputs: Inputs) -> np.ndarray:
        return in_batches(inputs, args.batch_size, True, forward)

    about = {"engine": "onnxruntime", "version": onnxruntime.__version__, "device": "cpu", "sorted": True}
    return Engine(encode, about | {"threads": options.intra_op_num_threads or os.cpu_count()})


if __name__ == "__main__":
    serve(load)
