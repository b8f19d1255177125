"""Model folders of strangers: names, links, devices, absurd values, what a terminal would obey.

``tests/fuzz`` changes such files at random. Here are the attacks that someone would think of.
"""

from __future__ import annotations

import json
import os
import re
import stat
import struct
import tracemalloc
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest

pytest.importorskip("safetensors")
pytest.importorskip("ml_dtypes")
pytest.importorskip("tqdm")
pytest.importorskip("gguf")
pytest.importorskip("tokenizers")

from calibrate_folders import model_folder, text_file
from engine_models import ENGINE, ModelCopy
from model_files import gauss, info, read_raw, write_model, write_raw

from q43nl_numba import cli
from q43nl_numba.calibrate import CalibrationError, calibrate
from q43nl_numba.calibrate.config import read_config
from q43nl_numba.calibrate.rope import rotation
from q43nl_numba.calibrate.sources import check_tensors, open_weights
from q43nl_numba.convert import (
    ModelFileError,
    Progress,
    convert_model,
    inspect,
    restore,
    unfinished,
)
from q43nl_numba.convert.companions import MAX_COMPANION_BYTES
from q43nl_numba.convert.imatrix import read_imatrix
from q43nl_numba.convert.model import INDEX_NAME, open_model
from q43nl_numba.convert.plan import Wishes
from q43nl_numba.convert.rules import Treatment
from q43nl_numba.export import export_model, inspect_model, restore_model
from q43nl_numba.export.exporting import find_format, plan_export

needs_posix = pytest.mark.skipif(os.name != "posix", reason="needs links and pipes of POSIX")

#: Names that must never become a path; each is also a name that a tensor may have.
NAMES = [
    "/etc/passwd",
    "../out",
    "../../../../tmp/x",
    "a/../../b",
    "./a",
    "a//b",
    "a/",
    "..",
    ".",
    "",
    "a\0b",
    "C:\\windows\\x",
    "C:x",
    "\\\\server\\share",
    "a\\..\\b",
    "x" * 5000,
    "\ud800",
    "\udfff\ud800",
    "a:stream",
]

#: What a terminal would obey, or show as something else than it is.
EVIL = "\x1b[2J\x1b]0;title\x07\r\n\x9b1m\u202e\u2066\u200b\x7f"


def tree(folder: Path) -> set[str]:
    """Everything under a folder, with sizes."""
    return {
        f"{path.relative_to(folder)}:{path.lstat().st_size}"
        for path in folder.rglob("*")
        if not path.is_dir()
    }


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    """A model in two files, below a folder that nothing may be written to."""
    model = tmp_path / "world" / "model"
    model.mkdir(parents=True)
    for file, tensor in (("a.safetensors", "x.weight"), ("b.safetensors", "y.weight")):
        write_model(model / file, {tensor: gauss((2, 32))})
    write_index(model, {"x.weight": "a.safetensors", "y.weight": "b.safetensors"})
    return model


def write_index(model: Path, weight_map: object) -> None:
    (model / INDEX_NAME).write_text(json.dumps({"metadata": {}, "weight_map": weight_map}))


# ---------------------------------------------------------------------------------------------
# Names are no paths
# ---------------------------------------------------------------------------------------------


@pytest.mark.parametrize("name", NAMES, ids=lambda name: ascii(name)[:20])
def test_files_that_an_index_names(folder: Path, tmp_path: Path, name: str) -> None:
    write_index(folder, {"x.weight": "a.safetensors", "y.weight": name})
    before = tree(tmp_path)
    for work in (open_model, inspect, lambda path: convert_model(path, tmp_path / "out", "grid")):
        with pytest.raises(ModelFileError, match="must be the name of a file in the folder") as why:
            work(folder)
        assert str(why.value).isprintable()
        assert len(str(why.value)) < 4000
    assert tree(tmp_path) == before


