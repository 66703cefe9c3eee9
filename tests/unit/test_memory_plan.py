"""The plan of GPU memory, over every deployment and budget; and what of it reaches the server's configurations."""

from __future__ import annotations

import json
from pathlib import Path

import pytest

from cosmos_triton.cli.main import main
from cosmos_triton.planning.host_memory import available_host_memory
from cosmos_triton.planning.memory_plan import MemoryPlan, plan_memory
from cosmos_triton.planning.stage_options import context_bytes
from cosmos_triton.planning.units import GB, MIB
from cosmos_triton.runtime.deployments import DEPLOYMENTS
from cosmos_triton.runtime.releases import COSMOS_1_0, PREDICT1
from cosmos_triton.runtime.stage_settings import StageSettings
from cosmos_triton.runtime.stages import STAGES
from cosmos_triton.serving.planned_config import RESOURCE, rate_limit_options, write_plan
from cosmos_triton.serving.run_directory import model_repository, read_config
from support.paths import ROOT

RELEASED = [deployment.name for deployment in DEPLOYMENTS.values() if not deployment.is_tiny]
BUDGETS = [*range(8, 160), 160]
# The reference with everything offloaded, GB: its documentation.
LOWEST = {"4b": 18.7, "12b": 27.4, "5b-video2world": 21.1, "13b-video2world": 30.9}

SETTINGS = StageSettings(DEPLOYMENTS["4b"], Path("checkpoints"), "cuda")
WITH_NETWORKS = {name: spec for name, spec in STAGES.items() if spec.networks}
LEAST = 11  # GB that every model fits into: the contexts alone of a video2world model's processes take 6


def plans(deployment: str, *, weights_8bit: bool = False) -> dict[int, MemoryPlan]:
    return {budget: plan_memory(DEPLOYMENTS[deployment], budget, weights_8bit=weights_8bit) for budget in BUDGETS}


@pytest.mark.parametrize("weights_8bit", [False, True])
@pytest.mark.parametrize("deployment", DEPLOYMENTS)
def test_plans_keep_to_their_budget_and_more_memory_is_never_slower(deployment: str, weights_8bit: bool) -> None:
    by_budget = plans(deployment, weights_8bit=weights_8bit)
    for budget, plan in by_budget.items():
        assert plan.fits or budget < LEAST
        assert (plan.peak_bytes <= budget * GB) == plan.fits
        assert (
            plan.resident_bytes + max(stage.workspace_bytes for stage in plan.stages) <= plan.peak_bytes
        )  # any stage can work
        assert plan == plan_memory(DEPLOYMENTS[deployment], budget, weights_8bit=weights_8bit)
    seconds = [plan.seconds for plan in by_budget.values() if plan.fits]
    assert seconds == sorted(seconds, reverse=True)


@pytest.mark.parametrize("deployment", DEPLOYMENTS)
def test_every_stage_that_has_networks_is_planned(deployment: str) -> None:
    expected = {name for name, spec in WITH_NETWORKS.items() if spec.is_in(DEPLOYMENTS[deployment])}
    assert {stage.stage for stage in plan_memory(DEPLOYMENTS[deployment], 24).stages} == expected


@pytest.mark.parametrize("deployment", RELEASED)
def test_8_bit_weights_come_only_where_they_are_asked_for(deployment: str) -> None:
    assert not any(stage.precision == "int8" for plan in plans(deployment).values() for stage in plan.stages)
    asked = plan_memory(DEPLOYMENTS[deployment], 16, weights_8bit=True)
    assert {stage.stage for stage in asked.stages if stage.precision == "int8"} <= {"ar_sampler", "diffusion_decoder"}
    assert asked.seconds < plan_memory(DEPLOYMENTS[deployment], 16).seconds


@pytest.mark.parametrize("deployment", RELEASED)
def test_there_is_a_plan_below_the_references_lowest_figure(deployment: str) -> None:
    plan = plan_memory(DEPLOYMENTS[deployment], 24 if deployment.startswith("1") else 16)
    assert plan.fits
    assert plan.peak_bytes < LOWEST[deployment] * GB


def test_large_cards_keep_everything_and_small_ones_take_turns() -> None:
    modes = {budget: {stage.mode for stage in plan_memory(DEPLOYMENTS["4b"], budget).stages} for budget in (12, 80)}
    assert modes[80] == {"resident"}
    assert modes[12] == {"cpu", "offloaded", "streamed"}
    assert plan_memory(DEPLOYMENTS["4b"], 80).pinned_bytes == 0


