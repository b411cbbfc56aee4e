"""A reproducer about a kernel in a file: found by its path, by the end of that path from elsewhere, or refused in one line."""

import json

import pytest
from planted import CPU, LAWS, recipe

from stabcheck.cli import main
from stabcheck.errors import UsageError
from stabcheck.reproducers import kernel_of, read, replay, save
from stabcheck.targets import load
from stabcheck.trial import Trial

START = recipe([0.0, 1.0], temperature=0.5)
KERNELS = """
import torch

def good(x, t):
    z = (x.float() - x.float().amax(-1, keepdim=True)) / t[:, None]
    return torch.softmax(z.double(), -1).to(x.dtype)

def bad(x, t):
    return good(x, t) * 1.05
"""


def saved(target, directory):
    """A saved finding on a kernel in a file, and its own file."""
    (loaded,) = load([target], "temperature_softmax")
    examined = Trial(loaded, LAWS["accuracy"], "fp32", CPU)
    finding = save(examined.finding(START, examined.examine(START)), loaded, directory)
    return finding, directory / f"{finding.id}.json"


def replayed(file, allowed):
    reproducer = read(file)
    return replay(reproducer, kernel_of(reproducer, allowed), CPU)


def test_a_kernel_in_a_file_replays_by_its_path(tmp_path):
    path = tmp_path / "kernels_by_path.py"
    path.write_text(KERNELS)
    _, file = saved(f"{path}:bad", tmp_path)
    assert replayed(file, [str(path)]) is not None


def test_a_kernel_in_its_place_is_told_fixed(tmp_path):
    for name in ("mine.py", "other.py"):
        (tmp_path / name).write_text(KERNELS)
    _, file = saved(f"{tmp_path / 'mine.py'}:bad", tmp_path)
    assert replayed(file, [f"{tmp_path / 'other.py'}:good"]) is None
    assert replayed(file, [f"{tmp_path / 'other.py'}:bad"]) is not None


@pytest.fixture
def moved(tmp_path, monkeypatch):
    """The file of a finding on kernels/naive.py:bad, that path being relative to a directory that is not the current one."""
    (tmp_path / "project/kernels").mkdir(parents=True)
    (tmp_path / "project/kernels/naive.py").write_text(KERNELS)
    (tmp_path / "elsewhere").mkdir()
    monkeypatch.chdir(tmp_path / "project")
    finding, file = saved("kernels/naive.py:bad", tmp_path)
    monkeypatch.chdir(tmp_path / "elsewhere")
    assert finding.target == "kernels/naive.py:bad"
    return file


@pytest.mark.parametrize("named", ["{}/project/kernels/naive.py", "../project/kernels/naive.py", "../project/kernels/../kernels/naive.py"])
def test_from_another_directory_a_kernel_in_a_file_replays_by_the_path_from_there(moved, capsys, named):
    named = named.format(moved.parent)
    assert main(["replay", str(moved), "--kernels", named, "--device=cpu"]) == 1
    assert "FAILED" in capsys.readouterr().out


def test_a_linked_file_is_known_by_the_name_it_was_given(moved, tmp_path):
    (tmp_path / "project/kernels/naive.py").rename(tmp_path / "naive_2.py")
    (tmp_path / "project/kernels/naive.py").symlink_to(tmp_path / "naive_2.py")
    assert replayed(moved, [str(tmp_path / "project/kernels/naive.py")]) is not None


def test_its_other_functions_are_found_beside_it(moved, tmp_path):
    data = json.loads(moved.read_text()) | {"functions": {"in_place": "kernels/naive.py:good"}, "routes": {"a": "kernels/naive.py:bad"}}
    moved.write_text(json.dumps(data))
    made = kernel_of(read(moved), [str(tmp_path / "project/kernels/naive.py")])
    assert (made.in_place.__name__, made.routes["a"].__name__) == ("good", "bad")


@pytest.mark.parametrize("named", ["naive.py", "other/naive.py", "kernels/not_naive.py", "xkernels/naive.py", "naive", "kernels"])
def test_a_file_whose_path_ends_otherwise_is_not_taken_for_it(moved, tmp_path, named):
    file = tmp_path / "elsewhere" / named
    file.parent.mkdir(exist_ok=True)
    file.write_text("raise SystemExit('imported')")
    with pytest.raises(UsageError, match=r"is not imported unasked; allow it with --kernels path/to/kernels/naive\.py$"):
        kernel_of(read(moved), [str(file)])


def test_of_two_files_that_end_alike_neither_is_taken(moved, tmp_path):
    (tmp_path / "other/kernels").mkdir(parents=True)
    two = [str(tmp_path / "project/kernels/naive.py"), str(tmp_path / "other/kernels/naive.py")]
    (tmp_path / "other/kernels/naive.py").write_text(KERNELS)
    with pytest.raises(UsageError, match=r"may be .*project.* or .*other.*; name one of them"):
        kernel_of(read(moved), two)
    assert replayed(moved, [two[0], two[0]]) is not None


def test_of_a_file_that_was_named_from_its_root_the_cure_is_to_name_another(moved):
    moved.write_text(moved.read_text().replace("kernels/naive.py:bad", "/gone/naive.py:bad"))
    with pytest.raises(UsageError, match=r"allow it with --kernels path/to/naive\.py:bad$"):
        kernel_of(read(moved), [])


@pytest.mark.parametrize("named", ["nofile.py", "nofile.py:bad"])
def test_kernels_of_a_file_that_is_not_there_are_wrong_use(moved, capsys, named):
    assert main(["replay", str(moved), str(moved), "--kernels", named, "--device=cpu"]) == 2
    told = f"stabcheck: --kernels {named}: there is no file nofile.py; check the path, which starts from the current directory\n"
    assert capsys.readouterr() == ("", told)
