"""The command ``export``, and engine files given to ``restore`` and ``inspect``."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest

pytest.importorskip("safetensors")
pytest.importorskip("ml_dtypes")
pytest.importorskip("tqdm")

from engine_models import ENGINE, ModelCopy, read_tensors
from model_files import gauss, write_model

from q43nl_numba import cli
from q43nl_numba.convert import packing, sections
from q43nl_numba.export import CLASS_NAMES, export_model


def run(*arguments: object) -> int:
    return cli.main([str(argument) for argument in arguments])


def refused(capsys: Any, *arguments: object) -> str:
    """Check that the arguments are wrong usage, and return the line about it."""
    try:
        code = run(*arguments)
    except SystemExit as error:
        code = int(error.code or 0)
    assert code == 2
    line = capsys.readouterr().err
    assert line.count("\n") == 1
    return str(line)


def test_export(tmp_path: Path, capsys: Any) -> None:
    assert run("export", ENGINE / "smollm2", tmp_path / "out.st", "--method", "grid") == 0
    output = capsys.readouterr()
    assert "LlamaForCausalLM as llama, 448 tokens" in output.out
    assert output.err == ""
    export_model(ENGINE / "smollm2", tmp_path / "api.st", method="grid")
    assert (tmp_path / "out.st").read_bytes() == (tmp_path / "api.st").read_bytes()


def test_options_are_passed_on(tmp_path: Path, capsys: Any) -> None:
    rules = tmp_path / "rules.toml"
    rules.write_text('[[rule]]\npattern = "*.down_proj.*"\nmethod = "predictor"\n')
    command = ("export", ENGINE / "smollm2", tmp_path / "out.st", "--json")
    more = ("--method", "optimal", "--effort", 1, "--codes", "symmetric", "--num-threads", 1)
    assert run(*command, *more, "--rules", rules, "--include", "*") == 0
    document = json.loads(capsys.readouterr().out)
    methods = {tensor["name"]: tensor["method"] for tensor in document["packed"]}
    assert methods["model.layers.0.mlp.w2.weight"] == "predictor"
    assert methods["model.layers.0.mlp.w1.weight"] == "optimal"
    assert run(*command, "--dtype", "bf16") == 0
    document = json.loads(capsys.readouterr().out)
    assert (document["dtype"], document["packed"]) == ("BF16", [])
    assert run(*command, "--no-clobber") == 1


def test_rope_scaling_is_said_loudly(tmp_path: Path, capsys: Any) -> None:
    command = ("export", ENGINE / "llama3", tmp_path / "out.st", "--dtype", "bf16")
    assert run(*command) == 1
    assert "'rope_scaling' must be absent" in capsys.readouterr().err
    assert os.listdir(tmp_path) == []
    assert run(*command, "--allow-rope-scaling") == 0
    output = capsys.readouterr()
    assert "warning: rope_scaling of" in output.err
    assert "NOT the model's" in output.out


def test_wrong_usage(tmp_path: Path, capsys: Any) -> None:
    command = ("export", ENGINE / "smollm2", tmp_path / "out.st")
    assert "effort" in refused(capsys, *command, "--method", "grid", "--effort", 3)
    message = refused(capsys, *command, "--dtype", "bf16", "--importance", "x.st")
    assert "dtype must be 'q43nl' for importance" in message
    assert ".json or .html" in refused(capsys, *command, "--report", "report.txt")
    html = ("--dtype", "bf16", "--report", tmp_path / "report.html")
    assert "--dtype q43nl" in refused(capsys, *command, *html)
    assert "invalid choice" in refused(capsys, *command, "--dtype", "q80")
    assert os.listdir(tmp_path) == []


def test_an_error_is_one_line(tmp_path: Path, capsys: Any) -> None:
    copy = ModelCopy("smollm2", tmp_path / "model").config(architectures=["BertModel"])
    assert run("export", copy.path, tmp_path / "out.st") == 1
    line = capsys.readouterr().err
    assert line.count("\n") == 1
    assert all(name in line for name in CLASS_NAMES)


def test_reports(tmp_path: Path, capsys: Any) -> None:
    names = [tmp_path / "report.json", tmp_path / "report.html"]
    command = ("export", ENGINE / "smollm2", tmp_path / "out.st", "--method", "grid")
    assert run(*command, "--report", names[0], "--report", names[1]) == 0
    capsys.readouterr()
    document = json.loads(names[0].read_text())
    assert document["arch"] == "llama"
    assert len(document["packed"]) == 15
    page = names[1].read_text("utf-8")
    assert page.startswith("<!DOCTYPE html>")
    assert "model.layers.0.attn.wq.weight" in page


def test_an_interrupted_run_says_how_to_go_on(
    tmp_path: Path, capsys: Any, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(sections, "_SECTION_BYTES", 6000)
    quantize, calls = packing.q43nl, [0]

    def failing(*arguments: Any, **options: Any) -> Any:
        calls[0] += 1
        if calls[0] > 7:
            raise OSError(28, "No space left on device")
        return quantize(*arguments, **options)

    command = ("export", ENGINE / "smollm2", tmp_path / "out.st", "--method", "grid")
    with monkeypatch.context() as patch:
        patch.setattr(packing, "q43nl", failing)
        assert run(*command) == 1
    first, second = capsys.readouterr().err.splitlines()
    assert "sections are done; --resume continues" in first
    assert "No space left on device" in second
    assert run(*command, "--resume") == 0
    assert os.listdir(tmp_path) == ["out.st"]


def test_inspect(tmp_path: Path, capsys: Any) -> None:
    export_model(ENGINE / "qwen3", tmp_path / "out.st", method="grid")
    assert run("inspect", tmp_path / "out.st") == 0
    text = capsys.readouterr().out
    assert "qwen3 (Qwen3ForCausalLM) in Q43NL, 416 tokens, chat template" in text
    assert run("inspect", tmp_path / "out.st", "--json") == 0
    document = json.loads(capsys.readouterr().out)
    assert (document["arch"], document["tokens"], document["problem"]) == ("qwen3", 416, "")


def test_inspect_and_restore_of_other_files(tmp_path: Path, capsys: Any) -> None:
    """They are the converter's, as before."""
    write_model(tmp_path / "model.safetensors", {"w": gauss((4, 64))})
    assert run("convert", tmp_path / "model.safetensors", tmp_path / "packed.safetensors") == 0
    assert run("inspect", tmp_path / "packed.safetensors") == 0
    assert run("restore", tmp_path / "packed.safetensors", tmp_path / "back.safetensors") == 0
    assert "restored 1 of 1 tensor" in capsys.readouterr().out
    message = refused(
        capsys, "restore", tmp_path / "packed.safetensors", tmp_path / "x", "--dtype", "float32"
    )
    assert "are for engine files" in message
    assert run("inspect", tmp_path / "nothing") == 1


