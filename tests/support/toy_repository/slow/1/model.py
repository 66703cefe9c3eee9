import time

import triton_python_backend_utils as pb


class TritonPythonModel:
    def execute(self, requests):
        responses = []
        for request in requests:
            seconds = pb.get_input_tensor_by_name(request, "seconds")
            time.sleep(float(seconds.as_numpy()[0]))
            responses.append(pb.InferenceResponse([seconds]))
        return responses

    def finalize(self):
        pb.Logger.log_info("slow: finalized")
