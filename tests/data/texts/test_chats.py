"""Conversations by chat templates, against `transformers` token for token, and their columns."""

import datetime
import json
import logging

import numpy as np
import pytest
from chat_templates import CHATML, CHATS, LLAMA, TEMPLATES, folder

from lsm.data import Chats, Preferences
from lsm.data.inputs import Inputs
from lsm.data.texts.chats import ChatTokenizer, Conversation
from lsm.data.texts.template import ChatTemplate
from lsm.errors import ConfigError, DataError

pytest.importorskip("tokenizers", reason="needs pip install 'lsm[text]'")
pytest.importorskip("jinja2", reason="needs pip install 'lsm[text]'")


@pytest.fixture(autouse=True)
def cache(tmp_path, monkeypatch):
    monkeypatch.setenv("LSM_CACHE", str(tmp_path / "cache"))


@pytest.fixture(scope="module")
def model(tmp_path_factory):
    return folder(tmp_path_factory.mktemp("model"))


def written(path, rows):
    path.write_text("".join(json.dumps(row) + "\n" for row in rows))
    return str(path)


def texts(codec, ids, answers):
    """The runs of tokens that are answers', decoded."""
    edges = np.flatnonzero(np.diff(answers, prepend=False, append=False)).reshape(-1, 2)
    return [codec._tokenizer.decode(ids[a:b], skip_special_tokens=False) for a, b in edges]


@pytest.mark.parametrize("name", TEMPLATES)
def test_tokens_are_those_of_transformers(name, tmp_path):
    transformers = pytest.importorskip("transformers", reason="the reference")
    made = folder(tmp_path, TEMPLATES[name])
    theirs = transformers.AutoTokenizer.from_pretrained(made)
    for chat, (ids, answers) in zip(
        CHATS, ChatTokenizer(made).encoded([Conversation(c) for c in CHATS]), strict=True
    ):
        marked = {"return_assistant_tokens_mask": True} if name == "tagged" else {}
        expected = theirs.apply_chat_template(chat, return_dict=True, **marked)
        assert ids.tolist() == expected["input_ids"]
        if name == "tagged":
            assert answers.tolist() == [bool(x) for x in expected["assistant_masks"]]
        prompt = theirs.apply_chat_template(chat, tokenize=False, add_generation_prompt=True)
        assert ChatTemplate.of(made).render(chat, add_generation_prompt=True) == prompt


def test_tools_reach_the_template_as_in_transformers(tmp_path):
    transformers = pytest.importorskip("transformers", reason="the reference")
    made = folder(tmp_path, LLAMA)
    tools = [{"type": "function", "function": {"name": "get_weather", "description": "<b> 天气"}}]
    theirs = transformers.AutoTokenizer.from_pretrained(made)
    expected = theirs.apply_chat_template(CHATS[0], tools=tools, tokenize=False)
    assert ChatTemplate.of(made).render(CHATS[0], tools) == expected


@pytest.mark.parametrize(
    ("name", "ends"), [("chatml", "<|im_end|>"), ("llama", "<|eot_id|>"), ("tagged", "<|im_end|>")]
)
def test_answers_are_what_the_assistant_writes_and_the_end_of_its_turn(name, ends, tmp_path):
    codec = ChatTokenizer(folder(tmp_path, TEMPLATES[name]))
    for chat, (ids, answers) in zip(
        CHATS, codec.encoded([Conversation(c) for c in CHATS]), strict=True
    ):
        said = [m["content"] for m in chat if m["role"] == "assistant"]
        said = [text.strip() for text in said] if name == "llama" else said
        assert texts(codec, ids, answers) == [text + ends for text in said]


def test_data_do_not_depend_on_the_day(tmp_path):
    dated = "{{ strftime_now('%d %B %Y') }}\n" + CHATML
    codec = ChatTokenizer(folder(tmp_path, dated))
    ((ids, _),) = codec.encoded([Conversation(CHATS[0])])
    assert codec._tokenizer.decode(ids).startswith("26 July 2024\n")
    today = codec.template.render(CHATS[0]).partition("\n")[0]
    written = datetime.datetime.strptime(today, "%d %B %Y")
    assert abs(datetime.datetime.now() - written) < datetime.timedelta(days=2)


