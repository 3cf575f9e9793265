"""Tokenizers learnt from texts, the same ones from the same texts, whatever the threads do.

Each function takes what gives the texts anew, as they are read more than once, and returns a
tokenizer of the Hugging Face `tokenizers` library. Memory grows with the different words and
characters, not with the texts.
"""

import collections
import io
from collections.abc import Callable, Iterator
from typing import Any

from lsm.errors import DataError

PAD, UNK, BOS, EOS = "[PAD]", "[UNK]", "[BOS]", "[EOS]"
CLS, SEP, MASK = "[CLS]", "[SEP]", "[MASK]"
_ALPHABET = 1000  # characters that WordPiece knows, as BERT's own

AllTexts = Callable[[], Iterator[str]]
"""Gives all texts, from the first, each time it is called."""


def words(texts: AllTexts, size: int, lower: bool) -> Any:
    """Returns a tokenizer of whole words: the most frequent ones, equal ones in sorted order.

    A word is letters and digits, or other signs, without white space; a Chinese character is one.
    """
    import tokenizers
    from tokenizers import models, pre_tokenizers, trainers

    scratch = tokenizers.Tokenizer(models.WordLevel(unk_token=UNK))
    scratch.normalizer = _normalizer(lower)
    scratch.pre_tokenizer = pre_tokenizers.Whitespace()
    trainer = trainers.WordLevelTrainer(
        vocab_size=size, special_tokens=[PAD, UNK], show_progress=False
    )
    scratch.train_from_iterator(texts(), trainer)
    return _word_level(scratch.get_vocab(), scratch.normalizer, scratch.pre_tokenizer)


def characters(texts: AllTexts) -> Any:
    """Returns a tokenizer of single characters: those of the texts, sorted."""
    import tokenizers
    from tokenizers import decoders, normalizers, pre_tokenizers

    known = sorted(_counted(texts(), str))
    vocabulary = {token: i for i, token in enumerate((PAD, UNK, BOS, EOS, *known))}
    each = pre_tokenizers.Split(tokenizers.Regex(r"(?m:.)"), "isolated")
    made = _word_level(vocabulary, normalizers.Sequence([]), each)
    made.decoder = decoders.Fuse()
    return made


def bpe(texts: AllTexts, size: int, lower: bool) -> Any:
    """Returns a byte-level BPE (GPT-2's kind), which knows every text.

    Sennrich, Haddow and Birch (2016), arXiv:1508.07909; of bytes: Radford et al. (2019).
    """
    import tokenizers
    from tokenizers import decoders, models, normalizers, pre_tokenizers, trainers

    made = tokenizers.Tokenizer(models.BPE())
    lowered = [normalizers.Lowercase()] if lower else []
    made.normalizer = normalizers.Sequence([normalizers.NFC(), *lowered])
    made.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    made.decoder = decoders.ByteLevel()
    trainer = trainers.BpeTrainer(
        vocab_size=size,
        special_tokens=[PAD, UNK, BOS, EOS],
        initial_alphabet=pre_tokenizers.ByteLevel.alphabet(),
        show_progress=False,
    )
    made.train_from_iterator(texts(), trainer)
    return made


def wordpiece(texts: AllTexts, size: int, lower: bool) -> Any:
    """Returns a WordPiece tokenizer with BERT's words and special tokens (arXiv:1810.04805).

    It knows the 1,000 most frequent characters; a word with another is unknown.
    """
    import tokenizers
    from tokenizers import models, normalizers, pre_tokenizers, trainers

    normalizer, special = _normalizer(lower), [PAD, UNK, CLS, SEP, MASK]
    counted = _counted((normalizer.normalize_str(text) for text in texts()), str)
    ranked = sorted((c for c in counted if not c.isspace()), key=lambda c: (-counted[c], c))
    rare = {ord(character): " " for character in ranked[_ALPHABET:]}
    alphabet = sorted(ranked[:_ALPHABET])
    scratch = tokenizers.Tokenizer(models.WordPiece(unk_token=UNK))
    scratch.normalizer = normalizers.Sequence([])
    scratch.pre_tokenizer = pre_tokenizers.BertPreTokenizer()
    # The trainer numbers "##x" in the order of a hash table, another in every process, and merges
    # equally frequent pairs by these numbers. Tokens that are given have theirs before.
    given = [*special, *alphabet, *("##" + character for character in alphabet)]
    trainer = trainers.WordPieceTrainer(vocab_size=size, special_tokens=given, show_progress=False)
    plain = (normalizer.normalize_str(text).translate(rare) for text in texts())
    scratch.train_from_iterator(plain, trainer)
    return bert(scratch.get_vocab(), normalizer)


