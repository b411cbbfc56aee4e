"""A reproducer is written whole or not at all, read back or refused in one line, and replays without importing what nobody named."""

import json
import sys

import planted_losses as losses
import pytest
from planted import CPU, five_percent_too_much, kernel, recipe, recipe_of, right, trial
from planted_losses import LOSS, loss_too_large

from stabcheck import reproducers
from stabcheck.cli import main
from stabcheck.errors import UsageError
from stabcheck.recipe import Layout
from stabcheck.reproducers import find, kernel_of, read, replay, save

START = recipe([0.0, 1.0], temperature=0.5, layout=Layout(3))


def saved(directory, function=five_percent_too_much, law="accuracy", start=START, **declared):
    """A saved finding and its file."""
    examined = trial(function, law, start.dtype, **declared)
    finding = save(examined.finding(start, examined.examine(start)), examined.kernel, directory)
    return finding, directory / f"{finding.id}.json"


# ---- writing


def test_a_saved_finding_reads_back(tmp_path):
    finding, file = saved(tmp_path)
    back = read(file)
    assert (back.id, back.kind, back.property_name, back.dtype) == (finding.id, "wrong", "accuracy", "fp32")
    assert back.recipe == START
    assert back.text == finding.text()
    assert back.target == "planted:five_percent_too_much"


def test_it_is_json_a_person_can_read(tmp_path):
    _, file = saved(tmp_path)
    data = json.loads(file.read_text(), parse_constant=lambda name: pytest.fail(name))
    assert data["schema"] == "stabcheck-reproducer/1"
    assert data["text"][0].startswith("BROKEN  accuracy")
    assert {"torch", "python"} <= set(data["versions"])


def test_what_the_kernel_declared_is_kept(tmp_path):
    _, file = saved(tmp_path, policies={"empty_row": "zeros"}, tile=64, blocks=(64, 128))
    again = kernel_of(read(file), ["planted"])
    assert (dict(again.policies), again.tile, tuple(again.blocks)) == ({"empty_row": "zeros"}, 64, (64, 128))


def test_nothing_is_overwritten_when_writing_fails(tmp_path, monkeypatch):
    finding, file = saved(tmp_path)
    before = file.read_bytes()
    monkeypatch.setattr(reproducers.os, "replace", lambda *paths: (_ for _ in ()).throw(OSError("disk full")))
    with pytest.raises(OSError):
        save(finding.with_(detail="other"), kernel(five_percent_too_much), tmp_path)
    assert file.read_bytes() == before


def test_no_temporary_file_is_left(tmp_path):
    saved(tmp_path)
    assert sorted(p.suffix for p in tmp_path.iterdir()) == [".json", ".py"]


def test_the_same_finding_is_written_to_the_same_file(tmp_path):
    assert saved(tmp_path)[1] == saved(tmp_path)[1]


WRONG_LOSS = recipe_of(
    LOSS,
    [0.0, 1.0],
    [2.0, 0.0],
    inputs={"target": [1, -100], "upstream": [0.5, 1.0]},
    options={"ignore_index": 0, "label_smoothing": 0.1, "reduction": "mean"},
)


def test_options_read_back_with_their_types(tmp_path):
    _, file = saved(tmp_path, loss_too_large, start=WRONG_LOSS, operation=LOSS)
    assert read(file).recipe == WRONG_LOSS
    assert [type(value) for _, value in read(file).recipe.options] == [int, float, str]


def test_a_finding_with_options_fails_again_and_a_right_kernel_is_told_fixed(tmp_path):
    finding, file = saved(tmp_path, losses.divides_by_all_rows, start=WRONG_LOSS, operation=LOSS)  # wrong under "mean" only
    assert replay(read(file), kernel(losses.divides_by_all_rows, LOSS, name="kernel"), CPU).id == finding.id
    assert replay(read(file), kernel(losses.right_loss, LOSS), CPU) is None


