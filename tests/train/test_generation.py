"""Texts of a run, from Python and on the command line."""

import dataclasses
import os
import pathlib
import subprocess
import sys

import numpy as np
import pytest

import lsm
from lsm import Data, Experiment, Mesh, Train
from lsm.data import Arrays, CharText, Subwords, Texts
from lsm.errors import ConfigError, DataError
from lsm.generate import GREEDY, Sampling
from lsm.models import GPT, MLP, Transformer
from lsm.optim import Adam
from lsm.tasks import Classification, LanguageModelling

LINE = "jumping-fox. "  # each character tells the next
CONFIG = f"""
import sys
sys.path.insert(0, {str(pathlib.Path(__file__).parent)!r})
from test_generation import experiment as get_config
"""


def lines(count=1):
    texts = np.empty(count, object)
    texts[:] = [LINE * 8] * count
    return Arrays({"text": texts})


def experiment(source=None, vocabulary=13, **changes):
    blocks = Transformer(layers=1, heads=2, width=32)
    source = source or CharText(source=lines(), length=16)
    return Experiment(
        name="line",
        task=LanguageModelling(model=GPT(vocabulary=vocabulary, context=24, transformer=blocks)),
        data=Data(source=source, validation=None, test=None),
        optimizer=Adam(learning_rate=1e-2),
        train=Train(steps=60, batch_size=8),
        writers=(),
        **changes,
    )


@pytest.fixture(scope="module")
def run(tmp_path_factory):
    """A run that has learnt a line by heart, and its folder."""
    folder = tmp_path_factory.mktemp("run")
    (folder / "config.py").write_text(CONFIG)
    lsm.fit(experiment(), folder / "run")
    return lsm.load(folder / "run", experiment=experiment()), folder


def test_a_text_goes_on_as_it_was_learnt(run):
    trained, _ = run
    (text,) = trained.generate("jumping", max_tokens=60, sampling=GREEDY)
    assert ("jumping" + text.text) == (LINE * 6)[:67]  # past the context of 24
    assert text.finish == "length" and len(text.tokens) == len(text.log_probabilities) == 60
    assert "".join(trained.stream("jumping", max_tokens=60, sampling=GREEDY)) == text.text
    (short,) = trained.generate("jumping", sampling=GREEDY, stop=["mat", "x. j"])
    assert (short.text, short.finish) == ("-fo", "stop")


def test_samples_are_a_function_of_the_seed(run):
    trained, _ = run
    hot = {"max_tokens": 10, "sampling": Sampling(temperature=3.0), "samples": 3}
    texts = trained.generate(["jump", "fox. j"], **hot, seed=1)
    assert texts == trained.generate(["jump", "fox. j"], **hot, seed=1)
    assert len({text.text for text in texts}) == 6
    assert texts != trained.generate(["jump", "fox. j"], **hot, seed=2)
    assert trained.generate("jump", **hot | {"samples": 1}, seed=1)[0].text == texts[0].text


def test_prompts_may_come_one_by_one(run):
    trained, _ = run
    given, options = ["jump", "fox. j"], {"max_tokens": 3, "sampling": GREEDY}
    assert trained.generate(iter(given), **options) == trained.generate(given, **options)
    assert trained.generate([]) == []


def test_log_probabilities_are_those_that_it_predicts(run):
    """The same run, asked for its next tokens in the other way."""
    trained, _ = run
    (text,) = trained.generate("jumping", max_tokens=9, sampling=Sampling(temperature=2.0))
    said = trained.predict("jumping" + text.text)["log_probability"][0]
    np.testing.assert_allclose(text.log_probabilities, said[len("jumping") - 1 :], atol=1e-5)


def test_what_cannot_be_written_is_one_line(run):
    trained, _ = run
    with pytest.raises(
        DataError, match=r"prompt: character 'é' \(U\+00E9\) is none of the 13 that"
    ):
        trained.generate("é")
    with pytest.raises(ConfigError, match="prompt: number 1 has no token"):
        trained.generate("")
    with pytest.raises(ConfigError, match="24 tokens; the model's context is 24, and allowed is"):
        trained.generate("x" * 24)
    with pytest.raises(ConfigError, match="stop: 'END' given; strings"):
        trained.generate("x", stop="END")
    with pytest.raises(ConfigError, match="samples: 0 given; allowed: 1 or more"):
        trained.generate("x", samples=0)


def test_a_task_that_writes_nothing_says_so(run):
    trained, _ = run
    other = dataclasses.replace(trained.experiment, task=Classification(model=MLP()))
    with pytest.raises(ConfigError, match="generate: Classification of MLP writes no texts; a GPT"):
        dataclasses.replace(trained, experiment=other).decoder


@pytest.mark.slow
def test_subwords_on_eight_devices(tmp_path):
    pytest.importorskip("tokenizers", reason="needs pip install 'lsm[text]'")
    subwords = Subwords(kind="bpe", size=300)
    source = Texts(lines(16), subwords, {"tokens": "text"}, 17, begin_end=("tokens",))
    made = experiment(source, 300, mesh=Mesh(data=2, fsdp=2, tensor=2))
    lsm.fit(made, tmp_path)
    trained = lsm.load(tmp_path, experiment=made)
    (text,) = trained.generate("jumping", max_tokens=6, sampling=GREEDY)
    assert (LINE * 4).startswith("jumping" + text.text) and len(text.text) > 6


@pytest.mark.slow
def test_the_command_line_prints_texts(run):
    _, folder = run

    def said(*flags):
        words = ["-m", "lsm", f"--config={folder}/config.py", f"--workdir={folder}/run"]
        done = subprocess.run(
            [sys.executable, *words, "--mode=sample", *flags],
            cwd=pathlib.Path(__file__).parents[2],
            env=os.environ | {"XLA_FLAGS": ""},
            capture_output=True,
            text=True,
        )
        return done.returncode, done.stdout, done.stderr.splitlines()[-1:]

    assert said("--prompt=jumping", "--temperature=0", "--max_tokens=6") == (0, LINE + "\n", [])
    code, out, _ = said("--prompt=ju", "--prompt=-f", "--samples=2", "--temperature=0", "--stop=.")
    assert code == 0
    two = ["jumping-fox", "-fox"]
    assert out.splitlines() == [f"[{n + 1}] {two[n // 2]}" for n in range(4)]
    line = "error: --prompt is needed with --mode=sample: what the text begins with."
    assert said()[::2] == (1, [line])
