"""The stage text_guardrail: a prompt -> the judgement of blocklist and Aegis."""

from cosmos_triton.guardrail.prompt_guardrail import PromptGuardrail
from cosmos_triton.pipeline.responses import answer_each
from cosmos_triton.pipeline.settings import Settings
from cosmos_triton.pipeline.tensors import string_tensor, texts
from cosmos_triton.runtime.heartbeat import at_work, start_heartbeat


class TritonPythonModel:
    def initialize(self, args):
        start_heartbeat()
        settings = Settings.for_networks(args)
        self.placement = settings.placement()
        self.guardrail = PromptGuardrail.load(settings.checkpoint_dir, self.placement)
        settings.warm_up(self.placement, lambda: self.guardrail.judge("a car"))

    @at_work
    def execute(self, requests):
        with self.placement.on_device():
            return answer_each("text_guardrail", requests, self.judge)

    def judge(self, request):
        [prompt] = texts(request, "prompt")
        return [string_tensor("verdict", self.guardrail.judge(prompt).to_json())]