@pytest.mark.parametrize("name", [name for name in NAMES if "\ud800" not in name], ids=ascii)
def test_tensors_of_any_name(tmp_path: Path, name: str) -> None:
    """They are converted, restored, inspected; no file appears but the outputs."""
    world = tmp_path / "world"
    world.mkdir()
    model = write_model(world / "in", {name: gauss((2, 32)), "w": gauss((2, 32))})
    convert_model(model, world / "out", "grid", max_shard_size=60)
    restore(world / "out", world / "back")
    assert {tensor.name for tensor in inspect(world / "back").tensors} == {name, "w"}
    assert sorted(os.listdir(tmp_path)) == ["world"]
    assert sorted(os.listdir(world)) == ["back", "in", "out"]
    for made in ("out", "back"):
        assert all(re.fullmatch(r"model[\w.-]*", file) for file in os.listdir(world / made))


def test_a_tensor_whose_name_is_no_text(tmp_path: Path) -> None:
    path = write_raw(tmp_path / "in", {"\ud800": info("F32", [2], 0, 8)}, bytes(8))
    with pytest.raises(ModelFileError, match="must be Unicode text, found a lone surrogate"):
        inspect(path)


@pytest.mark.parametrize("revision", ["../../x", "..", "/etc", "a/b", "", "a b", "\xff\xfe", "\0"])
def test_the_revision_of_a_cache(tmp_path: Path, revision: str) -> None:
    cache = tmp_path / "models--a--b"
    for name in ("refs", "snapshots/x"):
        (cache / name).mkdir(parents=True)
    (cache / "refs" / "main").write_bytes(revision.encode("latin-1"))
    with pytest.raises(ModelFileError, match="must be the name of a revision"):
        open_model(cache)


# ---------------------------------------------------------------------------------------------
# Links, pipes, devices, folders
# ---------------------------------------------------------------------------------------------

COMPANIONS = (
    "config.json",
    "tokenizer.json",
    "generation_config.json",
    "tokenizer_config.json",
    "chat_template.jinja",
)


def to_a_secret(path: Path) -> None:
    secret = path.parents[1] / "secret"
    secret.write_bytes(path.read_bytes() if path.exists() else b"secret")
    path.unlink(missing_ok=True)
    path.symlink_to(secret)


def by_a_chain(path: Path) -> None:
    to_a_secret(path)
    path.rename(path.with_name("hop"))
    path.symlink_to("hop")


def a_pipe(path: Path) -> None:
    path.unlink(missing_ok=True)
    os.mkfifo(path)


def a_device(path: Path) -> None:
    path.unlink(missing_ok=True)
    path.symlink_to("/dev/zero")


def a_folder(path: Path) -> None:
    path.unlink(missing_ok=True)
    path.mkdir()


def a_loop(path: Path) -> None:
    path.unlink(missing_ok=True)
    path.symlink_to(path.name)


def too_large(path: Path) -> None:
    with open(path, "wb") as file:
        file.truncate(MAX_COMPANION_BYTES + 1)


KINDS = [to_a_secret, by_a_chain, a_pipe, a_device, a_folder, a_loop, too_large]


@needs_posix
@pytest.mark.parametrize("kind", KINDS, ids=lambda kind: kind.__name__)
@pytest.mark.parametrize("name", COMPANIONS)
def test_companions_of_an_export(tmp_path: Path, name: str, kind: Callable[[Path], None]) -> None:
    """Nothing of them is read; a pipe that is opened would never answer."""
    copy = ModelCopy("smollm2", tmp_path / "model")
    kind(copy.path / name)
    with pytest.raises(ModelFileError, match=re.escape(f"{copy.path / name}: must ")):
        export_model(copy.path, tmp_path / "out.st", method="grid")
    assert not (tmp_path / "out.st").exists()


@needs_posix
@pytest.mark.parametrize("kind", KINDS, ids=lambda kind: kind.__name__)
@pytest.mark.parametrize("name", ["config.json", "tokenizer.json"])
def test_companions_of_a_calibration(
    tmp_path: Path, name: str, kind: Callable[[Path], None]
) -> None:
    model = model_folder(tmp_path)
    kind(model / name)
    with pytest.raises(ModelFileError, match=re.escape(f"{model / name}: must ")):
        calibrate(model, tmp_path / "stats", [text_file(tmp_path)], tokens=64, window=32)


