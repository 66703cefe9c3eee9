"""The stage text_guardrail: a prompt -> whether a video may be made of it."""

from cosmos_triton.guardrail.prompt_guardrail import PromptGuardrail
from cosmos_triton.pipeline import glue


class TritonPythonModel:
    def initialize(self, args):
        settings = glue.Settings.for_networks(args)
        self.placement = settings.placement()
        self.guardrail = PromptGuardrail.load(settings.checkpoint_dir, self.placement)

    def execute(self, requests):
        with self.placement.at_work():
            return glue.answer_each("text_guardrail", requests, self.judge)

    def judge(self, request):
        [prompt] = glue.texts(request, "prompt")
        return [glue.string_tensor("verdict", self.guardrail.judge(prompt).to_json())]
