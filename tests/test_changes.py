"""--changed-since: in repositories made for it, which kernels a change can have touched, and which it leaves out.

Each test changes one file; a rule that is left out, or one that takes in too much, changes the names that come back.
"""

import functools
import importlib
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest
from planted import five_percent_too_much, recipe, trial

import stabcheck
from stabcheck import changes
from stabcheck.baselines import file_of
from stabcheck.changes import changed_files, sources, split
from stabcheck.errors import UsageError
from stabcheck.registry import make_kernel
from stabcheck.reproducers import save
from stabcheck.targets import load

DEF = "\ndef {0}(x, t):\n    return x\n"
FILES = {
    "repo_pkg/__init__.py": "",
    "repo_pkg/one.py": f"from repo_pkg import tables\nfrom repo_pkg.helpers import scale\nimport repo_pkg.deep.inner\n{DEF.format('one')}",
    "repo_pkg/two.py": f"from .beside import help\nfrom . import shared\nfrom .deep import *\n{DEF.format('two')}",
    "repo_pkg/deep/__init__.py": "",
    "repo_pkg/deep/inner.py": "from ..above import height\nfrom .. import tops\n",
    "repo_pkg/lazy.py": "def lazy(x, t):\n    import repo_pkg.late.inner\n    from repo_pkg.later import run\n    return run(x)\n",
    "repo_pkg/routes.py": DEF.format("fast"),
}
FILES |= dict.fromkeys(("README.md", "stabcheck-ledger.toml", "pyproject.toml", "requirements.txt", "csrc/kernel.cu"), "")
FILES |= dict.fromkeys([f"repo_pkg/{name}.py" for name in ("tables", "shared", "tops", "later", "late/__init__", "late/inner")], "")
FILES |= {"repo_pkg/helpers.py": "scale = 1\n", "repo_pkg/beside.py": "help = 1\n", "repo_pkg/above.py": "height = 1\n"}


def git(*arguments):
    subprocess.run(["git", *arguments], check=True, capture_output=True)


@pytest.fixture
def folder(tmp_path, monkeypatch):
    """Where a test works, with git's settings its own."""
    monkeypatch.chdir(tmp_path)
    monkeypatch.syspath_prepend(tmp_path)
    for key, value in {"CONFIG_GLOBAL": "/dev/null", "CONFIG_SYSTEM": "/dev/null", "CEILING_DIRECTORIES": str(tmp_path.parent)}.items():
        monkeypatch.setenv(f"GIT_{key}", value)
    for name in ("AUTHOR_NAME", "AUTHOR_EMAIL", "COMMITTER_NAME", "COMMITTER_EMAIL"):
        monkeypatch.setenv(f"GIT_{name}", "me")
    yield tmp_path
    for name in [name for name in sys.modules if name.partition(".")[0] == "repo_pkg"]:
        del sys.modules[name]


@pytest.fixture
def repo(folder):
    """A repository with one commit on the branch main, and the branch `work` checked out."""
    for name, text in FILES.items():
        (folder / name).parent.mkdir(parents=True, exist_ok=True)
        (folder / name).write_text(text)
    git("init", "-q", "-b", "main")
    git("add", ".")
    git("commit", "-qm", "start")
    git("checkout", "-qb", "work")
    return folder


def kernel(name, **declared):
    importlib.invalidate_caches()
    return make_kernel("temperature_softmax", getattr(importlib.import_module(f"repo_pkg.{name}"), name), name=name, **declared)


def touched(*kernels, since="main"):
    kernels = kernels or (kernel("one"), kernel("two"))
    places = Path("stabcheck-ledger.toml"), Path("reports/baselines"), Path("reports/corpus")
    inside, outside = split(kernels, since, *places)
    assert sorted(k.id for k in (*inside, *outside)) == sorted(k.id for k in kernels)
    return [k.name for k in inside]


def edit(path):
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text((path.read_text() if path.exists() else "") + "\n\n# changed\n")


# ---- what leads to a kernel


@pytest.mark.parametrize(
    ("file", "names"),
    [
        ("repo_pkg/one.py", ["one"]),
        ("repo_pkg/two.py", ["two"]),
        ("repo_pkg/helpers.py", ["one"]),  # from repo_pkg.helpers import scale
        ("repo_pkg/tables.py", ["one"]),  # from repo_pkg import tables
        ("repo_pkg/deep/inner.py", ["one"]),  # import repo_pkg.deep.inner
        ("repo_pkg/above.py", ["one"]),  # through inner: from ..above import height
        ("repo_pkg/tops.py", ["one"]),  # through inner: from .. import tops
        ("repo_pkg/beside.py", ["two"]),  # from .beside import help
        ("repo_pkg/shared.py", ["two"]),  # from . import shared
        ("repo_pkg/__init__.py", ["one", "two"]),  # runs before both
        ("repo_pkg/deep/__init__.py", ["one", "two"]),  # from .deep import *
        ("repo_pkg/unrelated.py", []),
        ("repo_pkg/new.py", []),
        ("README.md", []),
        ("tests/test_one.py", []),
        ("csrc/kernel.cu", ["one", "two"]),
        ("csrc/new.cuh", ["one", "two"]),
        ("pyproject.toml", ["one", "two"]),
        ("requirements.txt", ["one", "two"]),
        ("stabcheck-ledger.toml", []),
    ],
)
def test_a_change_touches_the_kernels_it_can_reach(repo, file, names):
    edit(repo / file)
    assert touched() == names


@pytest.mark.parametrize("file", ["repo_pkg/later.py", "repo_pkg/late/inner.py", "repo_pkg/late/__init__.py"])
def test_a_file_imported_only_when_the_kernel_runs_counts(repo, file):
    # fails for a package that is not loaded either: its modules are not looked for
    edit(repo / file)
    assert touched(kernel("lazy")) == ["lazy"]


