import json
import threading
import time

import triton_python_backend_utils as pb

from cosmos_triton.runtime.heartbeat import start_heartbeat


class TritonPythonModel:
    def initialize(self, args):
        start_heartbeat()

    def execute(self, requests):
        for request in requests:
            seconds, note = (
                pb.get_input_tensor_by_name(request, name).as_numpy().copy() for name in ("seconds", "note")
            )
            threading.Thread(target=self.answer, args=(request.get_response_sender(), seconds, note[0])).start()

    def answer(self, sender, seconds, note):
        if note:
            with open(note, "a") as file:
                file.write(json.dumps({"what": "sampler"}) + "\n")
        time.sleep(float(seconds[0]))
        sender.send(pb.InferenceResponse([pb.Tensor("seconds", seconds)]))
        sender.send(flags=pb.TRITONSERVER_RESPONSE_COMPLETE_FINAL)
