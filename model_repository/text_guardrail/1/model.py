"""The stage text_guardrail: a prompt -> the judgement of blocklist and Aegis."""

from cosmos_triton.guardrail.prompt_guardrail import PromptGuardrail
from cosmos_triton.pipeline.settings import Settings
from cosmos_triton.pipeline.stage import Stage
from cosmos_triton.pipeline.tensors import array, string_tensor
from cosmos_triton.runtime.heartbeat import at_work, start_heartbeat


class TritonPythonModel:
    def initialize(self, args):
        start_heartbeat()
        settings = Settings.for_networks(args)
        self.stage = Stage(settings)
        self.placement = settings.placement()
        self.guardrail = PromptGuardrail.load(settings.checkpoint_dir, settings.deployment.release, self.placement)
        settings.warm_up(self.placement, lambda: self.guardrail.judge("a car"))

    @at_work
    def execute(self, requests):
        return self.stage.answer_each(requests, self.judge)

    def judge(self, call):
        with self.placement.on_device():
            judgement = self.guardrail.judge(array(call.inputs, "prompt")[0].decode())
        return [string_tensor("verdict", judgement.to_json())]
