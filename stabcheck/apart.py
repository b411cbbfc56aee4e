"""A trial in a process of its own: for kernels known to crash or to hang, which would take the session with them."""

from __future__ import annotations

import json
import os
import subprocess
import sys
import tempfile
from pathlib import Path
from typing import Any

import pytest

from stabcheck.errors import UsageError

CARRIED = (
    "--stabcheck-kernels",
    "--stabcheck-operation",
    "--stabcheck-device",
    "--stabcheck-corpus",
    "--hypothesis-profile",
    "--hypothesis-seed",
)
SECONDS = 1800  # beyond the watchdog's own limit, which the process keeps as well
BEGAN = "stabcheck: "  # the header, which is shown once all is collected
TAIL = 400  # characters of an error that is handed on


def run_apart(item: Any, kind: str) -> tuple[list[dict[str, Any]], dict[str, Any] | None]:
    """(findings, tally) of one item, run by another pytest over the same places; one that dies on the way is a finding of `kind`.

    The ledger is left out there, so that nothing is known and the trial is launched. What goes wrong outside the kernel fails the item.
    """
    with tempfile.TemporaryDirectory(prefix="stabcheck-") as scratch:
        try:
            ended = subprocess.run(
                _command(item, scratch),
                cwd=item.config.invocation_params.dir,
                env=os.environ | {"PYTHONUNBUFFERED": "1"},  # what it showed before it died
                capture_output=True,
                text=True,
                timeout=SECONDS,
            )
        except subprocess.TimeoutExpired:
            return [_died(item.identity, kind, f"was ended after {SECONDS} s")], None
        results = Path(scratch) / "results.json"
        items = json.loads(results.read_text())["items"] if results.is_file() else []
    found = [one for one in items if one.get("corpus", "") == getattr(item, "corpus", "")]
    if found and found[0]["outcome"] == "skipped":
        pytest.skip(found[0]["reason"])
    if found and (found[0]["findings"] or found[0]["outcome"] != "failed"):
        return [_without_files(finding) for finding in found[0]["findings"]], found[0]["tally"]
    if found or BEGAN not in ended.stdout:
        told = (ended.stdout + ended.stderr).strip()[-TAIL:]
        raise UsageError(f"could not be run in a process of its own, as the ledger asks for with kind {kind!r}; mend this first:\n{told}")
    status = ended.returncode
    how = f"ended with signal {-status} and no results" if status < 0 else f"ended with exit status {status} and no results"
    return [_died(item.identity, kind, how)], None


def _command(item: Any, scratch: str) -> list[str]:
    config = item.config
    places = [*config.args, *(["--pyargs"] if config.getoption("pyargs", False) else [])]
    command = [sys.executable, "-m", "pytest", *places, "--import-mode=importlib", "-q", "-o", f"cache_dir={scratch}/cache"]
    command += ["-n0"] if config.pluginmanager.hasplugin("xdist") else []
    command += [f"--rootdir={config.rootpath}", *(["-c", str(config.inipath)] if config.inipath else [])]
    command += [f"--stabcheck-report-dir={scratch}", "--stabcheck-ledger=", f"--stabcheck-only={'|'.join(item.identity.values())}"]
    command += [f"{name}={value}" for name in CARRIED if (value := config.getoption(name, None))]
    return command + [word for setting in config.getoption("override_ini", None) or [] for word in ("-o", setting)]


def _without_files(finding: dict[str, Any]) -> dict[str, Any]:
    """A finding whose files are gone with the other process's folder."""
    text = [line for line in finding["text"].splitlines() if not line.startswith(("  replay", "  script"))]
    return finding | {"files": [], "replay": "", "text": "\n".join(text)}


def _died(identity: dict[str, str], kind: str, how: str) -> dict[str, Any]:
    head = f"BROKEN  {identity['property']} · {identity['kernel']} · {identity['dtype']}"
    found = {"id": "", "kind": kind, "rows": 0, "vocab": 0, "steps": 0, "files": [], "replay": ""}
    return identity | found | {"text": f"{head}\n  cause    its process {how}"}