@needs_posix
@pytest.mark.parametrize("kind", [to_a_secret, by_a_chain], ids=lambda kind: kind.__name__)
@pytest.mark.parametrize("name", [*COMPANIONS, "notes.txt"])
def test_files_that_are_copied(
    folder: Path, tmp_path: Path, name: str, kind: Callable[[Path], None]
) -> None:
    kind(folder / name)
    with pytest.raises(ModelFileError, match="must lie in the folder, found a link to elsewhere"):
        convert_model(folder, tmp_path / "out", "grid")
    assert not (tmp_path / "out").exists()


@needs_posix
@pytest.mark.parametrize("name", ["notes", "sub/notes"])
def test_pipes_and_devices_are_not_copied(folder: Path, tmp_path: Path, name: str) -> None:
    path = folder / name
    path.parent.mkdir(exist_ok=True)
    os.mkfifo(path)
    path.with_name("null").symlink_to("/dev/null")
    path.with_name("loop").symlink_to("loop")
    (folder / "elsewhere").symlink_to(tmp_path)
    convert_model(folder, tmp_path / "out", "grid")
    made = os.listdir(tmp_path / "out")
    assert sorted(made) == ["a.safetensors", "b.safetensors", INDEX_NAME]


@needs_posix
@pytest.mark.parametrize("kind", [a_pipe, a_device, a_folder, a_loop], ids=lambda k: k.__name__)
@pytest.mark.parametrize("name", ["b.safetensors", INDEX_NAME])
def test_weights_and_index_that_are_no_files(
    folder: Path, name: str, kind: Callable[[Path], None]
) -> None:
    kind(folder / name)
    with pytest.raises((ModelFileError, OSError), match=rf"{re.escape(str(folder))}"):
        open_model(folder)


@needs_posix
def test_an_index_that_is_a_link_out(folder: Path) -> None:
    to_a_secret(folder / INDEX_NAME)
    with pytest.raises(ModelFileError, match="must lie in the folder, found a link to elsewhere"):
        open_model(folder)


@needs_posix
def test_links_within_the_folder(folder: Path, tmp_path: Path) -> None:
    (folder / "notes").write_text("notes")
    (folder / "same").symlink_to("notes")
    convert_model(folder, tmp_path / "out", "grid")
    assert (tmp_path / "out" / "same").read_text() == "notes"
    assert not (tmp_path / "out" / "same").is_symlink()


@needs_posix
def test_a_link_that_looks_like_the_hubs_cache(tmp_path: Path) -> None:
    """Blobs are those of the same model: a neighbor of the cache is elsewhere."""
    snapshot = tmp_path / "models--a--b" / "snapshots" / "x"
    snapshot.mkdir(parents=True)
    blobs = tmp_path / "models--a--c" / "blobs"
    blobs.mkdir(parents=True)
    (blobs / "1").write_text("secret")
    write_model(snapshot / "model.safetensors", {"w": gauss((2, 32))})
    (snapshot / "notes").symlink_to("../../../models--a--c/blobs/1")
    with pytest.raises(ModelFileError, match="must lie in the folder"):
        convert_model(snapshot, tmp_path / "out", "grid")


@needs_posix
def test_a_converted_folder_is_restored_without_its_links(tmp_path: Path, folder: Path) -> None:
    convert_model(folder, tmp_path / "converted", "grid")
    (tmp_path / "secret").write_text("secret")
    (tmp_path / "converted" / "notes").symlink_to("../secret")
    done: list[Progress] = []
    with pytest.raises(ModelFileError, match="must lie in the folder, found a link to elsewhere"):
        restore(tmp_path / "converted", tmp_path / "back", progress=done.append)
    assert not done  # found before the work


@needs_posix
def test_modes_and_links_of_copies(folder: Path, tmp_path: Path) -> None:
    """A stranger's file does not become a program of the user."""
    (folder / "run").write_text("#!/bin/sh\n")
    (folder / "run").chmod(0o4777)
    convert_model(folder, tmp_path / "out", "grid")
    mode = stat.S_IMODE((tmp_path / "out" / "run").stat().st_mode)
    assert not mode & (stat.S_ISUID | stat.S_IXUSR | stat.S_IWOTH)