def test_restore(tmp_path: Path, capsys: Any) -> None:
    export_model(ENGINE / "qwen3", tmp_path / "out.st", dtype="bf16")
    command = ("restore", tmp_path / "out.st", tmp_path / "back")
    assert run(*command, "--dtype", "bfloat16", "--max-shard-size", "100KB") == 0
    assert "tokenizer.json is rebuilt" in capsys.readouterr().out
    assert len(list((tmp_path / "back").glob("*.safetensors"))) > 1
    source, back = read_tensors(ENGINE / "qwen3"), read_tensors(tmp_path / "back")
    assert {name: array.tobytes() for name, array in source.items()} == {
        name: array.tobytes() for name, array in back.items()
    }
    assert run(*command, "--like", ENGINE / "qwen3") == 1
    assert "must be a new or empty folder" in capsys.readouterr().err
    command = ("restore", tmp_path / "out.st", tmp_path / "like", "--json")
    assert run(*command, "--like", ENGINE / "qwen3") == 0
    assert json.loads(capsys.readouterr().out)["notes"] == []


def test_an_interrupted_restore_says_how_to_go_on(
    tmp_path: Path, capsys: Any, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The small files, which are written last, are on the disk whole, and errors name them."""
    export_model(ENGINE / "qwen3", tmp_path / "out.st", dtype="bf16")
    command = ("restore", tmp_path / "out.st", tmp_path / "back", "--dtype", "bfloat16")
    fsync, calls = os.fsync, [0]

    def failing(number: int) -> None:
        calls[0] += 1
        if calls[0] > 3:  # the journal, the weights, the journal
            raise OSError(28, "No space left on device")
        fsync(number)

    with monkeypatch.context() as patch:
        patch.setattr(os, "fsync", failing)
        assert run(*command) == 1
    first, second = capsys.readouterr().err.splitlines()
    assert first == "q43nl-numba: 1 of 1 files are done; --resume continues"
    assert second.endswith("config.json: No space left on device")
    assert run(*command, "--resume") == 0
    assert sorted(os.listdir(tmp_path)) == ["back", "out.st"]


def test_the_help_lists_architectures() -> None:
    command = [sys.executable, "-m", "q43nl_numba", "export", "--help"]
    output = subprocess.run(command, capture_output=True, text=True, check=True).stdout
    assert all(name in output for name in CLASS_NAMES)