def test_columns_weigh_the_answers_alone(model, tmp_path):
    path = written(tmp_path / "a.jsonl", [{"messages": chat, "id": 1} for chat in CHATS])
    dataset = Chats(path, str(model), length=128).open("train")
    batch = dataset.take(np.arange(3))
    rows = ChatTokenizer(model).encoded([Conversation(c) for c in CHATS])
    for row, (ids, answers) in enumerate(rows):
        n = len(ids)
        assert batch["tokens_length"][row] == n and n < 128
        assert batch["tokens"][row].tolist() == [*ids, *[0] * (128 - n)]
        assert batch["weight"][row].tolist() == [*answers[1:], *[0] * (128 - n)]
    assert {n: (x.shape[1:], x.dtype) for n, x in batch.items()} == {
        n: (x.shape, x.dtype) for n, x in dataset.spec.items()
    }
    again = Chats(path, str(model), length=128).open("train").take(np.arange(3))  # of the cache
    assert all((again[name] == x).all() for name, x in batch.items())
    assert dataset.where(1).endswith("a.jsonl: line 2")
    kept = Inputs.from_json(Inputs.of(dataset).to_json(), dataset.encoder.tokenizer)
    assert kept.columns == dataset.spec


def test_packed_rows_hold_the_same_tokens_and_weights(model, tmp_path):
    path = written(tmp_path / "a.jsonl", [{"messages": chat} for chat in CHATS * 3])
    plain, pack = (
        Chats(path, str(model), length=320, pack=pack).open("train") for pack in (False, True)
    )
    one, many = plain.take(np.arange(9)), pack.take(np.arange(len(pack)))
    assert len(pack) < 9 and many["weight"].sum() == one["weight"].sum()
    alone = {
        (tuple(t[:n]), tuple(w[: n - 1]))
        for t, n, w in zip(one["tokens"], one["tokens_length"], one["weight"], strict=True)
    }
    found = []
    for tokens, segments, weight in zip(
        many["tokens"], many["tokens_segments"], many["weight"], strict=True
    ):
        for number in range(1, segments.max() + 1):
            where = np.flatnonzero(segments == number)
            found.append((tuple(tokens[where]), tuple(weight[where[:-1]])))
    assert len(found) == 9 and set(found) == alone


def test_what_is_cut_off_and_lost_is_told(model, tmp_path, caplog):
    long = [{"role": "user", "content": "x" * 300}, {"role": "assistant", "content": "y"}]
    path = written(tmp_path / "a.jsonl", [{"messages": CHATS[0]}, {"messages": long}])
    with caplog.at_level(logging.WARNING, "lsm.data"):
        dataset = Chats(path, str(model), length=64).open("train")
    assert len(dataset) == 1 and dataset.take(np.arange(1))["tokens_length"] == 64
    assert "1 of 2 have no answer within 64 tokens" in caplog.text
    with pytest.raises(DataError, match="split 'train' has no answer within 3 tokens"):
        Chats(path, str(model), length=3).open("train")


def test_preferences_hold_both_answers_to_one_prompt(model, tmp_path):
    rows = [
        {"prompt": "Two and two?", "chosen": "Four.", "rejected": "Five, I say."},
        {
            "prompt": CHATS[0][:3],
            "chosen": [{"role": "assistant", "content": "七"}],
            "rejected": [{"role": "assistant", "content": "?"}],
        },
    ]
    dataset = Preferences(written(tmp_path / "p.jsonl", rows), str(model), length=128).open("train")
    batch, codec = dataset.take(np.arange(2)), ChatTokenizer(model)
    for name, answers in {"chosen": ("Four.", "七"), "rejected": ("Five, I say.", "?")}.items():
        for row, answer in enumerate(answers):
            weight = np.append(False, batch[f"{name}_weight"][row] > 0)
            assert texts(codec, batch[name][row], weight) == [answer + "<|im_end|>"]
    # Up to the answer the two are one.
    same = int(batch["chosen_weight"][0].argmax()) + 1
    assert (batch["chosen"][0][:same] == batch["rejected"][0][:same]).all()