def test_the_options_a_kernel_supports_are_kept(tmp_path):
    limits = {"softcap": (0.0,), "ignore_index": (-100, 0)}
    _, file = saved(tmp_path, loss_too_large, start=WRONG_LOSS, operation=LOSS, options=limits)
    again = kernel_of(read(file), ["planted_losses"])
    assert {name: tuple(values) for name, values in again.options.items()} == limits


# ---- reading


def test_replay_names_a_bad_file_once(tmp_path, monkeypatch, capsys):
    monkeypatch.chdir(tmp_path)
    (tmp_path / "trunc.json").write_text("{")
    (tmp_path / "foreign.json").write_text("{}")
    (tmp_path / "lacking.json").write_text(f'{{"schema": "{reproducers.SCHEMA}"}}')
    assert main(["replay", "trunc.json", "foreign.json", "lacking.json", "--device=cpu"]) == 2
    lines = capsys.readouterr().out.splitlines()
    assert [line.partition(": ")[2].partition(" (")[0].partition(";")[0] for line in lines] == [
        "the file is truncated or no JSON",
        "the file has schema None",
        "the file lacks 'id'",
    ]
    assert [line.count(".json") for line in lines] == [1, 1, 1]


@pytest.mark.parametrize(
    ("damage", "told"),
    [
        (lambda text: text[: len(text) // 2], "truncated or no JSON"),
        (lambda text: "", "truncated or no JSON"),
        (lambda text: "[]", "schema 'list'"),
        (lambda text: text.replace("stabcheck-reproducer/1", "stabcheck-reproducer/2"), "schema 'stabcheck-reproducer/2'"),
        (lambda text: text.replace("stabcheck-recipe/1", "stabcheck-recipe/2"), "schema 'stabcheck-recipe/2'"),
        (lambda text: text.replace('"kernel"', '"colonel"'), "lacks 'kernel'"),
        (lambda text: text.replace('"recipe"', '"receipt"'), "lacks 'recipe'"),
        (lambda text: text.replace("0x1.0000000000000p+0", "zzz"), "damaged"),
        (lambda text: text.replace('"target": "planted:five_percent_too_much"', '"target": 5'), "target"),
        (lambda text: text.replace("BROKEN", "\x00"), "truncated or no JSON"),
    ],
)
def test_a_bad_file_is_told_in_one_line(tmp_path, damage, told):
    _, file = saved(tmp_path)
    file.write_text(damage(file.read_text()))
    with pytest.raises(UsageError) as error:
        read(file)
    assert told in str(error.value)
    assert "\n" not in str(error.value)


def test_a_file_in_another_encoding_is_told_too(tmp_path):
    (tmp_path / "a.json").write_bytes(b"\xff\xfe{}")
    with pytest.raises(UsageError, match="truncated or no JSON"):
        read(tmp_path / "a.json")


def test_a_missing_file_is_told(tmp_path):
    with pytest.raises(UsageError, match=r"^cannot read .*none.json: No such file[^/]*; name a reproducer's JSON file"):
        find(str(tmp_path / "none.json"), [])
    with pytest.raises(UsageError, match=r"^the file cannot be read: No such file"):
        read(tmp_path / "none.json")


# ---- finding files


def test_a_directory_means_all_in_it_but_the_results(tmp_path):
    _, file = saved(tmp_path)
    (tmp_path / "results.json").write_text("{}")
    assert find(str(tmp_path), []) == [file]


def test_an_id_is_looked_for_in_the_directories_in_turn(tmp_path):
    finding, file = saved(tmp_path / "second")
    assert find(finding.id, [tmp_path / "first", tmp_path / "second"]) == [file]


@pytest.mark.parametrize(("name", "told"), [("abcdef", "no reproducer 'abcdef'"), ("empty", "holds no reproducers")])
def test_what_is_not_there_is_told(tmp_path, monkeypatch, name, told):
    monkeypatch.chdir(tmp_path)
    (tmp_path / "empty").mkdir()
    with pytest.raises(UsageError, match=told):
        find(name, [tmp_path])


# ---- replaying


def replayed(file, allowed=("planted",)):
    reproducer = read(file)
    return replay(reproducer, kernel_of(reproducer, allowed), CPU)


def test_a_finding_fails_again(tmp_path):
    finding, file = saved(tmp_path)
    again = replayed(file)
    assert (again.id, again.kind, again.recipe) == (finding.id, finding.kind, finding.recipe)


@pytest.mark.parametrize("law", ["memory", "layout", "in_place", "routes"])
def test_findings_of_every_sort_of_law_fail_again(tmp_path, law):
    """Laws that run other functions of the kernel than the one named."""
    import planted

    declared = {
        "in_place": {"in_place": planted.softmaxes_twice_in_place},
        "routes": {"routes": {"bad": five_percent_too_much}},
        "memory": {},
        "layout": {},
    }[law]
    function = {"memory": planted.scribbles_on_its_input, "layout": planted.ignores_strides}.get(law, right)
    _, file = saved(tmp_path, function, law, recipe([0.0, 1.0], [2.0, 3.0]), **declared)
    assert replayed(file) is not None


def test_a_file_of_version_0_1_which_named_its_one_other_function_fails_again(tmp_path):
    import planted

    _, file = saved(tmp_path, right, "in_place", in_place=planted.softmaxes_twice_in_place)
    data = json.loads(file.read_text())
    assert data["functions"] == {"in_place": "planted:softmaxes_twice_in_place"}
    file.write_text(
        json.dumps({name: value for name, value in data.items() if name != "functions"} | {"in_place": data["functions"]["in_place"]})
    )
    assert read(file).functions == data["functions"]
    assert replayed(file) is not None


def test_a_file_of_version_0_1_without_another_function_fails_again(tmp_path):
    _, file = saved(tmp_path)
    data = json.loads(file.read_text()) | {"in_place": None}
    del data["functions"]
    file.write_text(json.dumps(data))
    assert read(file).functions == {}
    assert replayed(file) is not None


@pytest.fixture
def hidden(tmp_path, monkeypatch):
    """A module that says when it is imported, and a reproducer that speaks of it."""
    (tmp_path / "never_named.py").write_text("raise RuntimeError('imported unasked')\n")
    monkeypatch.syspath_prepend(tmp_path)
    _, file = saved(tmp_path)
    file.write_text(file.read_text().replace("planted:five_percent_too_much", "never_named:kernel"))
    return file


def test_a_module_that_nobody_named_is_not_imported(hidden):
    with pytest.raises(UsageError, match=r"never_named, which is not imported unasked; allow it with --kernels never_named"):
        kernel_of(read(hidden), [])
    assert "never_named" not in sys.modules


@pytest.mark.parametrize("allowed", [["planted"], ["never_name"], ["never_named_either", "planted"]])
def test_naming_another_module_does_not_allow_it(hidden, allowed):
    with pytest.raises(UsageError):
        kernel_of(read(hidden), allowed)
    assert "never_named" not in sys.modules


@pytest.mark.parametrize("target", ["os:system", "stabcheck.kernels.../os:system", "stabcheck.kernelsx:f", "subprocess:run"])
def test_a_forged_target_is_refused(tmp_path, target):
    _, file = saved(tmp_path)
    file.write_text(file.read_text().replace("planted:five_percent_too_much", target))
    with pytest.raises(UsageError):
        kernel_of(read(file), [])


@pytest.mark.parametrize(
    ("change", "told"),
    [
        (('"property": "accuracy"', '"property": "acuracy"'), "property 'acuracy'; stabcheck knows"),
        (('"property": "accuracy"', '"property": "offsets64"'), "needs a GPU"),
        (('"property": "accuracy"', '"property": "in_place"'), "declares no in_place"),
        (('"operation": "temperature_softmax"', '"operation": "softmx"'), "unknown operation 'softmx'"),
    ],
)
def test_what_cannot_be_replayed_here_is_told(tmp_path, change, told):
    _, file = saved(tmp_path)
    file.write_text(file.read_text().replace(*change))
    with pytest.raises(UsageError, match=told):
        replayed(file)


def changed(file, **parts):
    """The file with parts of its recipe replaced, `inputs` in every row."""
    data = json.loads(file.read_text())
    for row in data["recipe"]["rows"]:
        row["inputs"] = parts.get("inputs", row["inputs"])
    data["recipe"] |= {name: value for name, value in parts.items() if name != "inputs"}
    file.write_text(json.dumps(data))
    return file


def test_inputs_that_a_recipe_leaves_out_have_their_defaults(tmp_path):
    _, file = saved(tmp_path)
    assert replayed(changed(file, inputs=[])) is not None


@pytest.mark.parametrize("parts", [{"inputs": [["labels", 0]]}, {"options": [["labels", 0]]}], ids=["input", "option"])
def test_what_the_operation_does_not_take_is_told(tmp_path, parts):
    _, file = saved(tmp_path)
    with pytest.raises(UsageError, match=r"gives \['labels'\] but temperature_softmax takes logits \[R, V\], temperature"):
        replayed(changed(file, **parts))


@pytest.mark.parametrize("option", [["softcap", "much"], ["ignore_index", [1]], ["label_smoothing", None], ["reduction", "avg"]], ids=str)
def test_an_option_of_no_value_there_is_is_told(tmp_path, option):
    _, file = saved(tmp_path, loss_too_large, start=WRONG_LOSS, operation=LOSS)
    with pytest.raises(UsageError, match=option[0]):
        replayed(changed(file, options=[option]), ["planted_losses"])


def test_a_kernel_that_refuses_the_input_is_no_fix(tmp_path):
    from stabcheck import UnsupportedInput

    _, file = saved(tmp_path)

    def refuses(x, t):
        raise UnsupportedInput("not today")

    with pytest.raises(UsageError, match="does not take the input"):
        replay(read(file), kernel(refuses), CPU)


def test_a_replay_changes_no_file(tmp_path):
    _, file = saved(tmp_path)
    before = {p: p.read_bytes() for p in tmp_path.iterdir()}
    replayed(file)
    assert {p: p.read_bytes() for p in tmp_path.iterdir()} == before


@pytest.mark.parametrize("where", ["functions", "in_place", "routes", "target"])
def test_no_part_of_a_file_imports_what_nobody_named(tmp_path, monkeypatch, where):
    """A reproducer may come from a stranger: its other functions are no way round the question."""
    monkeypatch.chdir(tmp_path)
    _, file = saved(tmp_path)
    (tmp_path / "evil.py").write_text("raise SystemExit('imported')")
    (tmp_path / "stabcheck.kernels.evil.py").write_text("raise SystemExit('imported')")
    data = json.loads(file.read_text()) | {"target": "stabcheck.kernels.softmax:nope", "kernel": "nope"}
    if where == "in_place":
        del data["functions"]  # as version 0.1 wrote it
    evil = {
        "functions": {"noise": "evil.py:f"},
        "in_place": "evil.py:f",
        "routes": {"a": "evil.py:f"},
        "target": "stabcheck.kernels.evil.py:f",
    }
    data[where] = evil[where]
    file.write_text(json.dumps(data))
    with pytest.raises(UsageError, match="not imported unasked"):
        kernel_of(read(file), [])


def test_everything_the_bound_depends_on_is_written_down(tmp_path):
    _, file = saved(tmp_path, tile=256, lanes=32, error_model="scale_first", output="fp32")
    declared = read(file).declared
    assert (declared["tile"], declared["lanes"], declared["error_model"], declared["output"]) == (256, 32, "scale_first", "fp32")