def bert(vocabulary: dict[str, int], normalizer: Any) -> Any:
    """Returns BERT's tokenizer of a vocabulary: [CLS] and [SEP] around a text, or around two."""
    import tokenizers
    from tokenizers import decoders, models, pre_tokenizers, processors

    if missing := [token for token in (UNK, CLS, SEP) if token not in vocabulary]:
        raise ValueError(f"it has no token {missing[0]}, which a vocabulary of BERT has")
    made = tokenizers.Tokenizer(models.WordPiece(vocabulary, unk_token=UNK))
    made.normalizer, made.decoder = normalizer, decoders.WordPiece()
    made.pre_tokenizer = pre_tokenizers.BertPreTokenizer()
    made.post_processor = processors.BertProcessing(*((t, vocabulary[t]) for t in (SEP, CLS)))
    made.add_special_tokens([t for t in (PAD, CLS, SEP, MASK) if t in vocabulary])
    return made


def unigram(texts: AllTexts, size: int, lower: bool) -> Any:
    """Returns a unigram language model of pieces of words (Kudo 2018, arXiv:1804.10959).

    Learnt by the library sentencepiece, on one thread: `tokenizers` gives another one each time.
    """
    import sentencepiece
    import tokenizers
    from tokenizers import Regex, decoders, models, normalizers, pre_tokenizers

    lowered = [normalizers.Lowercase()] if lower else []
    # Ends of lines are in no word, and would be unknown: spaces, as sentencepiece has them.
    spaces = normalizers.Replace(Regex(r"\s"), " ")
    normalizer = normalizers.Sequence([normalizers.NFKC(), spaces, *lowered])
    counted = _counted((normalizer.normalize_str(text) for text in texts()), str.split)
    special, learnt = (PAD, UNK, BOS, EOS), io.BytesIO()
    try:
        sentencepiece.SentencePieceTrainer.train(
            sentence_iterator=(f"{word}\t{count}" for word, count in sorted(counted.items())),
            input_format="tsv",
            model_writer=learnt,
            model_type="unigram",
            vocab_size=size - len(special) + 3,  # <unk>, <s> and </s> of its own
            hard_vocab_limit=False,
            character_coverage=1.0,
            normalization_rule_name="identity",
            num_threads=1,
            max_sentence_length=1 << 20,
            minloglevel=2,
        )
    except RuntimeError as error:  # the library raises bare ones
        raise DataError(f"Subwords.size: {size} given: {error}") from error
    model = sentencepiece.SentencePieceProcessor(model_proto=learnt.getvalue())
    numbers = [i for i in range(len(model)) if not (model.IsUnknown(i) or model.IsControl(i))]
    pieces = [(token, 0.0) for token in special]
    pieces += [(model.IdToPiece(i), model.GetScore(i)) for i in numbers]
    made = tokenizers.Tokenizer(models.Unigram(pieces, unk_id=special.index(UNK)))
    made.normalizer, made.decoder = normalizer, decoders.Metaspace()
    # Cut at "[": else "[PAD]" in a text would be the piece of that name.
    cut = pre_tokenizers.Split("[", "isolated")
    made.pre_tokenizer = pre_tokenizers.Sequence([pre_tokenizers.Metaspace(), cut])
    made.add_special_tokens([PAD, BOS, EOS])
    return made


def _normalizer(lower: bool) -> Any:
    """NFKC, one space around each Chinese character, no control characters."""
    from tokenizers import normalizers

    cleaned = normalizers.BertNormalizer(strip_accents=False, lowercase=lower)
    return normalizers.Sequence([normalizers.NFKC(), cleaned])


def _word_level(vocabulary: dict[str, int], normalizer: Any, pre_tokenizer: Any) -> Any:
    """A tokenizer whose tokens are words; [UNK] is an ordinary one, so that decoding shows it."""
    import tokenizers

    made = tokenizers.Tokenizer(tokenizers.models.WordLevel(vocabulary, unk_token=UNK))
    made.normalizer, made.pre_tokenizer = normalizer, pre_tokenizer
    made.add_special_tokens([token for token in (PAD, BOS, EOS) if token in vocabulary])
    return made


def _counted(texts: Iterator[str], cut: Callable) -> collections.Counter:
    counted: collections.Counter = collections.Counter()
    for text in texts:
        counted.update(cut(text))
    return counted
