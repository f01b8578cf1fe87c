"""Freed memory is kept: counted in page faults, in processes of their own."""

import os
import subprocess
import sys

import pytest

pytestmark = pytest.mark.skipif(sys.platform != "linux", reason="concerns the C library of Linux")

# Prints the page faults of five large results, before and within heap.as_installed().
PROBE = """
import resource
from mlx_bert import heap
import mlx.core as mx
mx.set_default_device(mx.cpu)
big = mx.zeros((12, 1024, 1024))  # 48 MB: glibc maps such pieces one by one
def faults():
    before = resource.getrusage(resource.RUSAGE_SELF).ru_minflt
    for _ in range(5):
        mx.eval(big + 1)
    return resource.getrusage(resource.RUSAGE_SELF).ru_minflt - before
mx.eval(big)
faults()
kept = faults()
with heap.as_installed():
    faults()
    returned = faults()
faults()
print(heap.kept, kept, returned, faults())
"""
PAGES = 5 * 12 * 1024 * 1024 * 4 // 4096  # of five results


def run(**environment):
    env = {**os.environ, **environment}
    done = subprocess.run([sys.executable, "-c", PROBE], env=env, capture_output=True, text=True, check=True)
    state, *counts = done.stdout.split()
    return state, [int(count) for count in counts]


@pytest.mark.skipif(os.confstr("CS_GNU_LIBC_VERSION") is None, reason="concerns glibc")
def test_freed_memory_is_used_again():
    state, (kept, returned, kept_again) = run()
    assert state == "True"
    assert max(kept, kept_again) < PAGES / 10
    assert returned > PAGES / 2  # also shows that the count sees what it should


def test_it_can_be_switched_off():
    state, (kept, _, _) = run(MLX_BERT_HEAP="0")
    assert state == "False"
    assert kept > PAGES / 2
