import platform
import subprocess
import sys

import pytest

from harness.records.memory import forget_peak, peak_memory

PROGRAM = """
import resource, torch
from harness.records.memory import keep_freed_memory

def faults():
    return resource.getrusage(resource.RUSAGE_SELF).ru_minflt

def rounds():
    before = faults()
    for _ in range(8):
        torch.zeros(2**23)
    return faults() - before

lost = rounds()
keep_freed_memory()
rounds(), rounds()  # aligned blocks fit into their like only after some turns
print(lost, rounds())
"""


@pytest.mark.skipif(
    platform.libc_ver()[0] != "glibc", reason="other allocators keep what they will"
)
def test_freed_blocks_are_used_again_without_new_pages():
    done = subprocess.run(
        [sys.executable, "-c", PROGRAM], capture_output=True, text=True, check=True
    )
    lost, kept = map(int, done.stdout.split())
    assert kept < lost / 20


@pytest.mark.skipif(sys.platform != "linux", reason="other systems do not forget a peak")
def test_a_peak_is_of_what_came_after_it_was_forgotten():
    size = 2**28
    for _ in range(2):
        forget_peak()
        before = peak_memory()
        block = bytearray(size)
        assert 0.9 * size < peak_memory() - before < 1.1 * size
        del block