# ---------------------------------------------------------------------------------------------
# JSON
# ---------------------------------------------------------------------------------------------

DEEP = "[" * 200_000


@pytest.mark.parametrize("text", [DEEP, '{"a":' * 100_000, "1" * 5000, '{"a": ' + "9" * 5000 + "}"])
def test_json_that_python_gives_up_on(tmp_path: Path, folder: Path, text: str) -> None:
    def refused(work: Callable[[], Any]) -> None:
        with pytest.raises((ModelFileError, CalibrationError)) as why:
            work()
        assert str(why.value).isprintable()

    header = text.encode()
    path = tmp_path / "in"
    path.write_bytes(len(header).to_bytes(8, "little") + header)
    refused(lambda: inspect(path))
    (folder / INDEX_NAME).write_text(text)
    refused(lambda: open_model(folder))
    for name in ("config.json", "tokenizer.json", "generation_config.json"):
        copy = ModelCopy("smollm2", tmp_path / name)
        (copy.path / name).write_text(text)
        refused(lambda copy=copy: export_model(copy.path, tmp_path / "out.st"))
    for name in ("config.json", "tokenizer.json"):
        model = model_folder(tmp_path / f"calibrate-{name}")
        (model / name).write_text(text)
        refused(lambda model=model: calibrate(model, tmp_path / "stats", tokens=64, window=32))
    write_model(tmp_path / "file", {"w": gauss((2, 32))}, {"q43nl_numba": text})
    refused(lambda: inspect(tmp_path / "file"))
    write_model(tmp_path / "file", {"w": gauss((32,))}, {"q43nl_statistics": text})
    refused(lambda: convert_model(folder, tmp_path / "out", importance=tmp_path / "file"))


def test_a_large_text_is_not_parsed_to_name_what_it_is(tmp_path: Path) -> None:
    path = tmp_path / "in"
    with open(path, "wb") as file:
        file.write(b"{")
        file.truncate(MAX_COMPANION_BYTES + 2)
    tracemalloc.start()
    try:
        with pytest.raises(ModelFileError, match="is a text file"):
            inspect(path)
        assert tracemalloc.get_traced_memory()[1] < 1 << 24
    finally:
        tracemalloc.stop()


# ---------------------------------------------------------------------------------------------
# Absurd values
# ---------------------------------------------------------------------------------------------

ABSURD: list[Any] = [
    10**18, 2**63, 10**400, -1, 0, True, "64", [], {}, 1e308, float("nan"), float("inf"), 0.5,
]  # fmt: skip
SIZES = (
    "hidden_size", "intermediate_size", "num_hidden_layers", "num_attention_heads",
    "num_key_value_heads", "head_dim", "vocab_size", "max_position_embeddings",
)  # fmt: skip
OTHERS = (
    "rope_theta", "rms_norm_eps", "rope_scaling", "sliding_window", "layer_types", "architectures",
    "partial_rotary_factor", "hidden_act", "num_local_experts", "num_experts_per_tok",
)  # fmt: skip


@pytest.mark.parametrize("model", ["mixtral", "smollm3"])
def test_absurd_configurations(tmp_path: Path, model: str) -> None:
    """An error about the key, or, where the value changes nothing, a result; soon, and small."""
    copy = ModelCopy(model, tmp_path / "model")
    usual = (copy.path / "config.json").read_text("utf-8")
    tracemalloc.start()
    try:
        for key in (*SIZES, *OTHERS):
            for value in ABSURD:
                changed = {**json.loads(usual), key: value}
                (copy.path / "config.json").write_text(json.dumps(changed))
                for work in (_export, _prepare_calibration):
                    message = _refusal(work, copy.path)
                    assert message.isprintable(), (key, value)
                    assert len(message) < 4000, (key, value)
        assert tracemalloc.get_traced_memory()[1] < 1 << 26
    finally:
        tracemalloc.stop()


