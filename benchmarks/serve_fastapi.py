"""PyTorch behind FastAPI and uvicorn, each request by itself: python serve_fastapi.py PORT."""

import sys

import torch
import uvicorn
from fastapi import FastAPI
from serve_torch import network, picture

app, model = FastAPI(), network()


@app.post("/predict")
def predict(body: dict):
    """Answers 3072 whole numbers with 10 logits; runs in a thread."""
    with torch.inference_mode():
        return {"output": model(picture(body)[None])[0].tolist()}


if __name__ == "__main__":
    uvicorn.run(app, port=int(sys.argv[1]), log_level="error")
