"""A pipeline without networks: it plays the scenario that comes in as `visual_input`, over the public tensors.

`visual_input` is b"toy" and a JSON object; a real jpeg, png or mp4 plays the default; anything else is refused.
    stages     {name: steps}, each step an event; default one of each kind
    seconds    a step
    frames     the clip holds
    outcome    "generated", "prompt_blocked" or "video_blocked"
    calls      {stage: seconds}: other toys of this repository, called one after the other before the steps
    error      [code, message] instead of a result, after `error_after` steps
    busy       so many requests with this `note` are refused with UNAVAILABLE before one is taken
    note       path of a file, to which a JSON line is appended when a request is refused, started, cancelled, finished,
               and by slow and sampler when they take it
    padding    so many bytes at the end of the video
"""

import json
import threading
import time

import numpy as np
import triton_python_backend_utils as pb

from cosmos_triton.runtime.heartbeat import start_heartbeat

STAGES = {"media_decoder": 1, "ar_sampler": 4, "diffusion_decoder": 2, "media_encoder": 1}
PARAMETERS = ("num_input_frames", "temperature", "top_p", "seed", "disable_diffusion_decoder")


class TritonPythonModel:
    def initialize(self, args):
        start_heartbeat()
        config = json.loads(args["model_config"])
        self.decoupled = pb.using_decoupled_model_transaction_policy(config)
        self.needs_prompt = config["parameters"]["deployment"]["string_value"].endswith("video2world")

    def execute(self, requests):
        for request in requests:
            given = {tensor.name(): tensor.as_numpy()[0] for tensor in request.inputs()}
            threading.Thread(target=self.answer, args=(given, request.get_response_sender())).start()

    def answer(self, given, sender):
        final = pb.TRITONSERVER_RESPONSE_COMPLETE_FINAL
        try:
            response = self.play(given, sender)
        except Refused as refused:
            code = getattr(pb.TritonError, refused.code)
            response = pb.InferenceResponse(error=pb.TritonError(f"[{refused.code}] {refused.message}", code))
        except Exception as error:
            response = pb.InferenceResponse(error=pb.TritonError(repr(error), pb.TritonError.INTERNAL))
        sender.send(response, flags=final)

    def play(self, given, sender):
        scenario = read_scenario(given["visual_input"])
        parameters = {name: given[name].item() for name in PARAMETERS if name in given}
        frames = scenario.get("frames", 33)
        if parameters.get("num_input_frames", 1) > frames:
            value = parameters["num_input_frames"]
            raise Refused("INVALID_ARG", f"num_input_frames: value {value}; accepted: 1 (the clip has {frames} frames)")
        if not 0 < parameters.get("top_p", 0.8) <= 1:
            raise Refused("INVALID_ARG", f"top_p: value {parameters['top_p']:g}; accepted: above 0, at most 1")
        if ("prompt" in given) != self.needs_prompt:
            value, accepted = ("present", "none (a base model)") if "prompt" in given else ("missing", "a text")
            raise Refused("INVALID_ARG", f"prompt: value {value}; accepted: {accepted}")
        if self.refused_so_far(scenario) < scenario.get("busy", 0):
            note(scenario, what="refused")
            raise Refused("UNAVAILABLE", "queue is full: value 16 requests; accepted: at most 16")
        note(scenario, what="started", prompt=given.get("prompt", b"").decode(), **parameters)
        for stage, seconds in scenario.get("calls", {}).items():
            call(stage, seconds, scenario)
        self.run_stages(scenario, sender)
        note(scenario, what="finished")
        outcome = scenario.get("outcome", "generated")
        report = {
            "outcome": outcome,
            "reason": "" if outcome == "generated" else "blocklist: a word of the prompt",
            "parameters": parameters,
            "faces_blurred": scenario.get("faces", 0),
            "warnings": scenario.get("warnings", []),
        }
        video = b""
        if outcome == "generated":
            video = b"video of seed %d" % parameters.get("seed", 0) + bytes(scenario.get("padding", 0))
        return pb.InferenceResponse([tensor("video", video), tensor("report", json.dumps(report).encode())])

    def refused_so_far(self, scenario):
        if "busy" not in scenario:
            return 0
        try:
            with open(scenario["note"]) as file:
                return file.read().count("refused")
        except FileNotFoundError:
            return 0

    def run_stages(self, scenario, sender):
        step = 0
        for stage, total in scenario.get("stages", STAGES).items():
            for done in range(1, total + 1):
                if "error" in scenario and step == scenario.get("error_after", 0):
                    raise Refused(*scenario["error"])
                time.sleep(scenario.get("seconds", 0))
                if sender.is_cancelled():
                    note(scenario, what="cancelled")
                    raise Refused("CANCELLED", "the request was cancelled")
                step += 1
                if self.decoupled:
                    event = {"stage": stage, "done": done, "total": total}
                    sender.send(pb.InferenceResponse([tensor("event", json.dumps(event).encode())]))


class Refused(Exception):
    def __init__(self, code, message):
        self.code, self.message = code, message


def call(stage, seconds, scenario):
    inputs = [pb.Tensor("seconds", np.array([seconds], np.float32)), tensor("note", scenario.get("note", "").encode())]
    request = pb.InferenceRequest(model_name=stage, requested_output_names=["seconds"], inputs=inputs)
    responses = request.exec(decoupled=True) if stage == "sampler" else [request.exec()]
    for response in responses:
        if response.has_error():
            raise Refused("INTERNAL", response.error().message())


def read_scenario(content):
    if content.startswith(b"toy"):
        return json.loads(content[3:])
    if content[4:8] == b"ftyp" or content[:3] == b"\xff\xd8\xff" or content[:4] == b"\x89PNG":
        return {}
    raise Refused("INVALID_ARG", f"visual_input: value {len(content)} bytes; accepted: a png, jpeg, webp or mp4 file")


def note(scenario, **facts):
    if "note" in scenario:
        with open(scenario["note"], "a") as file:
            file.write(json.dumps(facts) + "\n")


def tensor(name, content):
    return pb.Tensor(name, np.array([content], dtype=np.object_))
