"""Outputs are tried before anything is generated, and what was generated is never lost."""

from __future__ import annotations

import json
import os
import resource
import signal
import stat
import subprocess
import sys
import tempfile
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path

import pytest

from cosmos_triton.cli.generate_command import default_output
from cosmos_triton.cli.main import main
from cosmos_triton.export.checkpoints import convert as convert_module
from cosmos_triton.export.checkpoints import download as download_module
from cosmos_triton.export.graphs import onnx_export
from cosmos_triton.tiny import checkpoint_tree
from support.played_server import PlayedServer, refuse

VIDEO = b"video of clip"


@pytest.fixture(autouse=True)
def folder(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """An empty working directory, and a folder for temporary files beside it."""
    (tmp_path / "here").mkdir()
    (tmp_path / "temporary").mkdir()
    monkeypatch.chdir(tmp_path / "here")
    monkeypatch.setattr(tempfile, "tempdir", str(tmp_path / "temporary"))
    Path("clip.mp4").write_bytes(b"clip")
    Path("batch.jsonl").write_text('{"visual_input": "clip.mp4"}\n')
    return tmp_path


@pytest.fixture
def server(monkeypatch: pytest.MonkeyPatch) -> PlayedServer:
    return PlayedServer().install(monkeypatch)


def a_folder() -> str:
    Path("folder").mkdir()
    return "folder"


def a_loop() -> str:
    Path("loop").symlink_to("loop2")
    Path("loop2").symlink_to("loop")
    return "loop"


def a_read_only_file() -> str:
    Path("kept.mp4").write_bytes(b"old")
    Path("kept.mp4").chmod(0o444)
    return "kept.mp4"


def a_link_into_nowhere() -> str:
    Path("link").symlink_to("/proc/nowhere/x.mp4")
    return "link"


BAD_FILES: dict[str, Callable[[], str]] = {
    "folder": a_folder,
    "the working directory": lambda: ".",
    "loop": a_loop,
    "under a loop": lambda: f"{a_loop()}/x.mp4",
    "read-only": a_read_only_file,
    "under a file": lambda: "clip.mp4/x.mp4",
    "under a file, deeper": lambda: "clip.mp4/new/x.mp4",
    "name of 256 bytes": lambda: "x" * 252 + ".mp4",
    "name of 256 bytes in UTF-8": lambda: "\u00e9" * 126 + ".mp4",
    "name in a new folder": lambda: "new/" + "x" * 300,
    "name of a new folder": lambda: "new/" + "x" * 300 + "/x.mp4",
    "path of 5000 bytes": lambda: "new/" * 1250 + "x.mp4",
    "folder that takes no files": lambda: "/proc/x.mp4",
    "folder that takes no folders": lambda: "/proc/new/x.mp4",
    "link": a_link_into_nowhere,
}
BAD_FOLDERS = {name: BAD_FILES[name] for name in ("loop", "under a file", "name in a new folder", "name of 256 bytes")}
BAD_FOLDERS |= {"file": lambda: "clip.mp4", "takes no files": lambda: "/proc", "link": a_link_into_nowhere}


def tree() -> list[str]:
    return sorted(map(str, Path().rglob("*")))


def assert_refused(words: list[str], flag: str, capsys: pytest.CaptureFixture[str]) -> None:
    before = tree()
    assert main(words) == 2
    out, err = capsys.readouterr()
    assert (out, err.count("\n")) == ("", 1)
    assert flag in err
    assert "accepted: " in err
    assert "cosmos-triton-" not in err
    assert tree() == before, "something was left behind"


@pytest.mark.parametrize("bad", BAD_FILES.values(), ids=BAD_FILES)
@pytest.mark.parametrize("flag", ["--output", "--report"])
def test_a_file_that_cannot_be_written_is_refused_before_generation(
    server: PlayedServer, capsys: pytest.CaptureFixture[str], flag: str, bad: Callable[[], str]
) -> None:
    assert_refused(["generate", "clip.mp4", flag, bad()], f"{flag}: value ", capsys)
    assert server.inputs == []


@pytest.mark.parametrize("bad", BAD_FOLDERS.values(), ids=BAD_FOLDERS)
@pytest.mark.parametrize("words", ["--input_image_or_video_path=clip.mp4", "--batch_input_path=batch.jsonl"])
def test_a_folder_that_cannot_be_written_is_refused_before_generation(
    server: PlayedServer, capsys: pytest.CaptureFixture[str], words: str, bad: Callable[[], str]
) -> None:
    assert_refused(["base", words, "--video_save_folder", bad()], "--video_save_folder: value ", capsys)
    assert server.inputs == []


@pytest.mark.parametrize("name", ["x" * 252, "\u00e9" * 126, "folder"])
def test_a_name_that_cannot_be_written_is_refused_before_generation(
    server: PlayedServer, capsys: pytest.CaptureFixture[str], name: str
) -> None:
    Path("outputs/folder.mp4").mkdir(parents=True)
    words = ["base", "--input_image_or_video_path=clip.mp4", "--video_save_name", name]
    assert_refused(words, "--video_save_name", capsys)
    assert server.inputs == []


@pytest.mark.parametrize("bad", BAD_FOLDERS.values(), ids=BAD_FOLDERS)
@pytest.mark.parametrize(
    ("words", "flag"),
    [
        ("checkpoints tiny", "DIR"),
        ("checkpoints convert", "DIR"),
        ("checkpoints download --deployment 4b --to", "--to"),
        ("export onnx --deployment tiny --output", "--output"),
    ],
)
def test_a_folder_for_checkpoints_or_graphs_is_tried_before_any_work(
    capsys: pytest.CaptureFixture[str],
    monkeypatch: pytest.MonkeyPatch,
    words: str,
    flag: str,
    bad: Callable[[], str],
) -> None:
    for module, name in (
        (checkpoint_tree, "write_tiny_tree"),
        (convert_module, "convert"),
        (download_module, "download"),
        (onnx_export, "export_onnx"),
    ):
        monkeypatch.setattr(module, name, lambda *_, **__: pytest.fail("work was begun"))
    assert_refused([*words.split(), bad()], f"{flag}: value ", capsys)


@contextmanager
def no_file_above(size: int) -> Iterator[None]:
    limits = resource.getrlimit(resource.RLIMIT_FSIZE)
    resource.setrlimit(resource.RLIMIT_FSIZE, (size, limits[1]))
    try:
        yield
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, limits)


