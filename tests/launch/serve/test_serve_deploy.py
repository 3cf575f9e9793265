"""launch.serve --dry_run: golden files, and the schemas of Kubernetes."""

import pathlib
import re
import shutil
import subprocess
import sys

import pytest
import yaml

from launch.actions import perform
from launch.command import LaunchError, parse
from launch.serve import deploy
from launch.serve.command import main
from launch.serve.deploy import Deploy
from launch.serve.flags import Serve
from lsm.errors import LsmError

sys.path.insert(0, str(pathlib.Path(__file__).parents[1]))
import golden

SERVE = Serve(keys="keys.json", batch_rows=64)
SAFE = Serve(keys="k/keys.json", tls_cert="cert.pem", tls_key="key.pem", port=8443, host="0.0.0.0")
MODELS = {"digits": "exports/digits", "Odd.one": "exports/it's $(HOME) 50%"}
TARGETS = {
    "docker": (Deploy(dry_run="docker"), SERVE),
    "docker_tls": (Deploy(dry_run="docker", name="safe"), SAFE),
    "kubernetes": (Deploy(dry_run="kubernetes", claim="models", image="r/lsm:1"), SERVE),
    "kubernetes_tls": (Deploy(dry_run="kubernetes", claim="models", name="safe"), SAFE),
    "systemd": (Deploy(dry_run="systemd"), SERVE),
    "systemd_tls": (Deploy(dry_run="systemd", name="safe", cpus=4), SAFE),
}


@pytest.fixture(autouse=True)
def _python(monkeypatch):
    monkeypatch.setattr(deploy, "_PYTHON", "/opt/lsm/bin/python")


def planned(name):
    root = "" if name.startswith("kubernetes") else "/srv/"
    return deploy.plan(*TARGETS[name], {model: root + folder for model, folder in MODELS.items()})


@pytest.mark.parametrize("name", TARGETS)
def test_dry_run_is_the_golden_one(name, capsys):
    perform(planned(name), dry_run=True)
    text = capsys.readouterr().out
    golden.compare(f"serve_{name}.sh", text)
    golden.check_shell(text)


def documents(name):
    return list(yaml.safe_load_all(planned(name)[-1].stdin))


@pytest.mark.parametrize("name", ["kubernetes", "kubernetes_tls"])
def test_kubernetes_takes_them(name):
    validate = pytest.importorskip("kubernetes_validate", reason="kubernetes-validate is absent")
    kinds = [validate.validate(one, "1.32", strict=True) for one in documents(name)]
    assert len(kinds) == 3
    wrong, *_ = documents(name)
    wrong["spec"]["template"]["spec"]["containers"][0]["securityContext"]["readOnlyRoot"] = True
    with pytest.raises(validate.ValidationError):
        validate.validate(wrong, "1.32", strict=True)


def test_the_pod_is_of_the_restricted_standard():
    """What "Pod Security Standards: Restricted" asks for, and what the policy lets through."""
    deployment, service, policy = documents("kubernetes_tls")
    pod = deployment["spec"]["template"]["spec"]
    [container] = pod["containers"]
    assert pod["securityContext"]["runAsNonRoot"] and pod["securityContext"]["runAsUser"] > 0
    assert pod["securityContext"]["seccompProfile"] == {"type": "RuntimeDefault"}
    own = container["securityContext"]
    assert own["capabilities"] == {"drop": ["ALL"]} and own["allowPrivilegeEscalation"] is False
    assert own["readOnlyRootFilesystem"] is True
    writable = [m["name"] for m in container["volumeMounts"] if not m.get("readOnly")]
    assert writable == ["tmp"]
    assert {m["name"] for m in container["volumeMounts"]} == {v["name"] for v in pod["volumes"]}
    for probe, path in (("liveness", "live"), ("readiness", "ready"), ("startup", "ready")):
        get = container[f"{probe}Probe"]["httpGet"]
        assert (get["path"], get["scheme"]) == (f"/v2/health/{path}", "HTTPS")
    labels = deployment["spec"]["template"]["metadata"]["labels"]
    assert labels == service["spec"]["selector"] == policy["spec"]["podSelector"]["matchLabels"]
    assert policy["spec"]["egress"] == [] and len(policy["spec"]["ingress"]) == 1


