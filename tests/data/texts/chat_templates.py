"""Templates as models come with them, and a small tokenizer to try them on."""

import json

CHATML = (  # SmolLM2's
    "{% for message in messages %}{% if loop.first and messages[0]['role'] != 'system' %}"
    "{{ '<|im_start|>system\nYou are a helpful AI assistant.<|im_end|>\n' }}{% endif %}"
    "{{'<|im_start|>' + message['role'] + '\n' + message['content'] + '<|im_end|>' + '\n'}}"
    "{% endfor %}{% if add_generation_prompt %}{{ '<|im_start|>assistant\n' }}{% endif %}"
)
LLAMA = """\
{{- bos_token }}
{%- if messages[0]['role'] == 'system' %}
    {%- set system_message = messages[0]['content']|trim %}
    {%- set messages = messages[1:] %}
{%- else %}
    {%- set system_message = "" %}
{%- endif %}
{{- "<|start_header_id|>system<|end_header_id|>\\n\\n" + system_message }}
{%- if tools is not none %}
    {%- for t in tools %}
        {{- t | tojson(indent=4) }}
        {{- "\\n\\n" }}
    {%- endfor %}
{%- endif %}
{{- "<|eot_id|>" }}
{%- for message in messages %}
    {%- if message.role not in ["user", "assistant", "tool"] %}
        {{- raise_exception("Unknown role: " + message.role) }}
    {%- endif %}
    {{- '<|start_header_id|>' + message['role'] + '<|end_header_id|>\\n\\n'+ message['content'] | trim + '<|eot_id|>' }}
{%- endfor %}
{%- if add_generation_prompt %}
    {{- '<|start_header_id|>assistant<|end_header_id|>\\n\\n' }}
{%- endif %}
"""
TAGGED = """\
{%- for message in messages %}
    {%- if loop.last and message.role == 'user' %}{% continue %}{% endif %}
    {%- if message.role == 'assistant' %}
        {{- '<|im_start|>assistant\\n' }}
        {%- generation %}
        {{- message.content + '<|im_end|>' }}
        {%- endgeneration %}
        {{- '\\n' }}
    {%- else %}
        {{- '<|im_start|>' + message.role + '\\n' + message.content + '<|im_end|>\\n' }}
    {%- endif %}
{%- endfor %}
"""
MIXTURE = """\
{%- for m in messages %}[{{ m.role|upper }}] {{ m.content }}{% if m.role == 'assistant' %}{{ eos_token }}{% endif %}
{% endfor %}
"""
TEMPLATES = {"chatml": CHATML, "llama": LLAMA, "tagged": TAGGED, "mixture": MIXTURE}
SPECIAL = ["<|im_start|>", "<|im_end|>", "<|start_header_id|>", "<|end_header_id|>", "<|eot_id|>"]
SPECIAL += ["<|begin_of_text|>", "<|endoftext|>"]

AS_SAVED = {"__type": "AddedToken", "content": "<|endoftext|>", "special": True}

CHATS = [
    [
        {"role": "user", "content": "What is two and two?"},
        {"role": "assistant", "content": "Four."},
        {"role": "user", "content": " and three?  "},
        {"role": "assistant", "content": " It is 七 \n\n"},
    ],
    [
        {"role": "system", "content": "你说中文。\t"},
        {"role": "user", "content": "谁写了《红楼梦》? 😀👩‍👩‍👧 naïve Привет"},
        {"role": "assistant", "content": "曹雪芹。👍🏽 e\u0301 — <b>&amp;</b>\nשלום"},
    ],
    [
        {"role": "user", "content": "code", "name": None},
        {"role": "assistant", "content": "```python\nx = {'a': 1}\n```"},
        {"role": "user", "content": "thanks {{ 7 * 7 }} {% raw %}"},
    ],
]


def folder(path, template=CHATML, tokens=None):
    """Writes a tokenizer of bytes, with some merges, and a template, as a model's folder has them."""
    import tokenizers
    from tokenizers import decoders, models, pre_tokenizers, trainers

    made = tokenizers.Tokenizer(models.BPE())
    made.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    made.decoder = decoders.ByteLevel()
    trainer = trainers.BpeTrainer(
        vocab_size=320,
        special_tokens=SPECIAL,
        initial_alphabet=pre_tokenizers.ByteLevel.alphabet(),
        show_progress=False,
    )
    made.train_from_iterator([m["content"] for chat in CHATS for m in chat] * 4, trainer)
    path.mkdir(parents=True, exist_ok=True)
    made.save(str(path / "tokenizer.json"))
    names = {"bos_token": "<|begin_of_text|>", "eos_token": AS_SAVED}
    config = names | {"chat_template": template} if tokens is None else tokens
    (path / "tokenizer_config.json").write_text(json.dumps(config))
    return path
