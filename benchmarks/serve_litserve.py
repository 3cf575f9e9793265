"""PyTorch in LitServe, which joins requests that wait: python serve_litserve.py PORT."""

import sys

import litserve
import torch
from serve_torch import MOST, WAIT, network, picture


class Api(litserve.LitAPI):
    """LitServe runs it in a process of its own."""

    def setup(self, device):
        """Makes the network."""
        self.model = network()

    def decode_request(self, request):
        """Returns a request's picture."""
        return picture(request)

    def predict(self, x):
        """Returns the logits of those that are joined."""
        with torch.inference_mode():
            return self.model(x)

    def encode_response(self, output):
        """Returns the answer to one."""
        return {"output": output.tolist()}


if __name__ == "__main__":
    server = litserve.LitServer(Api(max_batch_size=MOST, batch_timeout=WAIT), accelerator="cpu")
    server.run(port=int(sys.argv[1]), log_level="error", generate_client_file=False)