def test_ar_layers_are_streamed_only_as_far_as_memory_is_short() -> None:
    """Each costs a pass over the bus a token."""
    layers = [
        next(stage for stage in plan_memory(DEPLOYMENTS["12b"], budget).stages if stage.stage == "ar_sampler")
        for budget in (12, 16, 24, 32)
    ]
    counts = [stage.streamed_blocks for stage in layers]
    assert counts == sorted(counts, reverse=True)
    assert counts[0] > 20
    assert counts[-1] == 0


def test_what_does_not_fit_says_what_it_takes(capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["plan", "--deployment", "13b-video2world", "--gpu-memory", "4"]) == 1
    title = capsys.readouterr().out.splitlines()[0]
    needed = plan_memory(DEPLOYMENTS["13b-video2world"], 4).peak_bytes / GB
    assert title == f"13b-video2world in 4.0 GB of GPU memory: does not fit; it needs {needed:.1f} GB, used like this"
    assert plan_memory(DEPLOYMENTS["13b-video2world"], needed + 0.001).fits
    assert not plan_memory(DEPLOYMENTS["13b-video2world"], needed - 0.05).fits
    assert main(["plan", "--deployment", "13b-video2world", "--gpu-memory", "4", "--json"]) == 1
    assert json.loads(capsys.readouterr().out)["fits"] is False


def test_plan_is_a_table_with_a_row_a_stage_or_json(capsys: pytest.CaptureFixture[str]) -> None:
    arguments = ["plan", "--deployment", "5b-video2world", "--gpu-memory", "24"]
    assert main(arguments) == 0
    table = capsys.readouterr().out
    assert all(any(line.startswith(stage) for line in table.splitlines()) for stage in WITH_NETWORKS)
    assert main([*arguments, "--json"]) == 0
    plan = json.loads(capsys.readouterr().out)
    assert plan["fits"] is True
    assert plan["peak_gb"] <= 24
    assert [stage["stage"] for stage in plan["stages"]] == list(WITH_NETWORKS)


@pytest.mark.parametrize("value", ["0", "65", "many", "-1"])
def test_a_speculation_window_that_is_none_is_refused_by_name(value: str, capsys: pytest.CaptureFixture[str]) -> None:
    with pytest.raises(SystemExit):
        main(["serve", "--deployment", "tiny", f"--speculation={value}"])
    assert f"--speculation: value {value}; accepted: 1 to 64" in capsys.readouterr().err


@pytest.mark.parametrize("value", ["lots", "0", "-3", "nan", "inf"])
@pytest.mark.parametrize("command", ["plan", "serve"])
def test_gpu_memory_that_is_none_is_refused_by_name(
    command: str, value: str, capsys: pytest.CaptureFixture[str]
) -> None:
    assert main([command, "--deployment", "tiny", f"--gpu-memory={value}"]) == 1
    assert f"--gpu-memory: value {value}; accepted: auto, or GB" in capsys.readouterr().err


def test_serve_refuses_what_does_not_fit_before_it_loads_anything(capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["serve", "--deployment", "12b", "--gpu-memory", "4"]) == 1
    assert "--gpu-memory: value 4.0; accepted: " in capsys.readouterr().err


