"""What each kind of model predicts, as rows: loaded once, then applied to one window of inputs after another."""

from __future__ import annotations

import argparse
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any, NamedTuple

from mlx_bert.cli.head_data import KIND_OF_HEAD
from mlx_bert.cli.model_kind import CROSS_ENCODER, EMBEDDING, FEW_SHOT, JOINT, MASKED_LM, MULTI_TASK, SENTENCE_MTL
from mlx_bert.cli.prediction_rows import Row

SECOND = {"question_answering": "context", "multiple_choice": "choices"}  # what a question is read with


class Predictor(NamedTuple):
    """A model that is ready to predict.

    Attributes:
        kind: of its inputs, a key of ``mlx_bert.data.kinds.KINDS``.
        predict: inputs to rows, in their order.
        pairs: whether it reads pairs of texts.
        ranks: whether it has several classes, words, answers or choices to give the best of.
    """

    kind: str
    predict: Callable[[list[Row]], list[Row]]
    pairs: bool = False
    ranks: bool = True


def load_predictor(folder: str, task: str, args: argparse.Namespace) -> Predictor:
    """The model of a folder.

    Raises:
        ValueError: a model that predicts nothing.
    """
    return LOADERS[task](folder, args)


def _head(folder: str, args: argparse.Namespace) -> Predictor:
    """A model with one head."""
    from mlx_bert.checkpoint import read_json
    from mlx_bert.inference.predict import EMBEDDERS, TextPredictor
    from mlx_bert.model import METADATA

    metadata = Path(folder) / METADATA
    if metadata.is_file() and read_json(metadata).get("head_type") in ("ranking", *EMBEDDERS):
        from mlx_bert.cli.predict_vectors import vector_predict

        return Predictor(*vector_predict(folder, args), pairs=True, ranks=False)
    predictor = TextPredictor.from_pretrained(folder, args.dtype)
    head = str(predictor.model.head.head_type)
    kind = KIND_OF_HEAD.get(head, "text")
    second = SECOND.get(kind, "text_pair")
    first = "question" if kind == "question_answering" else "text"
    shown = ("id", first, "text_pair")  # a context may be a book

    def predict(given: list[Row]) -> list[Row]:
        pairs = [row[second] for row in given] if second in given[0] else None
        if second != "text_pair" and pairs is None:
            raise ValueError(
                f"[predict] expected --{second} with questions but got none. Give it, or --input with a column."
            )
        texts = [row[first] for row in given]
        found = predictor.predict(texts, pairs, args.batch_size, args.max_length, args.top_k)
        named = ({name: row[name] for name in shown if name in row} for row in given)
        results = (_tasks(result["tasks"], args.top_k) if "tasks" in result else result for result in found)
        return [{**row, **result} for row, result in zip(named, results, strict=True)]

    return Predictor(kind, predict, pairs=predictor.pipeline is None, ranks=kind != "number")


def _multi_task(folder: str, args: argparse.Namespace) -> Predictor:
    """A model of several tasks: the label of each, and its probability."""
    from mlx_bert.inference.pipelines import MultiTask

    pipe = MultiTask.from_pretrained(folder, args.dtype, batch_size=args.batch_size)

    def predict(given: list[Row]) -> list[Row]:
        texts = [row["text"] for row in given]
        found = pipe(iter(texts), top_k=args.top_k, max_length=args.max_length)
        return [{"text": text, **_tasks(tasks, args.top_k)} for text, tasks in zip(texts, found, strict=True)]

    return Predictor("text", predict)


def _tasks(tasks: dict[str, list[Row]], top_k: int) -> Row:
    row: Row = {}
    for task, ranked in tasks.items():
        if ranked and "label" in ranked[0]:
            row |= {task: ranked[0]["label"], f"{task}_confidence": ranked[0]["score"]}
            if top_k > 1:
                row[f"{task}_scores"] = {each["label"]: each["score"] for each in ranked}
        else:  # what was found in the text, or nothing
            row[f"{task}_entities"] = ranked
    return row


