"""Recipes for CI: the composite action, run under bash beside a stand-in for the gate, the hook, and what docs/ci.md quotes."""

import importlib.util
import json
import os
import re
import subprocess
import sys
from pathlib import Path

import pytest

from stabcheck.devices import GPU, Device

HOME = Path(__file__).parents[1]
REAL = sorted((HOME / "reports/bench").glob("*.json"))
H200 = Device("cuda", "NVIDIA H200", "sm_90", GPU)


ACTION = (HOME / "action.yml").read_text()
RECIPES = (HOME / "docs/ci.md").read_text()
YAML = {"action.yml": ACTION, ".pre-commit-hooks.yaml": (HOME / ".pre-commit-hooks.yaml").read_text()}
YAML |= {text.splitlines()[0].removeprefix("# "): text for text in re.findall(r"```yaml\n(.*?)```", RECIPES, re.DOTALL)}


def scripts(text):
    """The shell scripts of `run:` keys."""
    lines = text.splitlines()
    for i, opening in enumerate(lines):
        if found := re.match(r"(\s*)(?:- )?run: (.*)", opening):
            depth = len(found[1])
            body = [found[2]] if found[2] != "|" else []
            for below in lines[i + 1 :] if not body else []:
                if below.strip() and len(below) - len(below.lstrip()) <= depth:
                    break
                body.append(below[depth + 2 :])
            yield "\n".join(body)


@pytest.mark.parametrize("name", YAML)
def test_yaml_is_well_formed(name):
    text = YAML[name]
    assert "\t" not in text
    assert all((len(row) - len(row.lstrip())) % 2 == 0 for row in text.splitlines() if row.strip())
    assert text.count("${{") == text.count("}}")
    if importlib.util.find_spec("yaml"):  # no dependency of the tests
        assert importlib.import_module("yaml").safe_load(text)


def test_no_script_of_ours_has_an_expression_in_its_text():
    found = [script for text in YAML.values() for script in scripts(text)]
    assert len(found) == 4
    assert not any("${{" in script for script in found)


def test_every_input_of_the_action_reaches_its_script():
    inputs = re.findall(r"^  ([\w-]+):$", ACTION.partition("inputs:\n")[2].partition("outputs:\n")[0], re.MULTILINE)
    env = dict(re.findall(r"(GATE_\w+): \$\{\{ inputs\.([\w-]+) \}\}", ACTION))
    assert sorted(env.values()) == sorted(inputs) == sorted(["targets", "device", "changed-since", "report-dir", "args", "python"])
    (script,) = scripts(ACTION)
    assert all(name.removeprefix("GATE_") in script for name in env)


def write(path, text):
    path.write_text(text)
    return path


@pytest.fixture
def action(tmp_path):
    """action(code=…, **inputs): (exit code, words stabcheck was given, outputs, standard error) of the action's script."""
    package = tmp_path / "path/stabcheck"
    package.mkdir(parents=True)
    (package / "__init__.py").touch()
    (package / "cli.py").write_text(
        "import json, os\ndef main(words):\n    json.dump(words, open('words.json', 'w'))\n    return int(os.environ['CODE'])\n"
    )
    given = {"TARGETS": "", "DEVICE": "auto", "SINCE": "", "REPORT_DIR": "reports/latest", "ARGS": "", "PYTHON": sys.executable}

    def run(code=0, installed=True, **inputs):
        (script,) = scripts(ACTION)
        write(tmp_path / "script", script)
        env = {f"GATE_{name}": value for name, value in (given | inputs).items()} | {"CODE": str(code), "PATH": os.environ["PATH"]}
        env |= {"GITHUB_OUTPUT": str(tmp_path / "outputs"), **({"PYTHONPATH": str(package.parent)} if installed else {})}
        isolated = [sys.executable, "-S"] if not installed else []  # without site-packages there is no stabcheck
        if isolated:
            write(tmp_path / "bare", f'#!/bin/sh\nexec "{sys.executable}" -S "$@"\n').chmod(0o755)
            env["GATE_PYTHON"] = str(tmp_path / "bare")
        ended = subprocess.run(
            ["bash", "--noprofile", "--norc", "-eo", "pipefail", "script"],
            cwd=tmp_path,
            env=env,
            capture_output=True,
            text=True,
            timeout=60,
        )
        words = tmp_path / "words.json"
        return ended.returncode, json.loads(words.read_text()) if words.exists() else None, (tmp_path / "outputs").read_text(), ended.stderr

    return run


DEFAULTS = ["--device=auto", "--report-dir=reports/latest"]


def test_the_action_runs_the_gate_and_passes_its_exit_code_on(action):
    assert action() == (0, ["gate", *DEFAULTS], "exit-code=0\n", "")
    assert action(code=4)[0] == 4


def test_the_action_takes_words_apart_as_a_shell_would_and_expands_nothing(action, tmp_path):
    code, words, outputs, _ = action(
        code=1,
        TARGETS="a.b:c  k.py\n*",
        SINCE="$(touch pwned); `touch pwned` --update-all",
        ARGS="-k 'accuracy and bf16' -n 2 \"$(touch pwned)\" ; touch pwned",
    )
    since = "--changed-since=$(touch pwned); `touch pwned` --update-all"
    options = ["-k", "accuracy and bf16", "-n", "2", "$(touch pwned)", ";", "touch", "pwned"]
    assert words == ["gate", "a.b:c", "k.py", "*", *DEFAULTS, since, *options]
    assert (code, outputs) == (1, "exit-code=1\n")
    assert not (tmp_path / "pwned").exists()


@pytest.mark.parametrize(
    ("inputs", "code", "told"),
    [
        ({"TARGETS": "my_pkg --update-all"}, 2, "--update-all in the input targets is an option"),
        ({"ARGS": "-k 'accuracy"}, 2, "No closing quotation; close its quotes"),
        ({"PYTHON": "/nowhere/python"}, 3, "no Python at /nowhere/python; set the input python"),
        ({"installed": False}, 3, "No module named 'stabcheck'; install stabcheck for"),
    ],
)
def test_an_action_that_cannot_run_the_gate_says_why(action, inputs, code, told):
    ended, words, outputs, err = action(**inputs)
    assert (ended, words, outputs) == (code, None, f"exit-code={code}\n")
    assert told in err


def test_the_conftest_of_the_recipe_gives_each_worker_a_gpu(monkeypatch):
    (recipe,) = re.findall(r"```python\n# conftest.py\n(.*?)```", RECIPES, re.DOTALL)
    seen = {}
    for worker in ("", "gw0", "gw1", "gw2"):
        monkeypatch.setenv("CUDA_VISIBLE_DEVICES", "3,5")
        monkeypatch.setenv("PYTEST_XDIST_WORKER", worker)
        exec(recipe, {})
        seen[worker] = os.environ["CUDA_VISIBLE_DEVICES"]
    assert seen == {"": "3,5", "gw0": "3", "gw1": "5", "gw2": "3"}