@pytest.mark.parametrize("words", ["generate clip.mp4 --output o/x.mp4", "base --batch_input_path=batch.jsonl"])
def test_no_room_for_a_video_is_known_before_generation(
    server: PlayedServer, capsys: pytest.CaptureFixture[str], words: str
) -> None:
    with no_file_above(2**20):
        assert_refused(words.split(), "--", capsys)
    assert server.inputs == []


def test_outputs_that_can_be_written_are(server: PlayedServer) -> None:
    Path("real").mkdir()
    Path("link.mp4").symlink_to("real/linked.mp4")
    Path("old.mp4").write_bytes(b"old")
    longest = "\u00e9" * 125 + "x.mp4"
    for output in ("new/deep/x.mp4", "old.mp4", longest, "link.mp4", "a\nb.mp4"):
        assert main(["generate", "clip.mp4", "--output", output, "--report", "r/r.json"]) == 0
    for output in ("new/deep/x.mp4", "old.mp4", longest, "real/linked.mp4", "a\nb.mp4"):
        assert Path(output).read_bytes() == VIDEO
    assert Path("link.mp4").is_symlink()
    assert not [path for path in tree() if "cosmos-triton" in path]
    assert stat.S_IMODE(Path("old.mp4").stat().st_mode) == 0o666 & ~current_umask()


def current_umask() -> int:
    os.umask(mask := os.umask(0))
    return mask


@pytest.mark.parametrize(
    ("flags", "expected"),
    [
        (["--report", "clip.mp4"], "--report: value 'clip.mp4'; accepted: a file other than the input"),
        (
            ["--report", "./outputs/clip.mp4"],
            "--report: value 'outputs/clip.mp4'; accepted: a file other than the video",
        ),
        (["--output", "link.mp4"], "output: value 'link.mp4'; accepted: a file other than the input"),
    ],
)
def test_input_video_and_report_are_three_files(
    server: PlayedServer, capsys: pytest.CaptureFixture[str], flags: list[str], expected: str
) -> None:
    Path("link.mp4").symlink_to("clip.mp4")
    assert main(["generate", "clip.mp4", *flags]) == 2
    assert expected in capsys.readouterr().err
    assert server.inputs == []
    assert Path("clip.mp4").read_bytes() == b"clip"


def kept(folder: Path) -> list[bytes]:
    return [path.read_bytes() for path in folder.iterdir() if path.name.startswith("cosmos-triton-")]


def become_folder(*paths: str) -> Callable[[bytes], None]:
    def play(_: bytes) -> None:
        for path in paths:
            Path(path).mkdir(parents=True)

    return play


