"""A trial in a process of its own: for kernels known to crash or to hang, which would take the session with them."""

from __future__ import annotations

import json
import subprocess
import sys
import tempfile
from pathlib import Path
from typing import Any

CARRIED = ("--stabcheck-kernels", "--stabcheck-operation", "--stabcheck-device", "--hypothesis-profile", "--hypothesis-seed")


def run_apart(item: Any, kind: str) -> tuple[list[dict[str, Any]], dict[str, Any] | None]:
    """(findings, tally) of one item, run by another pytest; a process that ends without results is a finding of `kind`.

    The ledger is left out there, so that nothing is known and the trial is launched.
    """
    with tempfile.TemporaryDirectory(prefix="stabcheck-") as scratch:
        command = [sys.executable, "-m", "pytest", f"{item.path}::{item.name}", "--import-mode=importlib", "-q", "-p", "no:cacheprovider"]
        command += [f"--rootdir={item.config.rootpath}", f"--stabcheck-report-dir={scratch}", "--stabcheck-ledger="]
        command += [f"{name}={value}" for name in CARRIED if (value := item.config.getoption(name, None))]
        ended = subprocess.run(command, cwd=item.config.invocation_params.dir, capture_output=True, text=True)
        results = Path(scratch) / "results.json"
        if results.is_file() and (found := json.loads(results.read_text())["items"]):
            findings = [finding | {"files": [], "replay": ""} for finding in found[0]["findings"]]  # the files are gone with the folder
            if findings or found[0]["outcome"] != "failed":
                return findings, found[0]["tally"]
    return [_died(item.identity, kind, ended.returncode)], None


def _died(identity: dict[str, str], kind: str, status: int) -> dict[str, Any]:
    how = f"signal {-status}" if status < 0 else f"exit status {status}"
    head = f"BROKEN  {identity['property']} · {identity['kernel']} · {identity['dtype']}"
    text = f"{head}\n  cause    its process ended with {how} and no results"
    return identity | {"id": "", "kind": kind, "rows": 0, "vocab": 0, "steps": 0, "files": [], "replay": "", "text": text}