def _refusal(work: Callable[[Path], None], folder: Path) -> str:
    """The message of a documented error, empty where the work is done."""
    try:
        work(folder)
    except (ModelFileError, CalibrationError) as error:
        return str(error)
    return ""


def _export(folder: Path) -> None:
    wishes = Wishes(Treatment("grid"))
    plan_export(os.fspath(folder), find_format("bf16"), wishes, allow_rope_scaling=True)


def _prepare_calibration(folder: Path) -> None:
    config = read_config(folder)
    check_tensors(open_weights(folder), config)
    rotation(config, 8)


@pytest.mark.parametrize("value", ABSURD, ids=repr)
@pytest.mark.parametrize("key", SIZES)
def test_absurd_sizes_of_an_engine_file(tmp_path: Path, key: str, value: Any) -> None:
    names = {
        "hidden_size": "dim", "intermediate_size": "hidden_dim", "num_hidden_layers": "n_layers",
        "num_attention_heads": "n_heads", "num_key_value_heads": "n_kv_heads",
        "max_position_embeddings": "max_seq_len",
    }  # fmt: skip
    export_model(ENGINE / "smollm2", tmp_path / "in", dtype="bf16")
    header, data = read_raw(tmp_path / "in")
    header["__metadata__"][names.get(key, key)] = str(value)
    write_raw(tmp_path / "in", header, data)
    assert inspect_model(tmp_path / "in").table().isascii()
    if key == "max_position_embeddings" and value in (10**18, 1e308) and value is not True:
        return
    if str(value) in ("64", "1"):
        return
    with pytest.raises(ModelFileError):
        restore_model(tmp_path / "in", tmp_path / "back")
    assert not (tmp_path / "back").exists()


@pytest.mark.parametrize(
    ("key", "text"),
    [
        ("eos_token_id", "(" * 100_000),
        ("eos_token_id", "-" * 100_000 + "1"),
        ("eos_token_id", "[" * 100 + "]" * 100),
        ("eos_token_id", "{1, 2}"),
        ("eos_token_id", "b'x'"),
        ("eos_token_id", "1j"),
        ("rope_theta", "1e999"),
        ("rope_theta", "9" * 400),
        ("norm_eps", "'\\d'"),
        ("attention_types", "5"),
        ("attention_types", "[1, 2]"),
        ("attention_types", "['sliding_attention', ['x']]"),
    ],
)
def test_metadata_of_an_engine_file_is_no_program(tmp_path: Path, key: str, text: str) -> None:
    export_model(ENGINE / "smollm2", tmp_path / "in", dtype="bf16")
    header, data = read_raw(tmp_path / "in")
    header["__metadata__"][key] = text
    write_raw(tmp_path / "in", header, data)
    with pytest.raises(ModelFileError, match=f"metadata key '{key}' must be"):
        restore_model(tmp_path / "in", tmp_path / "back")


@pytest.mark.parametrize(
    "changes",
    [
        {"vocab": {f"<{i}>": i for i in range(200_000)}},
        {"vocab": {"a": 2**63}},
        {"vocab": {"a": 10**400}},
        {"vocab": {"a": -1}},
        {"vocab": {"a": True}},
        {"merges": ["a b c"] * 200_000},
        {"merges": [["a"] * 1000]},
        {"merges": {"a": 1}},
    ],
    ids=lambda changes: f"{next(iter(changes))}-{str(next(iter(changes.values())))[:12]}",
)
def test_absurd_tokenizers(tmp_path: Path, changes: dict[str, Any]) -> None:
    copy = ModelCopy("smollm2", tmp_path / "model")
    copy.json("tokenizer.json", lambda tokenizer: tokenizer["model"].update(changes))
    with pytest.raises(ModelFileError, match=r"tokenizer\.json"):
        export_model(copy.path, tmp_path / "out.st", dtype="bf16")


