"""Batch files as programs write them, and lines that are broken in every way: each fails by itself."""

from __future__ import annotations

import codecs
import json
import os
import random
import subprocess
import sys
from pathlib import Path

import pytest

from cosmos_triton.cli.batch_file import read_batch
from cosmos_triton.cli.main import main
from support.paths import ROOT
from support.played_server import PlayedServer

LINES = [
    {"visual_input": "caf\u00e9.mp4", "prompt": "\u673a\u5668\u4eba \U0001f916"},
    {"visual_input": "b", "prompt": "two"},
]
TEXT = "".join(json.dumps(line, ensure_ascii=False) + "\r\n" for line in LINES)

ENCODED = {
    "UTF-8": TEXT.encode(),
    "UTF-8 with a mark": codecs.BOM_UTF8 + TEXT.encode(),
    "UTF-16 LE": codecs.BOM_UTF16_LE + TEXT.encode("utf-16-le"),
    "UTF-16 BE": codecs.BOM_UTF16_BE + TEXT.encode("utf-16-be"),
    "UTF-16 LE without a mark": TEXT.encode("utf-16-le"),
    "UTF-16 BE without a mark": TEXT.encode("utf-16-be"),
    "UTF-32 LE": codecs.BOM_UTF32_LE + TEXT.encode("utf-32-le"),
    "UTF-32 BE": codecs.BOM_UTF32_BE + TEXT.encode("utf-32-be"),
    "joined": b"".join(codecs.BOM_UTF8 + (json.dumps(line) + "\n").encode() for line in LINES),
    "old Mac": TEXT.replace("\r\n", "\r").encode(),
    "no line break at the end": TEXT.rstrip().encode(),
}


@pytest.fixture(autouse=True)
def folder(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    monkeypatch.chdir(tmp_path)
    return tmp_path


@pytest.mark.parametrize("content", ENCODED.values(), ids=ENCODED)
def test_a_batch_file_is_read_in_every_encoding_that_it_names(content: bytes) -> None:
    Path("batch.jsonl").write_bytes(content)
    lines = read_batch(Path("batch.jsonl"), takes_prompt=True)
    assert [{"visual_input": line.visual_input, "prompt": line.prompt} for line in lines] == LINES
    assert [line.number for line in lines] == [1, 2]


@pytest.mark.parametrize("encoding", ["utf-16", "utf-8-sig"])
def test_a_prompts_file_is_read_alike(encoding: str) -> None:
    Path("batch.jsonl").write_bytes(b'{"visual_input": "a"}\n\n{"visual_input": "b"}\n')
    Path("prompts.jsonl").write_text(
        '{"prompt": "one"}\n{"prompt": "none"}\n{"prompt": "zwei \u00fc"}\n', encoding=encoding
    )
    lines = read_batch(Path("batch.jsonl"), prompts_path=Path("prompts.jsonl"), takes_prompt=True)
    assert [(line.number, line.prompt) for line in lines] == [(1, "one"), (3, "zwei \u00fc")]


BROKEN = {
    b'{"visual_input": "a.jpg\\u0000"}': "visual_input: value 'a.jpg\\x00'; accepted: a path",
    b'{"visual_input": "\\ud800.mp4"}': "visual_input: value '\\ud800.mp4'; accepted: a path",
    b'{"visual_input": "' + b"a/" * 500_000 + b'"}': "visual_input: value 'a/",
    b'{"visual_input": "' + b"x" * 300 + b'"}': "File name too long",
    b'{"visual_input": "a\x00b"}': "not JSON: ",
    b'{"visual_input": "a\x1bb"}': "not JSON: ",
    b'{"visual_input": "caf\xe9.mp4"}': "not valid UTF-8",
    b"\xff\xfe\x00": "not valid UTF-8",
    b'{"visual_input": NaN}': "not JSON: NaN is no JSON number",
    b'{"visual_input": "good", "other": -Infinity}': "not JSON: -Infinity is no JSON number",
    b'{"visual_input": "good", "visual_input": "bad"}': "not JSON: 'visual_input' is given 2 times",
    b"[" * 100_000: "not JSON: nested too deeply",
    b'{"visual_input": ' + b'{"a":' * 100_000: "not JSON: nested too deeply",
    b'{"visual_input": ' + b"1" * 10_000 + b"}": "not JSON: ",
    b'{"visual_input": {"a": [1, 2]}}': "visual_input: value {'a': [1, 2]}; accepted: a string",
    b'{"visual_input": true}': "visual_input: value True; accepted: a string",
    b'"good"': "not a JSON object",
    b"7": "not a JSON object",
    b"null": "not a JSON object",
    b'{"visual_input": "good"} {"visual_input": "good"}': "not JSON: Extra data",
    b"\x1a": "not JSON: ",
    b'{"visual_input": ""}': "Is a directory",
    b'{"visual_input": "no\\nsuch\\u001b[31m\\u2028file"}': "no\\nsuch\\x1b[31m\\u2028file: No such file",
}


@pytest.mark.parametrize("broken", BROKEN, ids=range(len(BROKEN)))
def test_a_broken_line_fails_alone_with_one_line(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str], broken: bytes
) -> None:
    server = PlayedServer().install(monkeypatch)
    Path("good").write_bytes(b"good")
    good = b'{"visual_input": "good"}'
    Path("batch.jsonl").write_bytes(b"\n".join([good, broken, good]))
    assert main(["base", "--batch_input_path=batch.jsonl"]) == 1
    out, err = capsys.readouterr()
    [line] = [line for line in err.split("\n") if "batch.jsonl:" in line]
    assert line.startswith("batch.jsonl:2: ")
    assert BROKEN[broken] in line
    assert len(line) < 3000
    assert out == "outputs: 2 generated, 1 failed\n"
    assert server.inputs == [b"good", b"good"]


