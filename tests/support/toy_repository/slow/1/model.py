import json
import time

import triton_python_backend_utils as pb


class TritonPythonModel:
    def execute(self, requests):
        responses = []
        for request in requests:
            seconds = pb.get_input_tensor_by_name(request, "seconds")
            if note := pb.get_input_tensor_by_name(request, "note").as_numpy()[0]:
                with open(note, "a") as file:
                    file.write(json.dumps({"what": "slow"}) + "\n")
            time.sleep(float(seconds.as_numpy()[0]))
            responses.append(pb.InferenceResponse([seconds]))
        return responses

    def finalize(self):
        pb.Logger.log_info("slow: finalized")