@pytest.mark.parametrize("count", [10**6, -1, 2**62])
def test_an_imatrix_that_promises_more_than_it_has(tmp_path: Path, count: int) -> None:
    name = b"blk.0.attn_q.weight"
    content = struct.pack("<ii", 1, len(name)) + name
    content += struct.pack("<iI", 1, count % 2**32) + bytes(64)
    (tmp_path / "imatrix").write_bytes(content)
    with pytest.raises(ModelFileError, match="must be a file of llama-imatrix"):
        read_imatrix(tmp_path / "imatrix", {"model.layers.0.self_attn.q_proj.weight": (4, 16)})


@pytest.mark.parametrize("model", ["smollm2"])
def test_the_package_tokenizers_may_panic(tmp_path: Path, model: str, monkeypatch: Any) -> None:
    """A panic of Rust is no Exception, and would end a program that handles those."""
    import tokenizers

    class PanicException(BaseException):
        pass

    def panic(*_: object, **__: object) -> None:
        raise PanicException(f"out of range{EVIL}")

    folder = model_folder(tmp_path)
    monkeypatch.setattr(
        tokenizers, "Tokenizer", type("Tokenizer", (), {"from_file": staticmethod(panic)})
    )
    with pytest.raises(CalibrationError, match=r"tokenizer\.json: must be a tokenizer, found out"):
        calibrate(folder, tmp_path / "stats", tokens=64, window=32)


# ---------------------------------------------------------------------------------------------
# The journal of an interrupted run
# ---------------------------------------------------------------------------------------------


@pytest.fixture
def interrupted(folder: Path, tmp_path: Path) -> Path:
    """The journal of a conversion to ``out`` of which one of two files is complete."""

    def stop(progress: Any) -> None:
        if progress.tensor == "y.weight":
            raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        convert_model(folder, tmp_path / "out", "grid", progress=stop)
    return tmp_path / "out.q43nl-partial" / "journal.jsonl"


def change_line(journal: Path, number: int, change: Callable[[Any], Any]) -> None:
    lines = journal.read_text().splitlines()
    lines[number] = json.dumps(change(json.loads(lines[number])))
    journal.write_text("\n".join(lines) + "\n")


@pytest.mark.parametrize(
    ("number", "change"),
    [
        (0, lambda line: [1]),
        (0, lambda line: {**line, "files": "many"}),
        (0, lambda line: {**line, "files": 1e999}),
        (0, lambda line: {**line, "description": 3}),
        (1, lambda line: 3),
        (1, lambda line: {**line, "nbytes": "1"}),
        (1, lambda line: {**line, "name": 3}),
        (1, lambda line: {**line, "findings": [["x.weight", 3]]}),
        (1, lambda line: {**line, "findings": [["x.weight", {"weights": 3}]]}),
        (1, lambda line: {**line, "findings": [[3, line["findings"][0][1]]]}),
        (1, lambda line: _with_figure(line, "signal", [1, 2])),
        (1, lambda line: _with_figure(line, "sample", None)),
    ],
)
def test_a_damaged_journal(
    interrupted: Path, folder: Path, tmp_path: Path, number: int, change: Callable[[Any], Any]
) -> None:
    change_line(interrupted, number, change)
    assert unfinished(tmp_path / "out") is None
    with pytest.raises(ModelFileError, match=r"journal\.jsonl: is damaged; remove the folder"):
        convert_model(folder, tmp_path / "out", "grid", resume=True)


def _with_figure(line: Any, key: str, value: Any) -> Any:
    name, figures = line["findings"][0]
    return {**line, "findings": [[name, {**figures, key: value}]]}


@pytest.mark.parametrize("content", [b"\xff\xfe\n", (DEEP + "\n").encode(), b"\0" * 100 + b"\n"])
def test_a_journal_that_is_no_text(
    interrupted: Path, folder: Path, tmp_path: Path, content: bytes
) -> None:
    interrupted.write_bytes(content)
    assert unfinished(tmp_path / "out") is None
    with pytest.raises(ModelFileError, match=r"journal\.jsonl: is damaged"):
        convert_model(folder, tmp_path / "out", "grid", resume=True)


def test_a_journal_without_what_was_found(interrupted: Path, folder: Path, tmp_path: Path) -> None:
    """The file is made again: the report needs what packing it cost."""
    change_line(interrupted, 1, lambda line: {**line, "findings": []})
    report = convert_model(folder, tmp_path / "out", "grid", resume=True)
    assert {tensor.name for tensor in report.packed} == {"x.weight", "y.weight"}


