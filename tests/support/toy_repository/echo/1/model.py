import triton_python_backend_utils as pb


class TritonPythonModel:
    def execute(self, requests):
        return [pb.InferenceResponse([pb.get_input_tensor_by_name(r, "seconds")]) for r in requests]