def test_a_prompt_is_any_text_but_no_lone_surrogates(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    server = PlayedServer("5b-video2world").install(monkeypatch)
    Path("good").write_bytes(b"good")
    prompts = ["caf\u00e9 \u2028 \u0000 \x1b", "\ud83d", "\U0001f916"]
    lines = [json.dumps({"visual_input": "good", "prompt": prompt}) for prompt in prompts]
    Path("batch.jsonl").write_text("\n".join(lines))
    assert main(["video2world", "--batch_input_path=batch.jsonl", "--concurrency=1"]) == 1
    assert server.prompts == [prompts[0], prompts[2]]
    assert "batch.jsonl:2: prompt: value '\\ud83d'; accepted: a text" in capsys.readouterr().err


def test_random_bytes_are_read() -> None:
    rng = random.Random(6)
    for _ in range(500):
        content = bytes(
            rng.choices(b'{}[]":,\\u0d8 \n\r\x00\xff\xfe\xef\xbb\xbfvisual_inputprompt', k=rng.randint(0, 60))
        )
        Path("batch.jsonl").write_bytes(content)
        for takes_prompt in (True, False):
            for line in read_batch(Path("batch.jsonl"), takes_prompt=takes_prompt):
                assert line.problem or line.visual_input is not None


# Terminals and locales

PROGRAM = """
import sys
import pytest
from cosmos_triton.cli.main import main
from support.played_server import PlayedServer
PlayedServer().install(pytest.MonkeyPatch())
sys.exit(main())
"""
ENVIRONMENTS = {
    "ascii": {"PYTHONIOENCODING": "ascii"},
    "ascii, strict": {"PYTHONIOENCODING": "ascii:strict"},
    "LANG=C": {"LANG": "C", "LC_ALL": "C"},
    "file names in ascii": {"LC_ALL": "C", "PYTHONUTF8": "0", "PYTHONCOERCECLOCALE": "0"},
    "latin-1": {"PYTHONIOENCODING": "latin-1"},
    "UTF-8": {"PYTHONIOENCODING": "utf-8"},
}


def run(environment: dict[str, str], *words: str | bytes) -> tuple[int, bytes, bytes]:
    clean = {name: value for name, value in os.environ.items() if not name.startswith(("LC_", "LANG", "PYTHON"))}
    paths = os.pathsep.join(map(str, (ROOT, ROOT / "tests")))
    command = [sys.executable, "-c", PROGRAM, *words]
    result = subprocess.run(command, env=clean | environment | {"PYTHONPATH": paths}, capture_output=True)
    assert b"Traceback" not in result.stderr
    return result.returncode, result.stdout, result.stderr


@pytest.mark.parametrize("environment", ENVIRONMENTS.values(), ids=ENVIRONMENTS)
def test_any_file_name_is_printed_on_any_terminal(environment: dict[str, str]) -> None:
    for name in ("caf\u00e9 \U0001f916.mp4".encode(), b"caf\xe9.mp4"):
        Path(os.fsdecode(name)).write_bytes(b"clip")
        code, out, err = run(environment, "generate", name)
        assert code == 0, err
        assert out.startswith(b"outputs/caf")
        assert (b"outputs/" + name).decode(errors="surrogateescape") in map(str, Path("outputs").iterdir())
    assert run(environment, "generate", "gar nicht da \u00fc.mp4".encode())[0] == 2
    assert run(environment, "generate", "--help")[0] == 0


@pytest.mark.parametrize("environment", ENVIRONMENTS.values(), ids=ENVIRONMENTS)
def test_a_batch_of_any_file_names_runs_on_any_terminal(environment: dict[str, str]) -> None:
    Path("caf\u00e9.mp4").write_bytes(b"clip")
    lines = [{"visual_input": name} for name in ("caf\u00e9.mp4", "nicht da \u00fc.mp4", "\udce9.mp4")]
    Path("batch.jsonl").write_text("\n".join(map(json.dumps, lines)))
    code, out, err = run(
        environment, "base", "--batch_input_path=batch.jsonl", "--video_save_folder=\u00fcber".encode()
    )
    assert (code, err.count(b"batch.jsonl:")) == (1, 3 if environment.get("PYTHONUTF8") == "0" else 2)
    assert out.count(b"\n") == 1