# ---------------------------------------------------------------------------------------------
# Terminals
# ---------------------------------------------------------------------------------------------


def evil_folder(tmp_path: Path) -> Path:
    """A model folder that says evil things wherever a text may stand."""
    copy = ModelCopy("smollm2", tmp_path / f"model{EVIL}".replace("\n", ""))
    copy.json("tokenizer_config.json", lambda c: c.update(chat_template=f"{{{{ x }}}}{EVIL}"))
    copy.json("tokenizer_config.json", lambda c: c.update(bos_token=f"<s>{EVIL}"))
    copy.tensors(lambda tensors: tensors.update({f"model.layers.0.x{EVIL}.bias": zeros()}))
    return copy.path


def zeros() -> np.ndarray:
    return np.zeros(4, np.float32)


def test_no_command_hands_control_characters_to_the_terminal(
    tmp_path: Path, capfd: pytest.CaptureFixture[str]
) -> None:
    folder = evil_folder(tmp_path)
    text = text_file(tmp_path, name="text\x1b[2J.txt")
    engine, packed = tmp_path / f"engine{EVIL}", tmp_path / f"packed{EVIL}"
    broken = ModelCopy("smollm2", tmp_path / f"broken{EVIL}").config(
        hidden_act=EVIL, architectures=[EVIL], rope_scaling={"rope_type": EVIL}
    )
    (tmp_path / "rules.toml").write_text(f'[[rule]]\npattern = "{ascii(EVIL)[1:-1]}"\n')
    (tmp_path / f"imatrix{EVIL}").write_bytes(b"GGUF" + EVIL.encode() * 10)
    short = ("--tokens", "64", "--window", "32", "--text", text)
    commands: tuple[tuple[object, ...], ...] = (
        ("export", folder, engine, "--method", "grid"),
        ("export", folder, engine, "--method", "grid", "--exclude", f"x{EVIL}"),
        ("export", broken.path, engine),
        ("inspect", engine),
        ("inspect", engine, "--json"),
        ("restore", engine, tmp_path / f"back{EVIL}"),
        ("inspect", folder, "--all"),
        ("convert", folder, packed, "--method", "grid", "--dry-run"),
        ("convert", folder, packed, "--method", "grid", "--dry-run", "--json"),
        ("convert", folder, packed, "--method", "grid", "--all"),
        ("convert", folder, packed, "--rules", tmp_path / "rules.toml"),
        ("convert", folder, packed, "--importance", tmp_path / f"imatrix{EVIL}"),
        ("convert", folder, packed, "--report", tmp_path / f"report{EVIL}.x"),
        ("verify", folder, packed, "--all", "--min-snr", "99"),
        ("verify", folder, engine),
        ("calibrate", folder, tmp_path / f"stats{EVIL}", *short),
        ("calibrate", broken.path, tmp_path / f"stats{EVIL}", *short),
        ("calibrate", folder, tmp_path / f"stats{EVIL}", "--text", tmp_path / f"none{EVIL}"),
        ("evaluate", folder, packed, *short),
        ("evaluate", folder, broken.path, *short),
        ("inspect", tmp_path / f"none{EVIL}", "--debug"),
    )
    for arguments in commands:
        code = cli.main([str(argument) for argument in arguments])
        shown = capfd.readouterr()
        text_shown = shown.out + shown.err
        assert text_shown or code == 0, arguments
        assert not set(text_shown) & set(EVIL) - set("\n[]2Jtile;01m0"), (arguments, text_shown)
        if "--json" in arguments and code == 0:
            json.loads(shown.out)


def test_errors_of_the_library_are_one_printable_line(tmp_path: Path) -> None:
    """Of both kinds: a program may print them as they are."""
    for error in (ModelFileError, CalibrationError):
        assert str(error(f"x: {EVIL}")).isprintable()
        assert len(str(error("x" * 10**6))) < 4000
        assert str(error("a short one")) == "a short one"
