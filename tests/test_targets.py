"""Kernels are found under every name that users give, and a wrong name says what is wrong with it and what to do."""

import sys

import pytest

from stabcheck import registry
from stabcheck.errors import UsageError
from stabcheck.targets import dotted, load

KERNEL = """
import stabcheck

@stabcheck.kernel("temperature_softmax", dtypes=["fp32"])
def {name}(x, t):
    return x

def plain(x, t):
    return x

number = 3
"""


@pytest.fixture
def folder(tmp_path, monkeypatch):
    """A package `pkg_under_test` with kernels here and there, on the path."""
    monkeypatch.setattr(registry, "_REGISTERED", dict(registry._REGISTERED))
    package = tmp_path / "pkg_under_test"
    (package / "mutants").mkdir(parents=True)
    for path, text in {
        "__init__.py": "",
        "one.py": KERNEL.format(name="first"),
        "two.py": KERNEL.format(name="second"),
        "_private.py": KERNEL.format(name="hidden"),
        "mutants/__init__.py": "",
        "mutants/three.py": KERNEL.format(name="mutant"),
        "empty.py": "",
        "broken.py.txt": "",
    }.items():
        (package / path).write_text(text)
    monkeypatch.syspath_prepend(tmp_path)
    yield tmp_path
    for name in [m for m in sys.modules if m.startswith(("pkg_under_test", "stabcheck_file_"))]:
        del sys.modules[name]


def names(*targets, operation=None):
    return [k.name for k in load(targets, operation)]


def test_a_package_means_its_modules_but_no_mutants_and_nothing_private(folder):
    assert names("pkg_under_test") == ["first", "second"]


def test_mutants_are_found_when_asked_for(folder):
    assert names("pkg_under_test.mutants") == ["mutant"]


@pytest.mark.parametrize("target", ["pkg_under_test.one", "pkg_under_test.one:first"])
def test_a_module_or_one_function_of_it(folder, target):
    assert names(target) == ["first"]


@pytest.mark.parametrize("end", ["", ":first"])
def test_a_file_or_one_function_of_it(folder, end):
    assert names(f"{folder / 'pkg_under_test/one.py'}{end}") == ["first"]


def test_a_function_that_is_not_registered_is_taken_as_the_operation_given(folder):
    assert names("pkg_under_test.one:plain", operation="temperature_softmax") == ["plain"]


def test_a_kernel_named_twice_is_loaded_once(folder):
    assert names("pkg_under_test.one", "pkg_under_test.one:first", "pkg_under_test") == ["first", "second"]


def test_two_files_of_one_name_in_folders_of_one_name_are_two(folder):
    """a/kernels/softmax.py and b/kernels/softmax.py hold different kernels."""
    for place, name in (("a", "alpha"), ("b", "beta")):
        (folder / place / "kernels").mkdir(parents=True)
        (folder / place / "kernels/softmax.py").write_text(KERNEL.format(name=name))
    assert names(*(str(folder / place / "kernels/softmax.py") for place in "ab")) == ["alpha", "beta"]


def test_a_file_may_import_its_neighbours_by_their_package(folder):
    (folder / "uses.py").write_text(
        "from pkg_under_test.one import plain\nimport stabcheck\nk = stabcheck.kernel('temperature_softmax')(plain)\n"
    )
    assert load([f"{folder / 'uses.py'}:k"], "temperature_softmax")


def test_a_file_may_import_what_lies_beside_it(folder):
    (folder / "apart").mkdir()
    (folder / "apart/helper_under_test.py").write_text("def plain(x, t):\n    return x\n")
    (folder / "apart/uses.py").write_text("from helper_under_test import plain\n")
    assert load([f"{folder / 'apart/uses.py'}:plain"], "temperature_softmax")


def test_a_reproducer_can_name_where_a_file_is(folder):
    path = folder / "pkg_under_test/one.py"
    assert load([str(path)])[0].target == f"{path}:first"


@pytest.mark.parametrize("target", ["my_pkg/kernels.py:one", "src/my_pkg/kernels.py:one", "my_pkg.kernels:one"])
def test_a_kernel_goes_by_one_name_however_it_is_given(target):
    assert dotted(target) == "my_pkg.kernels:one"


def test_an_error_in_a_file_is_told_with_its_line(tmp_path):
    (tmp_path / "raises.py").write_text("import math\n\nmath.sqrt(-1)\n")
    with pytest.raises(UsageError, match=r"cannot import .*raises.py: ValueError: .*; mend .*raises.py, line 3"):
        load([str(tmp_path / "raises.py")])


def test_a_directory_is_no_target(tmp_path):
    with pytest.raises(UsageError, match="is a directory; name its files, or the package as it is imported"):
        load([str(tmp_path)])


@pytest.mark.parametrize(
    ("target", "told"),
    [
        ("no_such_module", r"cannot import no_such_module: ModuleNotFoundError.*; install it or run where it can be imported"),
        ("no/such/file.py", r"no file no/such/file.py; check the path"),
        ("pkg_under_test.gone", r"cannot import pkg_under_test.gone: ModuleNotFoundError.*; install it or run where it can be imported"),
        ("pkg_under_test.empty", r"pkg_under_test.empty registers no kernel; decorate one with @stabcheck.kernel"),
        ("pkg_under_test.one:frist", r"pkg_under_test.one has no function 'frist'; it has first"),
        ("pkg_under_test.one:number", r"pkg_under_test.one has no function 'number'"),
        ("pkg_under_test.one:plain", r"is not registered; say what it computes, e.g. --operation temperature_softmax"),
        ("", r"cannot import : ValueError"),
        (":first", r"cannot import :first: ValueError"),
        ("..", r"\.\. is a directory; name its files"),
    ],
)
def test_a_wrong_target_is_told(folder, target, told):
    with pytest.raises(UsageError, match=told) as error:
        load([target])
    assert "\n" not in str(error.value)


@pytest.mark.parametrize("text", ["def (", "1 / 0", "import no_such_thing", "raise SystemExit(3)", "raise ValueError('two\\nlines')"])
def test_a_file_that_cannot_be_imported_is_told_in_one_line_and_can_be_mended(folder, text):
    path = folder / "mine.py"
    path.write_text(text)
    with pytest.raises(UsageError, match="cannot import") as error:
        load([str(path)])
    assert "\n" not in str(error.value)
    path.write_text(KERNEL.format(name="mended"))
    assert names(str(path)) == ["mended"]


def test_an_unknown_operation_is_told(folder):
    with pytest.raises(UsageError, match="unknown operation 'softmx'"):
        load(["pkg_under_test.one:plain"], "softmx")
