"""Every command of the program on tiny models, for tests of what ends it at any moment."""

from __future__ import annotations

from pathlib import Path

from calibrate_folders import model_folder, text_file
from engine_models import ENGINE

from q43nl_numba.cli import main


def tiny_commands(base: Path) -> tuple[dict[str, list[str]], Path]:
    """The arguments of every command, and where its output goes; makes the inputs in a folder."""
    model, packed, engine = ENGINE / "qwen3", base / "packed", base / "engine.st"
    out = base / "out" / "out"
    folder, text = model_folder(base), text_file(base)
    shown = ["--text", text, "--tokens", 200, "--window", 40]
    for argv in (
        ["convert", model, packed, "--method", "grid"],
        ["export", model, engine, "--method", "grid"],
        ["convert", folder, base / "quantized", "--method", "grid"],
        ["calibrate", folder, base / "stats", *shown, "--hessians"],
    ):
        assert main([str(word) for word in argv]) == 0
    found = {
        "convert": ["convert", model, out, "--method", "grid"],
        "convert with hessians": [
            "convert", folder, out, "--method", "coarse_fine", "--hessians", base / "stats",
        ],
        "restore": ["restore", packed, out],
        "export": ["export", model, out, "--method", "grid"],
        "restore engine": ["restore", engine, out],
        "verify": ["verify", model, packed],
        "inspect": ["inspect", engine],
        "calibrate": ["calibrate", folder, out, *shown],
        "evaluate": ["evaluate", folder, base / "quantized", *shown],
        "compare": ["compare", "--size", 6400, "--methods", "coarse_fine", "--repeat", 1],
    }  # fmt: skip
    return {name: [str(word) for word in argv] for name, argv in found.items()}, out
