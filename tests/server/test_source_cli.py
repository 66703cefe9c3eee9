"""The command line against a real server with the toy pipeline: `generate`, and the reference scripts' commands."""

from __future__ import annotations

import errno
import json
import os
import pty
import re
import signal
import subprocess
import sys
import termios
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import pytest

from cosmos_triton.cli import batch
from cosmos_triton.cli.batch import Batch
from cosmos_triton.cli.batch_file import read_batch
from cosmos_triton.cli.main import main
from cosmos_triton.client import WorldClient
from cosmos_triton.runtime.deployments import DEPLOYMENTS
from support.paths import SUPPORT
from support.server import until
from support.toys import ToyServer, noted, notes, scenario

SLOW = {"stages": {"ar_sampler": 40}, "seconds": 0.1}
PROGRAM = [sys.executable, "-c", "import sys; from cosmos_triton.cli.main import main; sys.exit(main())"]
CLIP = "cosmos1/models/autoregressive/assets/v1p0/input.mp4"
PROMPT = "A truck rolls through a harbour at dawn, past cranes, containers, and changing weather."

# The command lines of the reference, with another prompt; a blank line between two.
README_COMMANDS = (SUPPORT / "reference_commands.txt").read_text().split("\n\n")
MODELS = {deployment.ar_folder: deployment for deployment in DEPLOYMENTS.values()}


