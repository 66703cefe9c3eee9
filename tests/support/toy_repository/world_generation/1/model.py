import threading

import triton_python_backend_utils as pb


class TritonPythonModel:
    def execute(self, requests):
        for request in requests:
            seconds = pb.get_input_tensor_by_name(request, "seconds").as_numpy().copy()
            threading.Thread(target=self.answer, args=(request.get_response_sender(), seconds)).start()

    def answer(self, sender, seconds):
        try:
            for stage in ("slow", "sampler", "echo"):
                seconds = self.call(stage, seconds)
            response = pb.InferenceResponse([pb.Tensor("seconds", seconds)])
        except RuntimeError as error:
            response = pb.InferenceResponse([], error=pb.TritonError(str(error)))
        sender.send(response, flags=pb.TRITONSERVER_RESPONSE_COMPLETE_FINAL)

    def call(self, stage, seconds):
        request = pb.InferenceRequest(
            model_name=stage, requested_output_names=["seconds"], inputs=[pb.Tensor("seconds", seconds)]
        )
        responses = request.exec(decoupled=True) if stage == "sampler" else [request.exec()]
        for response in responses:
            if response.has_error():
                raise RuntimeError(response.error().message())
            if response.output_tensors():
                seconds = pb.get_output_tensor_by_name(response, "seconds").as_numpy().copy()
        return seconds