def _cross_encoder(folder: str, args: argparse.Namespace) -> Predictor:
    """Pairs with their score, or their class."""
    from mlx_bert.inference.cross_encoder import CrossEncoder

    if not args.input:
        raise ValueError("[predict] expected --input with pairs for a cross-encoder but got none. Give a file.")
    model = CrossEncoder.from_pretrained(folder, args.dtype, max_length=args.max_length)
    names = [(model.model.id2label or {}).get(index, str(index)) for index in range(model.num_labels)]

    def predict(given: list[Row]) -> list[Row]:
        pairs = [(row["text"], row["text_pair"]) for row in given]
        scores = model.predict(pairs, args.batch_size, apply_softmax=model.num_labels > 1, show_progress_bar=False)
        rows = []
        for (text, pair), own in zip(pairs, scores, strict=True):
            result = {"score": float(own)} if model.num_labels == 1 else _classes(own, names, args.top_k)
            rows.append({"text": text, "text_pair": pair, **result})
        return rows

    return Predictor("labelled_pair", predict, pairs=True, ranks=model.num_labels > 1)


def _masked_lm(folder: str, args: argparse.Namespace) -> Predictor:
    """Texts with their masks filled."""
    from mlx_bert.inference.pipelines import FillMask

    pipe = FillMask.from_pretrained(folder, args.dtype, batch_size=args.batch_size)

    def predict(given: list[Row]) -> list[Row]:
        texts = [row["text"] for row in given]
        rows = []
        for text, found in zip(texts, pipe(iter(texts), top_k=args.top_k, max_length=args.max_length), strict=True):
            places = found if isinstance(found[0], list) else [found]
            row: Row = {"text": text, "label": " ".join(place[0]["token_str"].strip() for place in places)}
            row["confidence"] = float(min(place[0]["score"] for place in places))
            if args.top_k > 1:
                row["candidates"] = [
                    {each["token_str"].strip(): float(each["score"]) for each in place} for place in places
                ]
            rows.append(row)
        return rows

    return Predictor("text", predict)


def _few_shot(folder: str, args: argparse.Namespace) -> Predictor:
    """Texts with their class."""
    from mlx_bert.training.few_shot import FewShotClassifier

    classifier = FewShotClassifier.from_pretrained(folder, args.dtype)
    encoder = classifier.encoder
    encoder.max_seq_length = min(args.max_length or encoder.max_seq_length, encoder.max_seq_length)

    def predict(given: list[Row]) -> list[Row]:
        texts = [row["text"] for row in given]
        found = classifier.predict_proba(texts, args.batch_size)
        return [
            {"text": text, **_classes(own, classifier.labels, args.top_k)}
            for text, own in zip(texts, found, strict=True)
        ]

    return Predictor("text", predict)


def _joint(folder: str, args: argparse.Namespace) -> Predictor:
    from mlx_bert.cli.predict_tasks import joint_predictor

    return Predictor("text", joint_predictor(folder, args))


def _sentence_mtl(folder: str, args: argparse.Namespace) -> Predictor:
    from mlx_bert.cli.predict_tasks import sentence_mtl_predictor

    return Predictor("text", sentence_mtl_predictor(folder, args))


def _classes(probabilities: Any, names: Sequence[str], top_k: int) -> Row:
    """The best class, its probability, and with ``top_k`` above 1 those of the best classes."""
    scored = {names[int(i)]: float(probabilities[i]) for i in (-probabilities).argsort(kind="stable")[:top_k]}
    label = next(iter(scored))
    return {"label": label, "confidence": scored[label], **({"scores": scored} if top_k > 1 else {})}


def _embedding(folder: str, args: argparse.Namespace) -> Predictor:
    raise ValueError(f"[predict] {folder} is an embedding model. Use: mlx-bert embed --model {folder}")


LOADERS: dict[str, Callable[[str, argparse.Namespace], Predictor]] = {
    "head": _head,
    MULTI_TASK: _multi_task,
    CROSS_ENCODER: _cross_encoder,
    MASKED_LM: _masked_lm,
    FEW_SHOT: _few_shot,
    JOINT: _joint,
    SENTENCE_MTL: _sentence_mtl,
    EMBEDDING: _embedding,
}
