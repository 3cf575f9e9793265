"""transformers' `generate`, for `generate`: a worker, run as a script.

    python benchmarks/generate_torch.py FOLDER PROMPTS

It reads numbers of tokens, and answers each with the seconds that it took and the tokens.
"""

import json
import os
import sys
import time

import torch
from transformers import AutoModelForCausalLM

if __name__ == "__main__":
    folder, prompts = sys.argv[1], torch.tensor(json.loads(sys.argv[2]))
    affinity = getattr(os, "sched_getaffinity", None)
    torch.set_num_threads(len(affinity(0)) if affinity else os.cpu_count())
    model = AutoModelForCausalLM.from_pretrained(folder, dtype=torch.float32).eval()
    options = {"do_sample": False, "pad_token_id": 0, "attention_mask": torch.ones_like(prompts)}
    for line in sys.stdin:
        count, start = int(line), time.perf_counter()
        with torch.inference_mode():
            found = model.generate(
                prompts, max_new_tokens=count, min_new_tokens=count, eos_token_id=None, **options
            )
        seconds = time.perf_counter() - start
        tokens = found[:, prompts.shape[1] :].tolist()
        print(json.dumps({"seconds": seconds, "tokens": tokens}), flush=True)
