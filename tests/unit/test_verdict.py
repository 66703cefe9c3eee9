"""The fail-closed runner, and the form in which verdicts travel: in doubt, the answer is no."""

from __future__ import annotations

import json
import logging
import subprocess
import sys
import textwrap
from collections.abc import Callable
from typing import Any

import pytest

from cosmos_triton.guardrail.judgement import PROMPT_CHECKS, VIDEO_CHECKS, Judgement, RequiredChecks
from cosmos_triton.guardrail.verdict import GUARDRAIL_ERROR, Verdict, run_check

PASSED = tuple(map(Verdict.passed, PROMPT_CHECKS.names))
FACTS = {"policy_sha256": "0" * 64}


def raising(error: Exception) -> Callable[[], Any]:
    def judge() -> Verdict:
        raise error

    return judge


ODD = {
    "exception": raising(ValueError("boom")),
    "missing file": raising(FileNotFoundError("weights")),
    "out of memory": raising(MemoryError()),
    "nothing": lambda: None,
    "a word": lambda: "safe",
    "true": lambda: True,
    "neither yes nor no": lambda: Verdict("aegis", safe=None),  # type: ignore[arg-type]
    "a number": lambda: Verdict("aegis", safe=1),  # type: ignore[arg-type]
}


@pytest.mark.parametrize("judge", ODD.values(), ids=ODD)
def test_whatever_is_no_verdict_blocks_and_the_log_says_why(
    judge: Callable[[], Any], caplog: pytest.LogCaptureFixture
) -> None:
    verdict = run_check("aegis", judge)
    assert verdict == Verdict.failed("aegis")
    assert verdict.is_error
    assert not verdict.safe
    [record] = caplog.records
    assert record.levelno == logging.ERROR
    assert "Error" in record.message


def test_a_verdict_is_handed_on_as_it_is() -> None:
    for verdict in (Verdict.passed("aegis"), Verdict.blocked("aegis", "O3", reason="no")):
        assert run_check("aegis", lambda verdict=verdict: verdict) is verdict
        assert not verdict.is_error


def test_an_error_that_quotes_the_prompt_is_cut_short_in_the_log(caplog: pytest.LogCaptureFixture) -> None:
    run_check("aegis", raising(ValueError("the prompt was " + "heron " * 500)))
    assert 10 < caplog.text.count("heron") < 50
    assert "test_verdict.py" in caplog.text


@pytest.mark.parametrize(
    "hang", ["time.sleep(60)", "re.match(r'(a+)+$', 'a' * 60 + 'b')"], ids=["lets others run", "lets nobody run"]
)
def test_a_check_that_hangs_ends_its_process(hang: str) -> None:
    source = f"""
        import re, time
        from cosmos_triton.guardrail.verdict import Verdict, run_check
        print(run_check("blocklist", lambda: Verdict.passed("blocklist"), seconds=0.1), flush=True)
        time.sleep(0.3)
        print("still here", flush=True)
        run_check("blocklist", lambda: {hang}, seconds=0.3)
        print("passed", flush=True)
    """
    ended = subprocess.run([sys.executable, "-c", textwrap.dedent(source)], capture_output=True, text=True, timeout=30)
    assert ended.returncode == 1
    assert ended.stdout.splitlines()[1:] == ["still here"]
    assert "Timeout" in ended.stderr
    assert "verdict.py" in ended.stderr


@pytest.mark.parametrize(
    ("judgement", "required"),
    [
        (Judgement(PASSED, FACTS), PROMPT_CHECKS),
        (Judgement((PASSED[0], Verdict.blocked("aegis", "O1", "O3", reason="no")), FACTS), PROMPT_CHECKS),
        (Judgement((Verdict.failed("blocklist"),), FACTS), PROMPT_CHECKS),
        (
            Judgement(tuple(map(Verdict.passed, VIDEO_CHECKS.names)), {"faces_blurred": 3, "frames_blurred": 2}),
            VIDEO_CHECKS,
        ),
    ],
)
def test_a_judgement_arrives_as_it_was_sent(judgement: Judgement, required: RequiredChecks) -> None:
    assert Judgement.read(judgement.to_json().encode(), required) == judgement


def answer(**changes: Any) -> str:
    """A judgement that passes, but for some keys; those that are None are left out."""
    sent = json.loads(Judgement(PASSED, FACTS).to_json()) | changes
    return json.dumps({key: value for key, value in sent.items() if value is not None})


def check(guardrail: str = "aegis", **changes: Any) -> dict[str, Any]:
    categories = ["O3"] if changes.get("safe") is False else []
    return {"guardrail": guardrail, "safe": True, "categories": categories, "reason": ""} | changes


NO_JUDGEMENTS = {
    "empty": "",
    "no JSON": "safe",
    "cut short": answer()[:-1],
    "a list": "[]",
    "true": "true",
    "nothing in it": "{}",
    "nested too deep": "[" * 100_000,
    "not said to be safe": answer(safe=None),
    "safe is a word": answer(safe="true"),
    "safe is a number": answer(safe=1),
    "no checks": answer(checks=None),
    "none that ran": answer(checks=[]),
    "a check is a word": answer(checks=["blocklist", "aegis"]),
    "one is missing": answer(checks=[check("blocklist")]),
    "the other is missing": answer(checks=[check("aegis")]),
    "another order": answer(checks=[check("aegis"), check("blocklist")]),
    "one twice": answer(checks=[check("blocklist"), check("blocklist")]),
    "one too many": answer(checks=[check("blocklist"), check("aegis"), check("aegis")]),
    "one that nobody knows": answer(checks=[check("blocklist"), check("horoscope")]),
    "safe, though one says no": answer(checks=[check("blocklist"), check("aegis", safe=False)]),
    "safe, though the first says no": answer(checks=[check("blocklist", safe=False), check("aegis")]),
    "unsafe, though all say yes": answer(safe=False),
    "a check's word for it": answer(checks=[check("blocklist"), check("aegis", safe="safe")]),
    "categories are a word": answer(checks=[check("blocklist"), check("aegis", categories="O3")]),
    "categories are numbers": answer(checks=[check("blocklist"), check("aegis", categories=[3])]),
    "safe, in a category": answer(checks=[check("blocklist"), check("aegis", categories=["O3"])]),
    "unsafe, for no cause": answer(safe=False, checks=[check("blocklist"), check("aegis", safe=False, categories=[])]),
    "a check with more in it": answer(checks=[check("blocklist"), check("aegis", override=True)]),
    "facts are missing": answer(policy_sha256=None),
    "facts of another type": answer(policy_sha256=7),
    "a fact too many": answer(outcome="generated"),
}


@pytest.mark.parametrize("text", NO_JUDGEMENTS.values(), ids=NO_JUDGEMENTS)
def test_whatever_leaves_a_doubt_is_no_judgement(text: str) -> None:
    Judgement.read(answer(), PROMPT_CHECKS)
    with pytest.raises((ValueError, RecursionError)):
        Judgement.read(text, PROMPT_CHECKS)


def test_the_category_of_an_error_is_the_word_for_it() -> None:
    assert Verdict.failed("aegis").categories == (GUARDRAIL_ERROR,) == ("guardrail_error",)
