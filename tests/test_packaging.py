"""What is shipped: one top level, whole, light to import, and in files short enough to read at one sitting."""

from __future__ import annotations

import os
import re
import shutil
import subprocess
import sys
import tomllib
import zipfile
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parents[1]
PYPROJECT = tomllib.loads((ROOT / "pyproject.toml").read_text(encoding="utf-8"))
SHIPPED = PYPROJECT["tool"]["setuptools"]["package-dir"]  # import name -> folder
LINES = {"stabcheck": 250, "kernels": 200, "properties": 120}  # the longest file allowed in each folder


def run_python(*arguments: str, cwd: Path, **environment: str) -> str:
    command = [sys.executable, *arguments]
    done = subprocess.run(command, cwd=cwd, env=os.environ | environment, capture_output=True, text=True, timeout=300)
    assert done.returncode == 0, f"{command} failed with exit {done.returncode}\n{done.stdout}\n{done.stderr}"
    return done.stdout.strip()


def files_under(folder: str) -> list[Path]:
    return sorted((ROOT / folder).rglob("*.py"))


# ---- the wheel


@pytest.fixture(scope="module")
def wheel(tmp_path_factory: pytest.TempPathFactory) -> zipfile.Path:
    """The wheel named by STABCHECK_WHEEL, else one built from a copy of the tree, where no earlier build/ can leak into it."""
    if given := os.environ.get("STABCHECK_WHEEL"):
        return zipfile.Path(ROOT / given)
    pytest.importorskip("setuptools", minversion="77", reason="building a wheel needs the extra `dev`")
    source = tmp_path_factory.mktemp("source")
    for name in ("pyproject.toml", "README.md", "LICENSE"):
        shutil.copy(ROOT / name, source)
    for folder in LINES:
        shutil.copytree(ROOT / folder, source / folder, ignore=shutil.ignore_patterns("__pycache__"))
    run_python("-m", "pip", "wheel", "--quiet", "--no-deps", "--no-build-isolation", "--wheel-dir", "dist", ".", cwd=source)
    return zipfile.Path(next((source / "dist").glob("*.whl")))


def test_the_wheel_has_one_top_level(wheel: zipfile.Path) -> None:
    assert {entry.name for entry in wheel.iterdir() if not entry.name.endswith(".dist-info")} == {"stabcheck"}


def test_the_wheel_has_every_module_and_no_other(wheel: zipfile.Path) -> None:
    """A new sub-package has to be listed in pyproject.toml; forgetting it goes unseen in an editable install."""
    inside = {name for name in wheel.root.namelist() if name.endswith(".py")}
    expected = {
        f"{package.replace('.', '/')}/{path.relative_to(ROOT / folder).as_posix()}"
        for package, folder in SHIPPED.items()
        for path in files_under(folder)
    }
    assert inside == expected


def test_the_wheel_has_the_pages_template(wheel: zipfile.Path) -> None:
    assert (wheel / "stabcheck/templates/report.html.j2").is_file()


def test_the_wheel_is_typed_and_licensed(wheel: zipfile.Path) -> None:
    names = wheel.root.namelist()
    assert "stabcheck/py.typed" in names
    assert any(re.fullmatch(r"stabcheck-[^/]+\.dist-info/licenses/LICENSE", name) for name in names)


def test_the_wheel_imports_from_where_it_is_installed(wheel: zipfile.Path, tmp_path: Path) -> None:
    """Kernels, mutants and properties come from the wheel itself, without the repository."""
    with zipfile.ZipFile(str(wheel.root.filename)) as plain:  # a Path's own root lists folders that early 3.11 cannot extract
        plain.extractall(tmp_path / "site")
    packages = ["stabcheck.kernels", "stabcheck.kernels.mutants", "stabcheck.properties"]
    code = f"from importlib.util import find_spec\nfor name in {packages}: print(find_spec(name).origin)"
    origins = run_python("-c", code, cwd=tmp_path, PYTHONPATH=str(tmp_path / "site")).splitlines()
    assert [Path(origin).relative_to(tmp_path / "site").parent.as_posix() for origin in origins] == [p.replace(".", "/") for p in packages]


# ---- imports


@pytest.mark.parametrize("module", ["stabcheck", "stabcheck.plugin"])
def test_importing_is_light(module: str, tmp_path: Path) -> None:
    """pytest loads the plugin in every session of every project of the environment: it must not pay for torch there."""
    code = f"import sys, {module}; print(*({{'torch', 'triton'}} & set(sys.modules)))"
    assert run_python("-c", code, cwd=tmp_path) == ""


def lint(line: str) -> str:
    pytest.importorskip("ruff", reason="the lint rules need the extra `dev`")
    command = [sys.executable, "-m", "ruff", "check", "--output-format=concise", "--stdin-filename=snippet.py", "-"]
    return subprocess.run(command, cwd=ROOT, input=line + "\n", capture_output=True, text=True, timeout=60).stdout


@pytest.mark.parametrize("line", ["import kernels", "import kernels.softmax", "from kernels import softmax", "import properties"])
def test_lint_rejects_the_names_other_distributions_own(line: str) -> None:
    assert "TID251" in lint(line)


def test_lint_accepts_the_installed_names() -> None:
    assert "TID251" not in lint("from stabcheck.kernels import softmax")


# ---- pins


def test_every_declared_dependency_has_a_pin_in_its_range() -> None:
    requirements = pytest.importorskip("packaging.requirements")
    project = PYPROJECT["project"]
    declared = [requirements.Requirement(line) for line in [*project["dependencies"], *project["optional-dependencies"]["dev"]]]
    lines = (ROOT / "constraints.txt").read_text(encoding="utf-8").splitlines()
    pins = dict(line.split("==") for line in lines if line and not line.startswith("#"))
    assert [str(one) for one in declared if pins.get(one.name) not in one.specifier] == []


# ---- length of files


def over_budget(files: list[Path], budget: int) -> list[str]:
    counts = {path: len(path.read_text(encoding="utf-8").splitlines()) for path in files}
    return [f"{path.name} has {count} lines, {budget} are allowed: split it" for path, count in counts.items() if count > budget]


@pytest.mark.parametrize(("folder", "budget"), LINES.items())
def test_files_stay_within_their_budget(folder: str, budget: int) -> None:
    assert over_budget(files_under(folder), budget) == []


def test_a_file_over_budget_is_named(tmp_path: Path) -> None:
    (tmp_path / "fits.py").write_text("pass\n" * 2)
    (tmp_path / "long.py").write_text("pass\n" * 3)
    assert over_budget(sorted(tmp_path.iterdir()), 2) == ["long.py has 3 lines, 2 are allowed: split it"]
