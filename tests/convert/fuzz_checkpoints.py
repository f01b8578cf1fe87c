"""Mutated checkpoints, each inspected and converted; run by test_convert_fuzz.py in a process of its own.

python fuzz_checkpoints.py SEEDS WORK CASES [NUMBER]: SEEDS holds good checkpoints, WORK is empty, NUMBER chooses other
mutations. Prints a JSON summary.
"""

from __future__ import annotations

import json
import os
import random
import resource
import shutil
import struct
import sys
import time
import traceback
import warnings
from pathlib import Path

import mlx_bert  # noqa: F401
from convert.conversion import convert_checkpoint
from convert.inspection import inspect_checkpoint

# What a file may hold instead of what it should: numbers at the edges, other types, paths, deep nesting.
STRANGE = [
    *(0, -1, 1, 3, 2**31, 2**31 - 1, 2**32, 2**63, 2**64, 10**30, 1.5, -0.0, 1e308, float("nan"), float("inf")),
    *(None, True, False, "", "x", "../x", "/etc/passwd", "a" * 10_000, "\0", "é" * 50, "F64", "BF16", "I64", "F8_E4M3"),
    *([], {}, [[]], [0], [-1], [2**40, 2**40], {"a": {}}, ["gelu"], {"0": "x"}, [0, 0], [10**18, 10**18]),
]


def mutate_json(value, random: random.Random):
    """The value with one place, at any depth, changed, removed, doubled or renamed."""
    if isinstance(value, dict) and value and random.random() < 0.85:
        key = random.choice(list(value))
        action = random.random()
        changed = dict(value)
        if action < 0.15:
            del changed[key]
        elif action < 0.25:
            changed[str(random.choice(STRANGE))[:50]] = changed.pop(key)
        else:
            changed[key] = mutate_json(value[key], random)
        return changed
    if isinstance(value, list) and value and random.random() < 0.85:
        place = random.randrange(len(value))
        changed = list(value)
        action = random.random()
        if action < 0.15:
            del changed[place]
        elif action < 0.3:
            changed.insert(place, changed[place])
        else:
            changed[place] = mutate_json(changed[place], random)
        return changed
    if isinstance(value, int) and not isinstance(value, bool) and random.random() < 0.4:
        return value + random.choice([-1, 1, 64, -64, 2**20, 2**33])
    return random.choice(STRANGE)


def mutate_bytes(content: bytes, random: random.Random) -> bytes:
    """Some bytes flipped, a stretch removed, repeated or overwritten, or the end cut off."""
    content = bytearray(content)
    for _ in range(random.choice([1, 1, 2, 8, 64])):
        place = random.randrange(max(len(content), 1))
        length = random.choice([1, 1, 2, 8, 100])
        action = random.random()
        if not content:
            break
        if action < 0.5:
            content[place] = random.randrange(256)
        elif action < 0.65:
            del content[place : place + length]
        elif action < 0.8:
            content[place:place] = content[place : place + length]
        elif action < 0.95:
            content[place : place + length] = random.randbytes(length)
        else:
            del content[place:]
    return bytes(content)


def mutate_safetensors(content: bytes, random: random.Random) -> bytes:
    """Mostly the header as JSON, sometimes its length, sometimes any byte."""
    (length,) = struct.unpack("<Q", content[:8])
    action = random.random()
    if action < 0.1:
        return struct.pack("<Q", random.choice([0, 1, length - 1, length + 1, 2**31, 2**63, 2**64 - 1])) + content[8:]
    if action < 0.3:
        return mutate_bytes(content[: 8 + length], random) + content[8 + length :]
    header = json.loads(content[8 : 8 + length])
    for _ in range(random.choice([1, 1, 2, 4])):
        header = mutate_json(header, random)
    encoded = json.dumps(header).encode()
    return struct.pack("<Q", len(encoded)) + encoded + content[8 + length :]


def mutate_file(path: Path, random: random.Random) -> None:
    content = path.read_bytes()
    if path.suffix == ".safetensors":
        content = mutate_safetensors(content, random)
    elif path.suffix == ".json" and random.random() < 0.8:
        data = json.loads(content)
        for _ in range(random.choice([1, 1, 2, 4])):
            data = mutate_json(data, random)
        content = json.dumps(data).encode()
    elif path.suffix == ".bin" and (start := content.find(b"\x80\x02")) >= 0 and random.random() < 0.8:
        end = content.find(b"PK", start) if content[:2] == b"PK" else len(content) // 3
        content = content[:start] + mutate_bytes(content[start:end], random) + content[end:]
    else:
        content = mutate_bytes(content, random)
    path.write_bytes(content)


def attempt(source: Path, output: Path, options: dict) -> str:
    """``"converted"``, ``"refused"``, or what went wrong."""
    try:
        inspect_checkpoint(source)
        convert_checkpoint(source, output, **options)
        return "converted"
    except (ValueError, OSError) as error:
        if output.exists():
            return f"a half-written output after {error!r}"
        return "refused" if str(error).startswith("[") else f"an error that says not where: {error!r}"
    except BaseException as error:
        frame = traceback.extract_tb(error.__traceback__)[-1]
        return f"{type(error).__name__}: {error} in {frame.filename}:{frame.lineno}"


def peak_mib() -> float:
    """This process's largest memory so far; Linux's ru_maxrss begins at that of the process that started it."""
    status = Path("/proc/self/status")
    if status.is_file():
        return int(next(line for line in status.read_text().splitlines() if line.startswith("VmHWM")).split()[1]) / 1024
    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 2**20


def main(seeds: Path, work: Path, cases: int, number: int = 0) -> dict[str, object]:
    random_ = random.Random(number)
    targets = sorted(
        path.relative_to(seeds)
        for path in seeds.rglob("*")
        if path.suffix in (".json", ".bin", ".safetensors") or path.name == "vocab.txt"
    )
    warnings.simplefilter("ignore")
    os.fsync = lambda _: None  # hundreds of waits for the disk
    summary = {"converted": 0, "refused": 0, "failures": [], "slowest": 0.0}
    convert_checkpoint(seeds / "sentence", work / "warm", quantization={}, verify=True)
    shutil.rmtree(work / "warm")
    before = peak_mib()
    for case in range(cases):
        target = targets[case % len(targets)]
        source = work / "in"
        shutil.copytree(seeds / target.parts[0], source)
        mutate_file(source.joinpath(*target.parts[1:]), random_)
        options = random_.choice([{}, {"dtype": "float16"}, {"quantization": {}}, {"verify": True}])
        started = time.monotonic()
        outcome = attempt(source, work / "out", options)
        summary["slowest"] = max(summary["slowest"], time.monotonic() - started)
        shutil.rmtree(source)
        shutil.rmtree(work / "out", ignore_errors=True)
        if left := list(work.iterdir()):
            outcome = f"left behind {left}"
        if outcome in summary:
            summary[outcome] += 1
        else:
            summary["failures"].append(f"case {case}, {target}, {options}: {outcome}")
    summary["growth_mib"] = peak_mib() - before
    return summary


if __name__ == "__main__":
    print(json.dumps(main(Path(sys.argv[1]), Path(sys.argv[2]), *map(int, sys.argv[3:]))))
