import threading
import time

import triton_python_backend_utils as pb


class TritonPythonModel:
    def execute(self, requests):
        for request in requests:
            seconds = pb.get_input_tensor_by_name(request, "seconds").as_numpy().copy()
            threading.Thread(target=self.answer, args=(request.get_response_sender(), seconds)).start()

    def answer(self, sender, seconds):
        time.sleep(float(seconds[1]))
        sender.send(pb.InferenceResponse([pb.Tensor("seconds", seconds)]))
        sender.send(flags=pb.TRITONSERVER_RESPONSE_COMPLETE_FINAL)
