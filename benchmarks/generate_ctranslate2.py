"""CTranslate2's generator, for `generate`: a worker, run as a script.

    python benchmarks/generate_ctranslate2.py FOLDER PROMPTS

It converts the folder by CTranslate2's own converter, then does what `generate_torch.py` does.
"""

import json
import os
import pathlib
import shutil
import sys
import tempfile
import time

import ctranslate2
from ctranslate2.converters import TransformersConverter


def with_tokenizer(folder: pathlib.Path, place: pathlib.Path) -> pathlib.Path:
    """Returns a copy of a folder with a tokenizer, which the converter reads names from."""
    from tokenizers import Tokenizer, models
    from transformers import PreTrainedTokenizerFast

    shutil.copytree(folder, place)
    if not (place / "tokenizer.json").exists():
        size = json.loads((place / "config.json").read_text())["vocab_size"]
        words = Tokenizer(models.WordLevel({f"t{n}": n for n in range(size)}, unk_token="t0"))
        tokenizer = PreTrainedTokenizerFast(tokenizer_object=words, eos_token="t2", bos_token="t1")
        tokenizer.save_pretrained(place)
    return place


if __name__ == "__main__":
    prompts = json.loads(sys.argv[2])
    affinity = getattr(os, "sched_getaffinity", None)
    threads = len(affinity(0)) if affinity else os.cpu_count()
    with tempfile.TemporaryDirectory() as made:
        place = with_tokenizer(pathlib.Path(sys.argv[1]), pathlib.Path(made, "model"))
        converted = TransformersConverter(str(place)).convert(str(pathlib.Path(made, "ct2")))
        options = {"compute_type": "float32", "inter_threads": 1, "intra_threads": threads}
        generator = ctranslate2.Generator(converted, device="cpu", **options)
        names = json.loads((pathlib.Path(converted) / "vocabulary.json").read_text())
        rows = [[names[token] for token in prompt] for prompt in prompts]
        for line in sys.stdin:
            count, start = int(line), time.perf_counter()
            found = generator.generate_batch(
                rows, max_length=count, min_length=count, include_prompt_in_result=False
            )
            seconds = time.perf_counter() - start
            tokens = [row.sequences_ids[0] for row in found]
            print(json.dumps({"seconds": seconds, "tokens": tokens}), flush=True)