@pytest.mark.parametrize(
    ("row", "line"),
    [
        ({"mesages": []}, "a.jsonl: line 1: there is no field 'messages'.*mean 'mesages'"),
        ({"messages": "hello"}, "line 1: field 'messages': str given; a list of messages"),
        ({"messages": []}, "line 1: field 'messages': list given; a list of messages"),
        ({"messages": [{"from": "human", "value": "x"}]}, "a message of from, value given; 'role'"),
        ({"messages": [{"role": "user"}]}, "line 1: .*a message of role given; 'content' is need"),
        (
            {"messages": [{"role": "user", "content": [{"type": "text"}]}]},
            "'content' of list given",
        ),
    ],
    ids=["field", "text", "empty", "names", "content", "parts"],
)
def test_bad_conversations_are_one_line(model, tmp_path, row, line):
    with pytest.raises(DataError, match=line) as error:
        Chats(written(tmp_path / "a.jsonl", [row]), str(model), length=64).open("train")
    assert "\n" not in str(error.value)


def test_half_a_pair_of_surrogates_is_a_question_mark(model, tmp_path):
    rows = [{"messages": [{"role": "user", "content": "a\ud83d"}, *CHATS[0][1:]]}]
    batch = Chats(written(tmp_path / "a.jsonl", rows), str(model), length=64).open("train")
    codec = ChatTokenizer(model)
    assert "a?" in codec._tokenizer.decode(batch.take(np.arange(1))["tokens"][0])


def test_a_template_that_refuses_is_told_with_the_line(tmp_path):
    made = folder(tmp_path / "model", LLAMA)
    rows = [{"messages": CHATS[0]}, {"messages": [{"role": "wizard", "content": "x"}] * 2}]
    with pytest.raises(DataError, match="line 2: the chat template cannot take.*role: wizard"):
        Chats(written(tmp_path / "a.jsonl", rows), str(made), length=64).open("train")


def test_a_template_that_rewrites_earlier_turns_is_refused(tmp_path):
    rewriting = CHATML.replace("message['content']", "(message['content'] if loop.last else '')")
    made = folder(tmp_path / "model", rewriting)
    path = written(tmp_path / "a.jsonl", [{"messages": CHATS[0]}])
    with pytest.raises(DataError, match="message 2 in another way .* {% generation %}"):
        Chats(path, str(made), length=64).open("train")


def test_templates_cannot_reach_the_machine(tmp_path):
    made = folder(tmp_path, "{{ messages.__class__.__mro__[1].__subclasses__() }}")
    with pytest.raises(DataError, match="cannot take a conversation: access to attribute"):
        ChatTemplate.of(made).render(CHATS[0])


def test_where_templates_are_found(tmp_path):
    made = folder(tmp_path)
    named = [{"name": "tool_use", "template": "x"}, {"name": "default", "template": "named"}]
    (made / "tokenizer_config.json").write_text(json.dumps({"chat_template": named}))
    assert ChatTemplate.of(made).source == "named"
    (made / "chat_template.jinja").write_text("of its own {{ eos_token }}")
    (made / "special_tokens_map.json").write_text(json.dumps({"eos_token": "</s>"}))
    assert ChatTemplate.of(made).render(CHATS[0]) == "of its own </s>"
    (made / "chat_template.jinja").write_text("{{ 1 // 0 }}")
    with pytest.raises(DataError, match="cannot take a conversation: integer division"):
        ChatTemplate.of(made).render(CHATS[0])
    (made / "chat_template.jinja").write_bytes(b"\xff")
    with pytest.raises(DataError, match="chat_template.jinja is damaged"):
        ChatTemplate.of(made)
    (made / "chat_template.jinja").unlink()
    (made / "tokenizer_config.json").write_text("{")
    with pytest.raises(DataError, match=r"tokenizer_config.json is damaged"):
        ChatTemplate.of(made)
    (made / "tokenizer_config.json").unlink()
    with pytest.raises(DataError, match="has no chat template, in chat_template.jinja or in"):
        ChatTemplate.of(made)


def test_fields_are_checked():
    with pytest.raises(ConfigError, match="Chats.path: is empty"):
        Chats("", "x", length=3)
    with pytest.raises(ConfigError, match="Preferences.length: 0 given"):
        Preferences("a", "x", length=0)