@pytest.mark.parametrize("name", TARGETS)
def test_the_words_start_the_server_that_is_asked_for(name):
    """The words that each ends with are those of the command line, read back."""
    program = planned(name)
    if name.startswith("kubernetes"):
        words = documents(name)[0]["spec"]["template"]["spec"]["containers"][0]["args"]
        words = [word.replace("$$(", "$(") for word in words]
    elif name.startswith("docker"):
        words = program[-1].words
        words = words[words.index("lsm-serve") + 1 :]
    else:
        unit = next(a.text for a in program if getattr(a, "path", "").endswith(".service"))
        [line] = re.findall("^ExecStart=(.*)", unit, re.M)
        words = [w.strip('"').replace("%%", "%").replace("$$", "$")
                 for w in re.findall(r'"[^"]*"|\S+', line)][3:]  # fmt: skip
    folders = [word for word in words if not word.startswith("--")]
    assert [word.partition("=")[0] for word in folders] == list(MODELS)
    here = "Odd.one" if name.startswith("docker") else MODELS["Odd.one"]
    assert folders[1].endswith(f"/{here}")
    found = parse(Serve, [word for word in words if word.startswith("--")])
    given = TARGETS[name][1]
    assert (found.batch_rows, found.grace) == (given.batch_rows, given.grace)
    assert (found.tls_cert is None) == (given.tls_cert is None) and not found.no_auth
    assert found.keys.endswith("/keys.json") and found.keys.startswith("/")


@pytest.mark.skipif(not shutil.which("systemd-analyze"), reason="systemd-analyze is absent")
@pytest.mark.parametrize("name", ["systemd", "systemd_tls"])
def test_systemd_takes_the_unit(name, tmp_path, monkeypatch):
    monkeypatch.setattr(deploy, "_PYTHON", "/bin/sh")  # one that is there
    program = planned(name)
    unit = next(a for a in program if getattr(a, "path", "").endswith(".service"))
    file = tmp_path / pathlib.Path(unit.path).name
    file.write_text(unit.text.replace("User=lsm-", "User=root #"))
    command = ["systemd-analyze", "verify", "--man=no", str(file)]
    done = subprocess.run(command, capture_output=True, text=True)
    assert not [line for line in done.stderr.splitlines() if str(file) in line], done.stderr
    file.write_text(unit.text.replace("ProtectSystem=", "ProtectSystm="))
    done = subprocess.run(command, capture_output=True, text=True)
    assert "ProtectSystm" in done.stderr


@pytest.mark.parametrize(
    ("flags", "serve", "message"),
    [
        ({"dry_run": "docker"}, {"no_auth": True}, "--dry_run: --keys is needed"),
        ({"dry_run": "docker", "claim": "m"}, {"keys": "k"}, "--claim: needed with --dry_run=kube"),
        ({"dry_run": "kubernetes"}, {"keys": "k"}, "--claim: needed with --dry_run=kubernetes"),
        ({"dry_run": "systemd"}, {"keys": "k", "audit_log": "a"}, "--audit_log: not with"),
        ({"dry_run": "docker", "name": "A_b"}, {"keys": "k"}, "--name: 'A_b' .* mean 'a-b'"),
        ({"dry_run": "kubernetes", "claim": "m"}, {"keys": "k"}, "a: '/x' given; with --claim"),
    ],
)
def test_flags_that_cannot_be(flags, serve, message):
    with pytest.raises(LaunchError, match=message):
        deploy.plan(Deploy(**flags), Serve(**serve), {"a": "/x"})


def test_of_the_command_line(capsys):
    with pytest.raises(LsmError, match="'dokcer' given; allowed: docker, kubernetes, systemd"):
        Deploy(dry_run="dokcer")
    assert main(["digits=exports/digits", "--keys=keys.json", "--dry_run=systemd"]) == 0
    text = capsys.readouterr().out
    subprocess.run(["bash", "-n"], input=text, text=True, check=True)
    assert "NoNewPrivileges=yes" in text and "--dry_run" not in text
    with pytest.raises(SystemExit):
        main(["--help"])
    assert {"--dry_run: string", "--keys: string"} <= set(capsys.readouterr().out.splitlines())


@pytest.mark.parametrize("target", ["docker", "systemd", "kubernetes"])
def test_files_at_home_are_found_by_the_script(target, capsys, monkeypatch):
    monkeypatch.setenv("HOME", "/home/me")
    words = ["digits=digits", "--keys=~/k.json", "--tls_cert=~/c.pem", "--tls_key=~/t.pem"]
    claim = ["--claim=models"] if target == "kubernetes" else []
    assert main([*words, *claim, f"--dry_run={target}"]) == 0
    text = capsys.readouterr().out
    assert "~" not in text
    assert all(f"/home/me/{file}" in text for file in ("k.json", "c.pem", "t.pem"))
