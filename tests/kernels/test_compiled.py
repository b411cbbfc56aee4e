"""What Triton compiles the kernels to for a GPU, which takes none: rows are read 16 bytes at a time, and addresses make no variants."""

import os
import subprocess
import sys
from pathlib import Path

import pytest

SCRIPT = Path(__file__).with_name("compiled.py")
KERNELS = ("logsumexp sums", "softmax online", "cross_entropy forward", "cross_entropy backward", "filtering write", "speculative emit")


@pytest.fixture(scope="module")
def compiled(tmp_path_factory):
    """{kernel: {whether addresses were said to be aligned: (wide loads and stores, others)}}, from a process that does not interpret."""
    environment = {k: v for k, v in os.environ.items() if k != "TRITON_INTERPRET"} | {"TRITON_CACHE_DIR": str(tmp_path_factory.mktemp("t"))}
    ran = subprocess.run([sys.executable, SCRIPT, *KERNELS], capture_output=True, text=True, timeout=300, env=environment)
    assert ran.returncode == 0, ran.stderr
    lines = [line.split("\t") for line in ran.stdout.splitlines()]
    return {(name, said == "True"): (int(wide), int(narrow)) for name, said, wide, narrow in lines}


@pytest.mark.parametrize("name", KERNELS)
def test_rows_are_read_16_bytes_at_a_time_whatever_triton_knows_of_their_address(compiled, name):
    wide, narrow = compiled[name, False]
    assert wide >= 4
    assert (wide, narrow) == compiled[name, True]
