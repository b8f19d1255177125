"""JSON files beside a model's weights: values are what their key may be, or an error says so."""

import json

import pytest

pytest.importorskip("safetensors")
pytest.importorskip("ml_dtypes")

from q43nl_numba.convert import ModelFileError
from q43nl_numba.convert.json_file import LARGEST_INTEGER, read_json


@pytest.fixture
def file_of(tmp_path):
    """A function that writes a JSON text to a file and reads it back."""

    def write_and_read(text):
        path = tmp_path / "config.json"
        path.write_text(text)
        return read_json(str(path))

    return write_and_read


def test_values_are_what_the_file_has(file_of):
    file = file_of(
        f'{{"size": {LARGEST_INTEGER}, "share": -{LARGEST_INTEGER}, "eps": 1e-06, "tied": false, '
        '"name": "silu", "kinds": ["a", 1], "rope": {"factor": 8}, "nothing": null}'
    )
    assert file.integer("size") == 2**63 - 1
    assert file.integer("size", least=2**63 - 1, most=2**63 - 1) == 2**63 - 1
    assert file.number("share") == 1 - 2**63
    assert file.number("eps") == file.positive("eps", most=1e-6) == 1e-6
    assert file.flag("tied", default=True) is False
    assert file.text("name", default="gelu") == "silu"
    assert file.items("kinds") == ["a", 1]
    assert file.part("rope").number("factor") == 8
    assert list(file)[-1] == "nothing"


@pytest.mark.parametrize("text", ["{}", '{"key": null}'])
def test_null_counts_as_absent(file_of, text):
    file = file_of(text)
    assert "key" not in file
    assert file.integer("key", default=7) == 7
    assert file.number("key", default=0.5) == 0.5
    assert file.positive("key", default=0.5) == 0.5
    assert file.flag("key", default=True) is True
    assert file.flag("key") is False
    assert file.text("key", default="silu") == "silu"
    assert file.items("key") == []
    assert file.part("key") is None
    for read in (file.integer, file.number, file.positive):
        with pytest.raises(ModelFileError, match=r"found (None|nothing)$"):
            read("key")


@pytest.mark.parametrize(
    ("read", "value", "expected"),
    [
        ("integer", "0", "an integer of at least 1"),
        ("integer", "true", "an integer of at least 1"),
        ("integer", "8.0", "an integer of at least 1"),
        ("integer", str(2**63), f"an integer of at most {2**63 - 1}"),
        ("number", '"1"', "a number"),
        ("number", "true", "a number"),
        ("number", "NaN", "a finite number"),
        ("number", "-Infinity", "a finite number"),
        ("number", "1e999", "a finite number"),
        ("number", str(2**63), "a finite number"),
        ("number", str(-(2**63)), "a finite number"),
        ("positive", '"1"', "a number"),
        ("positive", "0", "a number above 0"),
        ("positive", "-1e-6", "a number above 0"),
        ("flag", '"no"', "true or false"),
        ("flag", "0", "true or false"),
        ("items", '"silu"', "a list"),
        ("items", "{}", "a list"),
        ("part", "[]", "an object"),
    ],
)
def test_other_values_are_refused(file_of, read, value, expected):
    file = file_of(f'{{"key": {value}}}')
    with pytest.raises(ModelFileError) as caught:
        getattr(file, read)("key")
    found = repr(json.loads(value))
    assert str(caught.value) == f"{file.path}: key 'key' must be {expected}, found {found}"


def test_a_number_is_no_text(file_of):
    with pytest.raises(ModelFileError, match="'key' must be a string, found 1"):
        file_of('{"key": 1}').text("key", default="silu")


def test_parts_are_named(file_of):
    with pytest.raises(ModelFileError, match=r"json: key 'rope': key 'factor' must be a number, "):
        file_of('{"rope": {"factor": "8"}}').part("rope").number("factor")


@pytest.mark.parametrize(("length", "shown"), [(198, 200), (199, 200)])
def test_long_values_are_cut(file_of, length, shown):
    with pytest.raises(ModelFileError) as caught:
        file_of(json.dumps({"key": "x" * length})).integer("key")
    found = str(caught.value).partition("found ")[2]
    assert len(found) == shown
    assert found.endswith("..." if length > 198 else "'")