def test_serve_refuses_a_budget_that_the_gpu_does_not_have(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setattr("torch.cuda.is_available", lambda: True)
    monkeypatch.setattr("cosmos_triton.serving.serve.free_gpu_memory", lambda: 15.5)
    assert main(["serve", "--deployment", "4b", "--gpu-memory", "24"]) == 1
    assert "--gpu-memory: value 24; accepted: 15.5 or less" in capsys.readouterr().err


def test_serve_refuses_to_pin_more_memory_than_the_host_has(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setattr("cosmos_triton.serving.serve.available_host_memory", lambda: 8 * GB)
    assert main(["serve", "--deployment", "4b", "--gpu-memory", "16"]) == 1
    pinned = plan_memory(DEPLOYMENTS["4b"], 16).pinned_bytes / GB
    error = capsys.readouterr().err
    assert "--gpu-memory: value 16.0; accepted: a budget whose plan pins at most 8.0 GB of host memory" in error
    assert f"this plan pins {pinned:.1f} GB" in error


@pytest.mark.parametrize(("limit", "expected"), [("max", 6_144_000), ("5000000", 4_200_000), ("9000000", 6_144_000)])
def test_memory_of_the_host_is_what_the_container_may_have(tmp_path: Path, limit: str, expected: int) -> None:
    meminfo = tmp_path / "meminfo"
    meminfo.write_text("MemTotal:       8000 kB\nMemFree:        1000 kB\nMemAvailable:   6000 kB\n")
    assert available_host_memory(meminfo, tmp_path / "none") == 6_144_000
    for name, content in {"max": limit, "current": "1000000", "stat": "anon 800000\nfile 200000\n"}.items():
        (tmp_path / f"memory.{name}").write_text(content)
    assert available_host_memory(meminfo, tmp_path) == expected


@pytest.mark.parametrize("budget", [12, 24, 160])
@pytest.mark.parametrize("deployment", ["4b", "13b-video2world"])
def test_configurations_ask_for_what_the_plan_gives(deployment: str, budget: int) -> None:
    plan = plan_memory(DEPLOYMENTS[deployment], budget)
    pool = int(rate_limit_options(plan)[1].rpartition(":")[2])
    assert (plan.resident_bytes >> 20) + pool <= budget * GB / MIB
    for stage in plan.stages:
        config = read_config(model_repository() / stage.stage)
        write_plan(plan, SETTINGS, config)
        parameters = {key: value.string_value for key, value in config.parameters.items()}
        resources = config.instance_group[0].rate_limiter.resources
        assert [(r.name, getattr(r, "global")) for r in resources] == (
            [(RESOURCE, True)] if stage.workspace_bytes else []
        )
        assert all(0 < resource.count <= pool for resource in resources)
        assert parameters["mode"] == stage.mode
        assert config.max_batch_size == 0 or config.max_batch_size == stage.batch
        if stage.mode == "cpu":
            assert parameters["device"] == "cpu"
        else:
            assert (
                stage.resident_bytes - context_bytes(STAGES[stage.stage]) + stage.workspace_bytes
                <= int(parameters["gpu_memory_mib"]) * MIB
                <= budget * GB
            )


def test_later_stages_go_first() -> None:
    """A clip that is nearly finished is not overtaken for ever by clips that begin."""
    plan = plan_memory(DEPLOYMENTS["13b-video2world"], 16)
    priorities = {}
    for stage in plan.stages:
        config = read_config(model_repository() / stage.stage)
        write_plan(plan, SETTINGS, config)
        priorities[stage.stage] = config.instance_group[0].rate_limiter.priority
    at_work = [priorities[stage.stage] for stage in plan.stages if stage.workspace_bytes]
    assert at_work == sorted(at_work, reverse=True)
    assert min(at_work) >= 1


def test_models_without_networks_are_left_as_they_are() -> None:
    config = read_config(model_repository() / "media_decoder")
    write_plan(plan_memory(DEPLOYMENTS["4b"], 16), SETTINGS, config)
    assert config == read_config(model_repository() / "media_decoder")


def document_row(budget: int, *, weights_8bit: bool) -> str:
    cells = []
    for deployment in RELEASED:
        plan = plan_memory(DEPLOYMENTS[deployment], budget, weights_8bit=weights_8bit)
        ar = next(stage for stage in plan.stages if stage.stage == "ar_sampler")
        how = {
            "resident": "one clip at a time" if ar.slots == 1 else f"{ar.slots} clips at once",
            "offloaded": "AR offloaded",
            "streamed": f"{ar.streamed_blocks} AR layers streamed",
        }[ar.mode]
        cells.append(f"{plan.peak_bytes / GB:.1f} GB, {plan.seconds:.0f} s, {how}")
    name = f"{budget}, 8-bit" if weights_8bit else str(budget)
    return " | ".join([f"| {name}", *cells]) + " |"


def test_gpu_memory_document_has_the_plans_numbers() -> None:
    document = (ROOT / "docs" / "gpu-memory.md").read_text()
    head = " | ".join(["| GB", *(f"`{name}`" for name in RELEASED)]) + " |"
    rows = [(80, False), (48, False), (24, False), (24, True), (16, False), (16, True), (12, False)]
    table = "\n".join([head, "|---" * 5 + "|", *(document_row(budget, weights_8bit=short) for budget, short in rows)])
    assert table in document, table


def test_a_clip_of_predict1_takes_an_evaluation_less() -> None:
    old, new = (plan_memory(DEPLOYMENTS["4b"].of(release), 80) for release in (COSMOS_1_0, PREDICT1))
    assert new.resident_bytes == old.resident_bytes
    decoders = [next(s.seconds for s in plan.stages if s.stage == "diffusion_decoder") for plan in (old, new)]
    assert decoders[1] / decoders[0] == pytest.approx(15 / 16, abs=0.01)
    assert main(["plan", "--deployment=4b", "--release=predict1", "--gpu-memory=80"]) == 0
