"""The file of keys, its command, and what a server does when it changes."""

import json
import stat

import pytest
from serving import SECRETS

from launch.command import LaunchError
from launch.serve import keys


def test_the_command_adds_lists_and_revokes(tmp_path, capsys):
    file = tmp_path / "keys.json"
    words = [
        "--file",
        str(file),
        "--name=a phone",
        "--scope=infer",
        "--scope=metrics",
        "--rate=2.5",
    ]
    assert keys.main(["add", *words]) == 0
    secret = capsys.readouterr().out.strip()
    assert keys.main(["add", f"--file={file}", "--name=other"]) == 0
    other = capsys.readouterr().out.strip()
    text = file.read_text()
    assert secret not in text and secret[4:] not in text
    assert len(secret) == 4 + 43  # 256 bits in base 64
    assert stat.S_IMODE(file.stat().st_mode) == 0o600
    first, second = keys.read(file)
    assert first.scopes == (keys.Scope.INFER, keys.Scope.METRICS)
    assert (first.rate, first.daily, second.rate) == (2.5, None, None)
    assert first.salt != second.salt
    assert keys.Keys(file).find(secret) == first
    assert keys.Keys(file).find(other) == second
    assert keys.main(["list", f"--file={file}"]) == 0
    told = capsys.readouterr().out
    assert first.id in told and "'a phone'" in told and first.hash not in told
    assert keys.main(["revoke", f"--file={file}", f"--id={first.id}"]) == 0
    assert keys.Keys(file).find(secret) is None


@pytest.mark.parametrize(
    ("words", "told"),
    [
        (["ad"], "'ad' given; allowed: add, revoke, list. Did you mean 'add'?"),
        (["add", "--file=x", "--name=n", "--scope=inferr"], "Did you mean 'infer'?"),
        (["add", "--file=x", "--name=n", "--rate=0"], "--rate: 0.0 given"),
        (["add", "--file=x"], "--name is needed"),
        (["list", "--file=/nowhere"], "/nowhere: cannot be read"),
    ],
)
def test_slips_on_its_command_line(words, told, capsys):
    assert keys.main(words) == 1
    assert told in capsys.readouterr().err


def test_an_unknown_id_is_no_key(tmp_path, capsys):
    file = tmp_path / "keys.json"
    keys.main(["add", f"--file={file}", "--name=n"])
    assert keys.main(["revoke", f"--file={file}", "--id=nope"]) == 1
    assert "--id: no key 'nope'" in capsys.readouterr().err


def test_a_damaged_file_keeps_the_last_and_one_that_is_gone_lets_nobody_in(tmp_path, caplog):
    secret, entry = SECRETS["infer"]
    file = tmp_path / "keys.json"
    with pytest.raises(LaunchError, match="cannot be read"):
        keys.Keys(file)
    keys.write(file, [entry])
    known = keys.Keys(file)
    good = file.read_text()
    hostile = json.loads(good)["keys"][0]
    for damaged in (
        good[:-40],
        "",
        "[]",
        '{"keys": [{}]}',
        "[" * 10**5,
        json.dumps({"keys": [hostile | {"rate": "x"}]}),
        json.dumps({"keys": [hostile | {"scopes": ["root"]}]}),
    ):
        file.write_text(damaged)
        with pytest.raises(LaunchError, match="damaged"):
            keys.read(file)
        assert known.find(secret) == entry
    file.write_text(json.dumps({"keys": []}))
    assert known.find(secret) is None
    file.write_text(good)
    assert known.find(secret) == entry
    file.unlink()
    assert known.find(secret) is None


def test_every_hash_is_compared_whatever_is_given(tmp_path, monkeypatch):
    file = tmp_path / "keys.json"
    keys.write(file, [entry for _, entry in SECRETS.values()])
    known, compared = keys.Keys(file), []
    compare = keys.hmac.compare_digest
    monkeypatch.setattr(
        keys.hmac, "compare_digest", lambda a, b: compared.append(len(a)) or compare(a, b)
    )
    for text in ("", "x", *(secret for secret, _ in SECRETS.values()), "ä\udcff", "x" * 10**5):
        compared.clear()
        known.find(text)
        assert compared == [64] * len(SECRETS)
