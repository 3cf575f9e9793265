"""OpenAI's protocol: completions, chats and embeddings, for its clients as they are.

`routes` takes requests, `asked` reads them by `fields`, `told` says what comes of them, piece by
piece or whole; `tokens` knows the bytes of a token. `errors` is how the protocol refuses.
"""
