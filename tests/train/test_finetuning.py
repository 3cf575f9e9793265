"""Instruction tuning and DPO as a user does them, by the shipped configs on a tiny model."""

import dataclasses
import json
import pathlib
import sys

import numpy as np
import pytest

import lsm
import lsm.adapt
from lsm.config import flags
from lsm.generate import GREEDY
from lsm.models import GPT, Transformer
from lsm.optim import AdamW
from lsm.tasks import LanguageModelling
from lsm.train.imported import export_run

pytest.importorskip("tokenizers", reason="needs pip install 'lsm[text]'")
pytest.importorskip("jinja2", reason="needs pip install 'lsm[text]'")

ROOT = pathlib.Path(__file__).parents[2]
BLOCKS = Transformer(layers=2, heads=2, kv_heads=1, width=32, theta=1e4, norm="rms", mlp="swiglu")
SMALL = GPT(vocabulary=320, transformer=BLOCKS, context=128)
ANSWERS = {"sea": "It is deep and blue.", "sky": "It is high and grey."}


def written(path, rows):
    path.write_text("".join(json.dumps(row) + "\n" for row in rows))
    return str(path)


BEFORE = {"sea": "It is high and deep.", "sky": "It is blue and grey."}


def chats(answers=ANSWERS, count=48):
    return [
        {
            "messages": [
                {"role": "user", "content": f"{number}: what is the {thing}?"},
                {"role": "assistant", "content": answer},
            ]
        }
        for number in range(count // 2)
        for thing, answer in answers.items()
    ]


def small(experiment, **fields):
    """A shipped config of the tiny model."""
    task = experiment.task
    model = dataclasses.replace(task.model, model=SMALL, rank=4, dropout=0.0)
    task = dataclasses.replace(task, model=model, chunks=4)
    optimizer = AdamW(learning_rate=1e-2)
    train = lsm.Train(steps=40, batch_size=8)
    return dataclasses.replace(
        experiment, task=task, optimizer=optimizer, train=train, writers=(), **fields
    )


@pytest.fixture(scope="module")
def base(tmp_path_factory):
    """What an import makes: a workdir of a plain model, with its tokenizer and chat template."""
    sys.path.insert(0, str(ROOT / "tests/data/texts"))
    from chat_templates import folder

    place = tmp_path_factory.mktemp("base")
    source = lsm.data.Chats(
        written(place / "a.jsonl", chats(BEFORE)), str(folder(place / "model")), length=97
    )
    case = lsm.Experiment(
        name="base",
        task=LanguageModelling(model=SMALL),
        data=lsm.Data(source=source, test=None),
        optimizer=AdamW(learning_rate=1e-2),
        train=lsm.Train(steps=60, batch_size=16),
        writers=(),
    )
    lsm.fit(case, place / "run")
    return place / "run"


def shipped(name, base, path, tmp_path):
    config = ROOT / f"experiments/configs/finetune/{name}.py"
    overrides = {"data.source.path": path, "data.source.length": "97"}
    return flags.load(f"{config}:{base}", overrides)


@pytest.mark.slow
def test_answers_are_learnt_merged_and_then_preferred(base, tmp_path, monkeypatch):
    monkeypatch.setenv("LSM_CACHE", str(tmp_path / "cache"))
    monkeypatch.syspath_prepend(str(ROOT))
    case = shipped("smollm2", base, written(tmp_path / "chats.jsonl", chats()), tmp_path)
    before = lsm.load(base).params["blocks"]["qkv"]["kernel"]
    result = lsm.fit(small(case), tmp_path / "answers")
    assert result.metrics["validation"]["loss"] < 0.5
    run = lsm.load(tmp_path / "answers")  # of its config.json: a tiny model
    np.testing.assert_array_equal(
        run.model_state["constants"]["base"]["blocks"]["qkv"]["kernel"], before
    )
    assert lsm.adapt.merge(tmp_path / "answers", tmp_path / "merged") == run.step

    # Tuned, it answers as it was taught, and goes out with its template and what ends a text.
    (text,) = run.generate([{"role": "user", "content": "3: what is the sea?"}], sampling=GREEDY)
    assert (text.text.strip(), text.finish) == (ANSWERS["sea"], "stop")
    assert export_run(tmp_path / "merged", tmp_path / "there")[0] == "LlamaForCausalLM"
    told = json.loads((tmp_path / "there/tokenizer_config.json").read_text())
    ends = json.loads((tmp_path / "there/generation_config.json").read_text())["eos_token_id"]
    assert "chat_template" in told
    assert run.inputs.encoder.tokens.token_to_id(told["eos_token"]) in ends

    pairs = [
        {"prompt": f"{n}: what is the {thing}?", "chosen": right, "rejected": wrong}
        for n in range(24)
        for thing, right, wrong in (
            ("sea", *ANSWERS.values()),
            ("sky", *reversed(ANSWERS.values())),
        )
    ]
    case = shipped(
        "smollm2_dpo", tmp_path / "merged", written(tmp_path / "pairs.jsonl", pairs), tmp_path
    )
    result = lsm.fit(small(case), tmp_path / "preferred")
    found = result.metrics["validation"]
    assert found["accuracy"] == 1.0 and found["loss"] < 0.6 and found["margin"] > 0.2
    assert lsm.adapt.merge(tmp_path / "preferred", tmp_path / "out") == result.best_step
    merged = lsm.load(tmp_path / "out")
    texts = [f"{n}: what is the sea?" for n in range(3)]
    assert len(merged.predict(texts)["text"]) == 3