def test_the_files_of_routes_and_helpers_count(repo):
    fast = importlib.import_module("repo_pkg.routes").fast
    edit(repo / "repo_pkg/routes.py")
    assert touched(kernel("one", routes={"fast": fast}), kernel("two", in_place=fast)) == ["one", "two"]


@pytest.mark.parametrize("wrap", [functools.partial, np.vectorize])
def test_a_kernel_whose_sources_nobody_knows_is_never_left_out(repo, wrap):
    # fails for an object of a library, as torch.library.custom_op makes one: the library's file is known, and never changes
    made = make_kernel("temperature_softmax", wrap(kernel("one").function), name="one")
    edit(repo / "repo_pkg/one.py")
    assert touched(made) == ["one"]


def test_a_project_below_the_interpreters_prefix_is_looked_at(repo, monkeypatch):
    """As /usr/src/app is below /usr; it was once taken for an installed library."""
    monkeypatch.setattr(sys, "base_prefix", str(repo.parent))
    edit(repo / "repo_pkg/one.py")
    assert touched() == ["one"]


def test_installed_libraries_and_the_standard_library_are_not_followed(repo):
    assert {path.name for path in sources(make_kernel("temperature_softmax", five_percent_too_much)) if repo not in path.parents} >= {
        "planted.py"
    }
    assert not [path for path in sources(kernel("one")) if repo.resolve() not in path.parents]


def test_a_target_given_as_a_file_is_found_by_its_odd_name(repo):
    path = repo / "größe x.py"
    path.write_text(DEF.format("fused"))
    assert touched(*load([f"{path}:fused"], "temperature_softmax")) == ["fused"]


def test_a_baseline_and_a_reproducer_touch_their_own_kernel(repo):
    edit(repo / "reports/baselines/sm_90" / file_of("temperature_softmax[two]"))
    assert touched() == ["two"]
    examined = trial(five_percent_too_much)
    start = recipe([0.0, 1.0])
    save(examined.finding(start, examined.examine(start)), kernel("one"), repo / "reports/corpus")
    assert touched() == ["one", "two"]


@pytest.mark.parametrize("package", [stabcheck, importlib.import_module("stabcheck.properties")], ids=["engine", "properties"])
def test_a_change_of_the_toolkit_touches_every_kernel(repo, monkeypatch, package):
    monkeypatch.setattr(changes, "changed_files", lambda revision: {Path(package.__path__[0]).resolve() / "verdicts.py"})
    assert touched() == ["one", "two"]


# ---- what counts as changed


def test_committed_staged_unstaged_untracked_and_deleted_files_have_changed(repo):
    edit(repo / "repo_pkg/one.py")
    git("commit", "-qam", "committed")
    edit(repo / "repo_pkg/two.py")
    git("add", ".")
    edit(repo / "repo_pkg/tables.py")
    edit(repo / "repo_pkg/new dir/nëw.py")
    git("rm", "-q", "repo_pkg/tops.py")
    names = {str(path.relative_to(repo.resolve())) for path in changed_files("main")}
    assert names == {f"repo_pkg/{name}.py" for name in ("one", "two", "tables", "tops", "new dir/nëw")}


def test_ignored_files_have_not_changed(repo):
    (repo / ".gitignore").write_text("reports/latest/\n")
    edit(repo / "reports/latest/results.txt")
    assert {path.name for path in changed_files("main")} == {".gitignore"}


def test_what_others_changed_meanwhile_is_not_ours(repo):
    edit(repo / "repo_pkg/one.py")
    git("commit", "-qam", "ours")
    git("checkout", "-q", "main")
    edit(repo / "repo_pkg/two.py")
    git("commit", "-qam", "theirs")
    git("checkout", "-q", "work")
    assert (touched(), touched(since="HEAD"), touched(since="main~1")) == (["one"], [], ["one"])


@pytest.mark.parametrize("relative", ["false", "true"])
def test_a_run_in_a_folder_of_the_repository_sees_changed_and_new_files_of_all_of_it(repo, monkeypatch, relative):
    # once where git is told diff.relative = true: files above the folder are not listed
    git("config", "diff.relative", relative)
    (repo / "repo_pkg/fresh.py").write_text(DEF.format("fresh"))
    kernels = kernel("one"), kernel("two"), kernel("fresh")
    edit(repo / "repo_pkg/one.py")
    (repo / "docs").mkdir()
    monkeypatch.chdir(repo / "docs")
    assert touched(*kernels) == ["one", "fresh"]


# ---- wrong use


@pytest.mark.parametrize("revision", ["nothing", "", "-x", "--all", "main..work"])
def test_an_unknown_revision_is_named_with_the_cure(repo, revision):
    with pytest.raises(UsageError, match=r"fetch it, with its history \(fetch-depth: 0\)") as raised:
        changed_files(revision)
    assert f"no revision {revision!r} that this branch comes from" in str(raised.value)


def test_a_branch_with_nothing_in_common_is_no_base(repo):
    git("checkout", "-q", "--orphan", "alone")
    git("commit", "-qm", "alone")
    with pytest.raises(UsageError, match=r"no revision 'main' that this branch comes from \(git merge-base: nothing in common\)"):
        changed_files("main")


def test_no_repository_and_one_without_a_commit_are_told(folder):
    with pytest.raises(UsageError, match="not a git repository"):
        changed_files("main")
    git("init", "-q")
    with pytest.raises(UsageError, match="no revision 'HEAD'"):
        changed_files("HEAD")


def test_a_machine_without_git_is_told(repo, monkeypatch):
    monkeypatch.setenv("PATH", str(repo))
    with pytest.raises(UsageError, match="--changed-since needs git, which is not installed"):
        changed_files("main")
