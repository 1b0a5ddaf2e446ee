import platform
import subprocess
import sys

import pytest

PROGRAM = """
import resource, torch
from harness.allocator import keep_freed_memory

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
