"""An interrupt is heard once, also where Python drops it."""

from __future__ import annotations

import subprocess
import sys

LOST = """
import os, signal, time, weakref
from harness.command.interrupts import keep_interrupts

class One:
    pass

def callback(reference):
    os.kill(os.getpid(), signal.SIGINT)
    for _ in range(1000):  # the signal comes in here at the latest
        pass

signal.signal(signal.SIGINT, signal.default_int_handler)  # a shell may have had us ignore it
keep_interrupts()
one = One()
reference = weakref.ref(one, callback)
try:
    del one
    time.sleep(30)
except KeyboardInterrupt:
    print("heard")
"""


def test_an_interrupt_inside_of_a_callback_is_heard_without_a_second_one() -> None:
    done = subprocess.run(
        [sys.executable, "-c", LOST], capture_output=True, text=True, timeout=20, check=True
    )
    assert done.stdout == "heard\n"
    assert done.stderr == ""


def test_what_else_is_lost_is_told_as_before() -> None:
    script = (
        "from harness.command.interrupts import keep_interrupts\n"
        "keep_interrupts()\n"
        "class One:\n"
        "    def __del__(self): raise ValueError('seen')\n"
        "One()\n"
    )
    done = subprocess.run(
        [sys.executable, "-c", script], capture_output=True, text=True, timeout=20, check=True
    )
    assert "ValueError: seen" in done.stderr