def test_a_video_whose_output_fails_after_generation_is_kept_and_the_message_says_where(
    server: PlayedServer, folder: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    server.on_request = become_folder("x.mp4")
    assert main(["generate", "clip.mp4", "--output", "x.mp4", "--report", "r.json"]) == 1
    out, err = capsys.readouterr()
    assert out == ""
    [line] = [line for line in err.splitlines() if line.startswith("--output: ")]
    assert Path(line.rpartition(" it is kept in ")[2]).read_bytes() == VIDEO
    assert kept(folder / "temporary") == [VIDEO]
    assert json.loads(Path("r.json").read_text())["outcome"] == "generated"


def test_a_report_that_fails_after_generation_costs_no_video(
    server: PlayedServer, folder: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    server.on_request = become_folder("r.json")
    assert main(["generate", "clip.mp4", "--output", "x.mp4", "--report", "r.json"]) == 1
    assert Path("x.mp4").read_bytes() == VIDEO
    [report] = kept(folder / "temporary")
    assert json.loads(report)["outcome"] == "generated"
    out, err = capsys.readouterr()
    assert out.startswith("x.mp4: generated in ")
    assert "--report: value 'r.json': Is a directory; it is kept in " in err


def test_a_full_temporary_folder_is_no_loss_either(
    server: PlayedServer, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setattr(tempfile, "tempdir", "/proc")
    server.on_request = become_folder("x.mp4")
    assert main(["generate", "clip.mp4", "--output", "x.mp4"]) == 1
    assert "--output: value 'x.mp4': Is a directory; it is kept in " in capsys.readouterr().err
    assert kept(Path()) == [VIDEO]


def test_a_device_is_written_in_place(server: PlayedServer) -> None:
    """A terminal, whose folder takes no other files: were it replaced as a file is, /dev/null would be too."""
    screen, terminal = os.openpty()
    device = os.ttyname(terminal)
    assert main(["generate", "clip.mp4", "--output", device]) == 0
    assert os.read(screen, 1000) == VIDEO
    assert stat.S_ISCHR(os.stat(device).st_mode)
    os.close(terminal)
    os.close(screen)


def test_a_pipe_is_written_if_somebody_reads_it(server: PlayedServer, folder: Path) -> None:
    os.mkfifo("pipe")
    assert main(["generate", "clip.mp4", "--output", "pipe"]) == 1
    assert kept(folder / "temporary") == [VIDEO]
    reader = os.open("pipe", os.O_RDONLY | os.O_NONBLOCK)
    assert main(["generate", "clip.mp4", "--output", "pipe"]) == 0
    assert os.read(reader, 1000) == VIDEO
    os.close(reader)


def test_inputs_of_one_folder_have_outputs_of_their_own(server: PlayedServer) -> None:
    inputs = ["clip.mp4", "clip.jpg", "clip.png", "clip.MP4", "clip.webp"]
    assert len({default_output(Path(name)) for name in inputs}) == len(inputs)
    for name in inputs:
        Path(name).write_bytes(name.encode())
        assert main(["generate", name]) == 0
    assert Path("outputs/clip.mp4").read_bytes() == b"video of clip.mp4"
    assert Path("outputs/clip.jpg.mp4").read_bytes() == b"video of clip.jpg"


# Batches


def write_batch(*names: str) -> None:
    for name in names:
        Path(name).write_bytes(name.encode())
    Path("batch.jsonl").write_text("".join(json.dumps({"visual_input": name}) + "\n" for name in names))


def run_batch(*words: str) -> int:
    return main(["base", "--batch_input_path=batch.jsonl", *words])


def results() -> list[dict]:
    return [json.loads(line) for line in Path("outputs/results.jsonl").read_text().splitlines()]


def test_a_line_whose_output_cannot_be_written_costs_no_generation(
    server: PlayedServer, capsys: pytest.CaptureFixture[str]
) -> None:
    write_batch("a", "b", "c")
    Path("outputs/1.mp4").mkdir(parents=True)
    assert run_batch() == 1
    assert sorted(server.inputs) == [b"a", b"c"]
    assert "batch.jsonl:2: b: --video_save_folder: value 'outputs/1.mp4'; accepted: " in capsys.readouterr().err
    assert Path("outputs/2.mp4").read_bytes() == b"video of c"


def test_a_line_whose_output_fails_after_generation_is_kept(
    server: PlayedServer, folder: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    write_batch("a", "b")
    server.on_request = lambda content: Path("outputs/1.mp4").mkdir() if content == b"b" else None
    assert run_batch() == 1
    assert kept(folder / "temporary") == [b"video of b"]
    assert " it is kept in " in results()[1]["error"]
    assert results()[1]["report"]["outcome"] == "generated"


def test_results_that_cannot_be_written_end_no_batch(server: PlayedServer, capsys: pytest.CaptureFixture[str]) -> None:
    write_batch("a", "b", "c")
    server.on_request = lambda content: Path("outputs/results.jsonl").mkdir(exist_ok=True)
    assert run_batch() == 1
    assert capsys.readouterr().err.count("results.jsonl") == 1
    assert sorted(path.name for path in Path("outputs").glob("*.mp4")) == ["0.mp4", "1.mp4", "2.mp4"]


@pytest.mark.parametrize("failure", ["the server refuses", "the input is gone", "the line is broken"])
def test_a_rerun_that_fails_leaves_no_earlier_video_in_its_place(server: PlayedServer, failure: str) -> None:
    write_batch("a", "b")
    assert run_batch() == 0
    if failure == "the server refuses":
        server.on_request = refuse("no")
    elif failure == "the input is gone":
        Path("a").unlink()
    else:
        Path("batch.jsonl").write_text('nonsense\n{"visual_input": "b"}\n')
    assert run_batch("--seed=1") == 1
    assert not Path("outputs/0.mp4").exists()
    assert Path("outputs/0.earlier.mp4").read_bytes() == b"video of a", "it was paid for"
    assert (results()[0]["outcome"], results()[0]["file"]) == ("failed", None)


CHANGES = {
    "seed": ["--seed=1"],
    "temperature": ["--temperature=0.5"],
    "top_p": ["--top_p=0.5"],
    "frames": ["--num_input_frames=1"],
    "decoder": ["--disable_diffusion_decoder"],
}


@pytest.mark.parametrize("change", [*CHANGES, "content", "deployment", "nothing"])
def test_a_rerun_keeps_a_video_only_if_nothing_that_determines_it_has_changed(
    server: PlayedServer, change: str
) -> None:
    write_batch("a")
    assert run_batch() == 0
    if change == "content":
        Path("a").write_bytes(b"other")
    elif change == "deployment":
        server.deployment = "12b"
    assert run_batch(*CHANGES.get(change, [])) == 0
    assert len(server.inputs) == (1 if change == "nothing" else 2)


def test_a_rerun_that_is_interrupted_loses_no_earlier_result(server: PlayedServer) -> None:
    write_batch("a", "b", "c")
    assert run_batch() == 0
    earlier = results()

    def interrupt(content: bytes) -> None:
        if content == b"b":
            raise KeyboardInterrupt

    server.on_request = interrupt
    assert run_batch("--seed=1", "--concurrency=1") not in (0, 1, 2)
    assert [line["index"] for line in results()] == [0, 1, 2]
    assert results()[0]["fingerprint"] != earlier[0]["fingerprint"]
    assert results()[1:] == earlier[1:]


def test_a_batch_that_would_write_over_its_own_inputs_is_refused(
    server: PlayedServer, capsys: pytest.CaptureFixture[str]
) -> None:
    Path("outputs").mkdir()
    write_batch("a", "outputs/0.mp4")
    assert run_batch() == 1
    assert server.inputs == [b"a"]
    assert "batch.jsonl:2: visual_input: value 'outputs/0.mp4'; accepted: a file the batch does not write" in (
        capsys.readouterr().err
    )
    before = Path("outputs/results.jsonl").read_bytes()
    assert main(["base", "--batch_input_path=outputs/results.jsonl"]) == 2
    assert Path("outputs/results.jsonl").read_bytes() == before


HOLD = """
import sys
from pathlib import Path
from cosmos_triton.cli.batch_lock import locked
with locked("", Path("outputs")):
    print("held", flush=True)
    sys.stdin.read()
"""


def test_two_batches_do_not_share_a_folder_and_a_dead_one_holds_none(
    server: PlayedServer, capsys: pytest.CaptureFixture[str]
) -> None:
    Path("outputs").mkdir()
    write_batch("a")
    holder = subprocess.Popen([sys.executable, "-c", HOLD], stdin=subprocess.PIPE, stdout=subprocess.PIPE)
    try:
        assert holder.stdout.readline() == b"held\n"
        assert_refused(["base", "--batch_input_path=batch.jsonl"], "--video_save_folder: value 'outputs'", capsys)
        assert server.inputs == []
        assert run_batch("--video_save_folder=elsewhere") == 0
    finally:
        holder.send_signal(signal.SIGKILL)
        holder.communicate()
    assert run_batch() == 0
    assert sorted(os.listdir("outputs")) == ["0.mp4", "results.jsonl"]


@pytest.mark.parametrize(
    "spoiled",
    [
        '{"index": [0], "visual_input": null, "prompt": null, "outcome": "generated"}',
        '{"index": "0", "visual_input": null, "prompt": null, "outcome": "generated"}',
        '{"index": 0, "visual_input": null, "prompt": null, "outcome": "generated", "report": 7, "file": "0.mp4"}',
        '{"index": 0, "visual_input": null, "prompt": null, "outcome": "generated", "file": ["0.mp4"]}',
        "[" * 100_000,
        "\u0000\ufffd",
    ],
    ids=range(6),
)
def test_a_spoiled_line_of_earlier_results_is_no_result(server: PlayedServer, spoiled: str) -> None:
    write_batch("a")
    Path("outputs").mkdir()
    Path("outputs/results.jsonl").write_text(spoiled + "\n")
    assert run_batch() == 0
    assert [line["file"] for line in results()] == ["0.mp4"]