@pytest.fixture(autouse=True)
def folder(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """An empty working directory."""
    monkeypatch.chdir(tmp_path)
    return tmp_path


@pytest.fixture
def run(toy_of: Callable[[str], ToyServer], capsys: pytest.CaptureFixture[str]) -> Callable[..., tuple[int, str, str]]:
    """Runs a command line against the server of a deployment; returns exit code, stdout, stderr."""

    def run(*words: str, protocol: str = "grpc", deployment: str = "4b") -> tuple[int, str, str]:
        try:
            code = main([*words, "--url", toy_of(deployment).url_of(protocol), "--protocol", protocol])
        except SystemExit as error:  # how argparse ends a program
            code = error.code
        return code, *capsys.readouterr()

    return run


def write_batch(path: Path, *lines: object) -> Path:
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text("".join(line if isinstance(line, str) else json.dumps(line) + "\n" for line in lines))
    return path


def write_input(file: str, **plays: object) -> str:
    path = Path(file)
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_bytes(scenario(**plays))
    return file


def results(folder: str = "outputs") -> list[dict]:
    return [json.loads(line) for line in Path(folder, "results.jsonl").read_text().splitlines()]


# generate


@pytest.mark.parametrize("protocol", ["grpc", "http"])
def test_generate_saves_the_video_and_the_report_and_says_so_in_one_line(run, protocol: str) -> None:
    write_input("clip.mp4", faces=2)
    code, out, err = run("generate", "clip.mp4", "--seed", "7", "--report", "a/b.json", protocol=protocol)
    assert (code, err) == (0, "")
    assert out.startswith("outputs/clip.mp4: generated in ")
    assert out.endswith("faces blurred: 2\n")
    assert out.count("\n") == 1
    assert Path("outputs/clip.mp4").read_bytes() == b"video of seed 7"
    assert json.loads(Path("a/b.json").read_text())["parameters"] == {"seed": 7, "disable_diffusion_decoder": False}
    assert os.listdir("outputs") == ["clip.mp4"], "a scratch file was left"


def test_generate_hands_every_flag_to_the_server(run) -> None:
    write_input("clip.mp4", note=os.path.abspath("note"))
    flags = "--prompt rain --num-input-frames 9 --temperature 0.5 --top-p 0.25 --disable-diffusion-decoder"
    command = ["generate", "clip.mp4", *flags.split(), "--output", "world.mp4"]
    assert run(*command, deployment="5b-video2world")[0] == 0
    assert Path("world.mp4").exists()
    assert notes(Path("note"))[0] == {
        "what": "started",
        "prompt": "rain",
        "num_input_frames": 9,
        "temperature": 0.5,
        "top_p": 0.25,
        "seed": 0,
        "disable_diffusion_decoder": True,
    }


def test_the_servers_warnings_are_on_the_screen(run) -> None:
    warning = "15 % of the videos that this model makes from one image are distorted"
    write_input("photo.jpg", warnings=[warning])
    assert run("generate", "photo.jpg")[::2] == (0, f"warning: {warning}\n")


def test_a_blocked_video_is_exit_code_3_with_the_reason_and_the_report(run) -> None:
    write_input("clip.mp4", outcome="prompt_blocked")
    code, out, err = run("generate", "clip.mp4", "--report", "report.json")
    assert (code, out, err) == (3, "", "clip.mp4: prompt_blocked: blocklist: a word of the prompt\n")
    assert json.loads(Path("report.json").read_text())["outcome"] == "prompt_blocked"
    assert not Path("outputs").exists()


@pytest.mark.parametrize(
    ("arguments", "expected"),
    [
        (["missing.mp4"], "missing.mp4: visual_input: value 'missing.mp4'; accepted: a readable file"),
        (["text.mp4"], "text.mp4: visual_input: value 5 bytes; accepted: a png, jpeg, webp or mp4 file"),
        (["clip.mp4", "--num-input-frames", "9"], "clip.mp4: num_input_frames: value 9; accepted: 1 (the clip has 5"),
        (["clip.mp4", "--prompt", "rain"], "clip.mp4: prompt: value present; accepted: none"),
        (["clip.mp4", "--output", "./clip.mp4"], "clip.mp4: output: value 'clip.mp4'; accepted: a file other than"),
    ],
)
def test_bad_input_is_exit_code_2_with_one_line_naming_the_file(run, arguments: list[str], expected: str) -> None:
    write_input("clip.mp4", frames=5)
    Path("text.mp4").write_text("hello")
    before = Path("clip.mp4").read_bytes()
    code, out, err = run("generate", *arguments)
    assert (code, out, err.count("\n")) == (2, "", 1)
    assert err.startswith(expected)
    assert Path("clip.mp4").read_bytes() == before


def test_a_wrong_url_is_exit_code_2(capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["generate", "clip.mp4", "--url", "http://localhost:8000"]) == 2
    assert capsys.readouterr().err == "url: value 'http://localhost:8000'; accepted: host:port, without a scheme\n"


def test_a_failing_server_is_exit_code_1(run, capsys: pytest.CaptureFixture[str]) -> None:
    write_input("clip.mp4", error=["INTERNAL", "ar_sampler: out of memory"])
    assert run("generate", "clip.mp4") == (1, "", "clip.mp4: ar_sampler: out of memory\n")
    for command in ("generate clip.mp4", "base --input_image_or_video_path=clip.mp4"):
        assert main([*command.split(), "--url", "127.0.0.1:1"]) == 1
        assert "no connection to 127.0.0.1:1 over grpc" in capsys.readouterr().err


def test_a_full_disk_leaves_the_earlier_video_as_it_was(run, monkeypatch: pytest.MonkeyPatch) -> None:
    write_input("clip.mp4")
    run("generate", "clip.mp4", "--seed", "1")

    def write_half(path: Path, content: bytes) -> None:
        with path.open("wb") as file:
            file.write(content[: len(content) // 2])
        raise OSError(errno.ENOSPC, "No space left on device", str(path))

    monkeypatch.setattr(Path, "write_bytes", write_half)
    code, out, err = run("generate", "clip.mp4", "--seed", "2")
    assert (code, out) == (1, "")
    assert "No space left on device" in err
    assert Path("outputs/clip.mp4").read_bytes() == b"video of seed 1"
    assert os.listdir("outputs") == ["clip.mp4"]


def test_a_terminal_shows_a_bar_for_each_stage(server: ToyServer) -> None:
    write_input("clip.mp4", stages={"ar_sampler": 3, "diffusion_decoder": 2}, seconds=0.15)
    screen, terminal = pty.openpty()
    termios.tcsetwinsize(terminal, (24, 100))
    command = [*PROGRAM, "generate", "clip.mp4", "--url", server.grpc_url]
    process = subprocess.Popen(command, stderr=terminal, stdout=subprocess.DEVNULL)
    os.close(terminal)
    shown = b""
    try:
        while chunk := os.read(screen, 4096):
            shown += chunk
    except OSError:  # how a terminal ends on Linux
        pass
    os.close(screen)
    assert process.wait(timeout=20) == 0
    text = shown.decode()
    for words in ("ar_sampler", "1/3", "3/3", "diffusion_decoder", "2/2"):
        assert words in text


# The reference's command lines


@pytest.mark.parametrize("model", [model for model in MODELS if "tiny" not in model])
def test_the_reference_readmes_commands_work_as_they_stand(run, model: str) -> None:
    deployment = MODELS[model]
    note = Path("note").absolute()
    for clip in (CLIP, "a.mp4", "b.mp4"):
        write_input(clip, note=str(note))
    folder = Path(CLIP).parent / "batch_inputs"
    lines = [{"visual_input": "a.mp4"}, {"visual_input": "b.mp4"}]
    write_batch(folder / "base.jsonl", *lines)
    write_batch(folder / "video2world.jsonl", *[{"prompt": PROMPT, **line} for line in lines])
    expected = {
        "what": "started",
        "prompt": PROMPT if deployment.is_video2world else "",
        "num_input_frames": 9,
        "temperature": 1.0,
        "top_p": pytest.approx(deployment.top_p),
        "seed": 0,
        "disable_diffusion_decoder": False,
    }
    commands = [command for command in README_COMMANDS if f"--ar_model_dir={model} " in command]
    assert len(commands) == 3
    for command in commands:
        is_batch = "batch_input_path" in command
        files = [Path(f"outputs/{model}/{n}.mp4") for n in (0, 1)] if is_batch else [Path(f"outputs/{model}.mp4")]
        code, _, err = run(*words_of(command), deployment=deployment.name)
        assert code == 0, err
        assert err.count("\n") == ("--offload" in command)
        assert all(file.read_bytes() == b"video of seed 0" for file in files)
        assert [line for line in notes(note) if line["what"] == "started"] == [expected] * len(files)
        note.unlink()


def words_of(command: str) -> list[str]:
    """What a shell makes of a command of the README when the script's path is replaced."""
    script = re.search(r"python \S+/(base|video2world)\.py", command)
    ours = command.replace(script[0], f"cosmos-triton {script[1]}")
    shell = subprocess.run(
        ["bash", "-c", "cosmos-triton() { printf '%s\\0' \"$@\"; }\n" + ours],
        capture_output=True,
        text=True,
        check=True,
    )
    return shell.stdout.split("\0")[:-1]


def test_a_value_may_follow_its_flag_after_a_space(run) -> None:
    write_input("clip.mp4", note=os.path.abspath("note"))
    command = "base --input_image_or_video_path clip.mp4 --video_save_name x --video_save_folder y --seed 3 --top_p 0.5"
    assert run(*command.split())[0] == 0
    assert Path("y/x.mp4").read_bytes() == b"video of seed 3"


def test_an_image_is_one_input_frame_whatever_num_input_frames_says(run) -> None:
    write_input("photo.jpg", note=os.path.abspath("note"))
    assert run("base", "--input_type=image", "--input_image_or_video_path=photo.jpg", "--num_input_frames=9")[0] == 0
    assert notes(Path("note"))[0]["num_input_frames"] == 1


def test_flags_that_the_server_took_over_are_answered_in_one_line_each(run) -> None:
    write_input("clip.mp4")
    flags = ["--offload_tokenizer", "--offload_prompt_upsampler", "--checkpoint_dir=checkpoints"]
    code, _, err = run("base", "--input_image_or_video_path=clip.mp4", *flags)
    assert code == 0
    offload, checkpoints = err.splitlines()
    assert offload.startswith("--offload_tokenizer, --offload_prompt_upsampler: ")
    assert "cosmos-triton plan" in offload
    assert checkpoints.startswith("--checkpoint_dir: ")


@pytest.mark.parametrize(
    ("command", "expected"),
    [
        ("base --ar_model_dir=Cosmos-1.0-Autoregressive-12B", "accepted: Cosmos-1.0-Autoregressive-4B"),
        (
            "video2world --prompt=rain",
            "the server runs Cosmos-1.0-Autoregressive-4B, whose command is `cosmos-triton base`",
        ),
        ("video2world", "give --prompt"),
        ("base --batch_input_path=clip.mp4", "give --input_image_or_video_path for one video, or"),
    ],
)
def test_a_command_that_does_not_fit_the_server_is_refused_before_any_work(run, command: str, expected: str) -> None:
    write_input("clip.mp4", note=os.path.abspath("note"))
    code, out, err = run(*command.split(), "--input_image_or_video_path=clip.mp4")
    assert (code, out, err.count("\n")) == (2, "", 1)
    assert expected in err
    assert not Path("note").exists()


def test_neither_an_input_nor_a_batch_is_refused(run) -> None:
    assert run("base")[0] == 2
    code, _, err = run("base", "--batch_input_path=missing.jsonl")
    assert (code, err) == (2, "missing.jsonl: No such file or directory\n")


# Batches


def test_bad_lines_are_named_and_the_others_done(run) -> None:
    write_input("good.mp4")
    write_input("short.mp4", frames=5)
    write_input("blocked.mp4", outcome="video_blocked")
    Path("text.mp4").write_text("hello")
    Path("folder.mp4").mkdir()
    write_batch(
        Path("batch.jsonl"),
        {"visual_input": "good.mp4"},
        "not json\n",
        '["good.mp4"]\n',
        "\n",
        {"input": "good.mp4"},
        {"visual_input": 7},
        {"visual_input": "missing.mp4"},
        {"visual_input": "folder.mp4"},
        {"visual_input": "text.mp4"},
        {"visual_input": "short.mp4"},
        {"visual_input": "good.mp4", "prompt": "rain"},
        {"visual_input": "blocked.mp4"},
        {"visual_input": "good.mp4"},
    )
    code, out, err = run("base", "--batch_input_path", "batch.jsonl")
    assert code == 1
    assert sorted(err.splitlines(), key=lambda line: int(line.split(":")[1])) == [
        "batch.jsonl:2: not JSON: Expecting value: line 1 column 1 (char 0)",
        'batch.jsonl:3: not a JSON object such as {"visual_input": "clip.mp4"}',
        "batch.jsonl:5: visual_input: missing",
        "batch.jsonl:6: visual_input: value 7; accepted: a string",
        "batch.jsonl:7: missing.mp4: No such file or directory",
        "batch.jsonl:8: folder.mp4: Is a directory",
        "batch.jsonl:9: text.mp4: visual_input: value 5 bytes; accepted: a png, jpeg, webp or mp4 file",
        "batch.jsonl:10: short.mp4: num_input_frames: value 9; accepted: 1 (the clip has 5 frames)",
        "batch.jsonl:11: prompt: a base model takes none",
        "batch.jsonl:12: blocked.mp4: video_blocked: blocklist: a word of the prompt",
    ]
    assert out == "outputs: 2 generated, 9 failed, 1 video_blocked\n"
    assert sorted(path.name for path in Path("outputs").iterdir()) == ["0.mp4", "12.mp4", "results.jsonl"]
    lines = results()
    assert [line["index"] for line in lines] == [0, 1, 2, *range(4, 13)], "one for each line, in order"
    assert (lines[0]["outcome"], lines[0]["file"], lines[0]["error"]) == ("generated", "0.mp4", None)
    assert lines[0]["report"]["parameters"]["num_input_frames"] == 9
    assert (lines[5]["outcome"], lines[5]["file"], lines[5]["visual_input"]) == ("failed", None, "missing.mp4")
    assert lines[5]["error"] in err


def test_video2world_lines_need_a_prompt_of_their_own_or_from_the_prompts_file(run) -> None:
    write_input("clip.mp4", note=os.path.abspath("note"))
    write_batch(
        Path("batch.jsonl"),
        {"visual_input": "clip.mp4", "prompt": "sun"},
        {"visual_input": "clip.mp4"},
        {"visual_input": "clip.mp4"},
    )
    write_batch(Path("prompts.jsonl"), {"prompt": "fog"}, {"prompt": "rain"})
    command = "video2world --concurrency=1 --batch_input_path=batch.jsonl --input_prompts_path=prompts.jsonl"
    code, _, err = run(*command.split(), deployment="5b-video2world")
    assert (code, err) == (1, "batch.jsonl:3: prompt: missing\n")
    assert [line["prompt"] for line in notes(Path("note")) if line["what"] == "started"] == ["sun", "rain"]


def test_a_batch_with_nothing_worse_than_a_blocked_line_is_exit_code_3(run) -> None:
    write_batch(
        Path("batch.jsonl"),
        {"visual_input": write_input("blocked.mp4", outcome="video_blocked")},
        {"visual_input": write_input("good.mp4")},
    )
    assert run("base", "--batch_input_path=batch.jsonl")[0] == 3


@pytest.mark.parametrize(("concurrency", "at_once"), [(4, 4), (1, 1)])
def test_a_batch_keeps_so_many_requests_in_flight(run, concurrency: int, at_once: int) -> None:
    clip = write_input("clip.mp4", note=os.path.abspath("note"), stages={"ar_sampler": 1}, seconds=0.3)
    write_batch(Path("batch.jsonl"), *[{"visual_input": clip}] * 5)
    assert run("base", "--batch_input_path=batch.jsonl", f"--concurrency={concurrency}")[0] == 0
    running = peak = 0
    for what in noted(Path("note")):
        running += {"started": 1, "finished": -1}[what]
        peak = max(peak, running)
    assert peak == at_once


def test_what_is_already_there_is_not_done_again(run) -> None:
    note = Path("note").absolute()

    def started() -> int:
        count = noted(note).count("started")
        note.unlink(missing_ok=True)
        return count

    lines = [{"visual_input": write_input(f"{name}.mp4", note=str(note), name=name)} for name in "abc"]
    write_batch(Path("batch.jsonl"), *lines, {"visual_input": "late.mp4"})
    command = ["base", "--batch_input_path=batch.jsonl"]

    assert run(*command)[0] == 1
    assert started() == 3

    write_input("late.mp4", note=str(note))
    first = results()
    assert run(*command)[:2] == (0, "outputs: 4 generated (3 of them by an earlier run)\n")
    assert started() == 1, "only the line that failed"
    assert results()[:3] == first[:3]

    Path("outputs/1.mp4").unlink()
    run(*command)
    assert started() == 1, "only the line whose file is gone"

    write_input("b.mp4", note=str(note), name="another")
    run(*command)
    assert started() == 1, "only the line whose input changed"

    run(*command, "--seed=5")
    assert started() == 4, "another seed makes other videos"
    assert Path("outputs/0.mp4").read_bytes() == b"video of seed 5"


def test_a_spoiled_results_file_costs_no_more_than_the_work(run) -> None:
    write_batch(Path("batch.jsonl"), {"visual_input": write_input("clip.mp4")})
    Path("outputs").mkdir()
    Path("outputs/results.jsonl").write_text('{"index": 0, "file": "0.mp4"}\nnonsense\n[1]\n')
    assert run("base", "--batch_input_path=batch.jsonl")[0] == 0
    assert len(results()) == 1


@pytest.mark.parametrize(("patience", "code", "tries"), [(60.0, 0, 3), (0.0, 1, 1)])
def test_a_busy_server_is_asked_again_for_as_long_as_patience_lasts(
    server: ToyServer, monkeypatch: pytest.MonkeyPatch, patience: float, code: int, tries: int
) -> None:
    monkeypatch.setattr(batch, "_MIN_BACKOFF", 0.01)
    clip = write_input("clip.mp4", note=os.path.abspath("note"), busy=2)
    path = write_batch(Path("batch.jsonl"), {"visual_input": clip})
    with WorldClient(server.grpc_url) as client:
        run = Batch(
            path=path,
            lines=read_batch(path, takes_prompt=False),
            parameters={},
            folder=Path("outputs"),
            deployment="4b",
            concurrency=1,
            retry_seconds=patience,
        )
        assert run.run(client) == code
    assert sum(what in ("refused", "started") for what in noted(Path("note"))) == tries


def test_a_batch_outlives_a_restart_of_the_server(
    toys: Callable[[], ToyServer], capsys: pytest.CaptureFixture[str]
) -> None:
    server = toys()
    server.start()
    clip = write_input("clip.mp4", note=os.path.abspath("note"), stages={"ar_sampler": 10}, seconds=0.1)
    write_batch(Path("batch.jsonl"), *[{"visual_input": clip}] * 4)
    command = ["base", "--batch_input_path=batch.jsonl", "--url", server.grpc_url]
    with ThreadPoolExecutor(1) as pool:
        code = pool.submit(main, command)
        until(lambda: noted(Path("note")).count("started") == 4, seconds=10)
        os.kill(server.triton_pid, signal.SIGKILL)
        assert code.result(timeout=30) == 0
    assert capsys.readouterr().out == "outputs: 4 generated\n"


# Ctrl-C


def interrupt(server: ToyServer, *words: str, when: Callable[[], bool]) -> int:
    command = [*PROGRAM, *words, "--url", server.grpc_url]
    process = subprocess.Popen(command, stdout=subprocess.DEVNULL, stderr=subprocess.PIPE)
    until(when, seconds=20)
    process.send_signal(signal.SIGINT)
    code = process.wait(timeout=5)
    assert process.stderr.read() == b""
    process.stderr.close()
    return code


def test_ctrl_c_cancels_the_request(server: ToyServer) -> None:
    note = Path("note").absolute()
    write_input("clip.mp4", note=str(note), **SLOW)
    assert interrupt(server, "generate", "clip.mp4", when=lambda: "started" in noted(note)) == 130
    until(lambda: "cancelled" in noted(note), seconds=2)
    assert not Path("outputs").exists()


def test_ctrl_c_cancels_a_batch_and_keeps_what_is_done(server: ToyServer) -> None:
    note = Path("note").absolute()
    slow = write_input("slow.mp4", note=str(note), **SLOW)
    write_batch(Path("batch.jsonl"), {"visual_input": write_input("quick.mp4")}, *[{"visual_input": slow}] * 9)

    def is_under_way() -> bool:
        return Path("outputs/results.jsonl").exists() and noted(note).count("started") == 4

    assert interrupt(server, "base", "--batch_input_path=batch.jsonl", when=is_under_way) == 130
    until(lambda: noted(note).count("cancelled") == 4, seconds=2)
    assert noted(note).count("started") == 4, "a line was begun after Ctrl-C"
    assert [line["file"] for line in results()] == ["0.mp4"]
    assert sorted(os.listdir("outputs")) == ["0.mp4", "results.jsonl"]
