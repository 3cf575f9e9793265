"""However long and odd what was given is: one line, of which both ends say most."""

from lsm.errors import ConfigError, LsmError, shortened


def test_an_error_is_one_short_line():
    text = str(ConfigError(f"field: {'x' * 5000}\n{'y' * 5000} given; allowed: less."))
    assert len(text) <= 1000 and "\n" not in text
    assert text.startswith("field: xxx") and text.endswith("yyy given; allowed: less.")
    assert str(LsmError("as it is.")) == "as it is."


def test_shortened_keeps_both_ends():
    assert shortened("x" * 80) == "x" * 80
    assert shortened("a" * 50 + "b" * 50) == "a" * 37 + " ... " + "b" * 37
