"""What tests of the command line share: small data, and reading what the verbs print."""

import json

FAST = ["--no-progress", "--save-every", "no", "--batch-size", "8", "--learning-rate", "3e-3"]
THINGS = ("dog", "cat", "tree", "book", "city", "house", "river", "sun")
MOODS = ("happy", "sad", "angry")


def lines(path, rows):
    path.write_text("".join(json.dumps(row) + "\n" for row in rows))
    return str(path)


def labelled(count=48):
    """Texts whose second word says the mood and whose third says the thing."""
    words = {"pos": "good", "neg": "bad", "mixed": "old"}
    names = list(words)
    return [
        {"text": f"the {words[names[n % 3]]} {THINGS[n % 4]} " + "is here " * (n % 3), "mood": names[n % 3],
         "thing": THINGS[n % 4]}
        for n in range(count)
    ]  # fmt: skip


def report(command, output, data, *options):
    return json.loads(command("evaluate", "--model", output, "--data", data, "--json", *options))


def predictions(command, output, *argv):
    printed = command("predict", "--model", output, "--format", "jsonl", *argv)
    return [json.loads(line) for line in printed.splitlines()]
