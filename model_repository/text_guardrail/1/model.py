"""The stage text_guardrail: a prompt -> whether a video may be made of it."""

from dataclasses import asdict

from cosmos_triton.guardrail.loading import load_prompt_guardrail
from cosmos_triton.model_repository import glue


class TritonPythonModel:
    def initialize(self, args):
        settings = glue.Settings.for_networks(args)
        self.guardrail = load_prompt_guardrail(settings.checkpoint_dir, settings.device)

    def execute(self, requests):
        return glue.answer_each("text_guardrail", requests, self.judge)

    def judge(self, request):
        [prompt] = glue.texts(request, "prompt")
        verdicts = self.guardrail.judge(prompt)
        last = verdicts[-1]
        verdict = {"safe": last.safe, "guardrail": last.guardrail, "reason": last.reason}
        return [glue.json_tensor("verdict", verdict | {"checks": [asdict(check) for check in verdicts]})]
