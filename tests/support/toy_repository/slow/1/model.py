import ctypes
import json
import time

import triton_python_backend_utils as pb

from cosmos_triton.runtime.heartbeat import start_heartbeat


class TritonPythonModel:
    def initialize(self, args):
        start_heartbeat()

    def execute(self, requests):
        responses = []
        for request in requests:
            seconds = pb.get_input_tensor_by_name(request, "seconds")
            if note := pb.get_input_tensor_by_name(request, "note").as_numpy()[0]:
                with open(note, "a") as file:
                    file.write(json.dumps({"what": "slow"}) + "\n")
            duration = float(seconds.as_numpy()[0])
            if duration < 0:  # a native call that holds the interpreter lock
                ctypes.PyDLL(None).sleep(int(-duration))
            time.sleep(max(duration, 0))
            responses.append(pb.InferenceResponse([seconds]))
        return responses
