import math
import sys
import types

import pytest

from lsm.errors import ConfigError, TrainingError
from lsm.writers import Jsonl, Mlflow, RunInfo, Wandb, Writers, read_metrics

RUN = RunInfo(name="digits", config={"seed": 0}, total_steps=1000, batch_size=128)


@pytest.mark.parametrize(
    ("module", "config"), [("wandb", Wandb("p")), ("mlflow", Mlflow("e"))], ids=["wandb", "mlflow"]
)
def test_a_missing_extra_is_one_line_with_the_command(tmp_path, monkeypatch, module, config):
    monkeypatch.setitem(sys.modules, module, None)
    with pytest.raises(ConfigError) as caught:
        config.open(tmp_path, RUN, resume_step=0)
    assert f"`pip install 'lsm[{module}]'`" in str(caught.value)


@pytest.mark.parametrize("make", [lambda: Wandb(project=" "), lambda: Mlflow(experiment="")])
def test_an_empty_name_is_refused(make):
    with pytest.raises(ConfigError, match=r"(Wandb\.project|Mlflow\.experiment): '.?' given"):
        make()


class FakeWandb(types.ModuleType):
    """Keeps what `wandb.init` and the run it returns are given; `breaks_at` is a step."""

    def __init__(self, breaks_at=None):
        super().__init__("wandb")
        self.inits, self.rows, self.breaks_at = [], [], breaks_at

    def init(self, **settings):
        self.inits.append(settings)
        return self

    def define_metric(self, name, **settings):
        pass

    def log(self, row):
        if self.breaks_at == row["step"]:
            raise ConnectionError("no route\nto host")
        self.rows.append(row)

    def finish(self):
        self.rows.append("finished")


def test_wandb_goes_on_in_the_same_run(tmp_path, monkeypatch):
    fake = FakeWandb()
    monkeypatch.setitem(sys.modules, "wandb", fake)
    for resume_step in (0, 5):
        writer = Wandb(project="lsm", entity="team").open(tmp_path, RUN, resume_step)
        writer.write(resume_step + 1, "train", {"loss": 0.5})
        writer.close()
    first, second = fake.inits
    assert first["id"] == second["id"] == (tmp_path / "wandb_run_id").read_text()
    assert (first["project"], first["entity"], first["resume"]) == ("lsm", "team", "allow")
    assert first["config"] == {"seed": 0}
    rows = [{"step": 1, "train/loss": 0.5}, "finished", {"step": 6, "train/loss": 0.5}, "finished"]
    assert fake.rows == rows


def test_a_service_that_fails_is_told_once_and_the_run_goes_on(tmp_path, monkeypatch, capsys):
    fake = FakeWandb(breaks_at=2)
    monkeypatch.setitem(sys.modules, "wandb", fake)
    writers = Writers.open([Wandb("lsm"), Jsonl()], tmp_path, RUN, resume_step=0)
    for step in range(1, 5):
        writers.write(step, "train", {"loss": 0.5})
    writers.close()
    assert [row["step"] for row in read_metrics(tmp_path)] == [1, 2, 3, 4]
    assert fake.rows == [{"step": 1, "train/loss": 0.5}, "finished"]
    assert capsys.readouterr().err.splitlines() == [
        "error: Wandb stopped at step 2: ConnectionError: no route to host; "
        "training goes on without it.",
        "error: Wandb is missing the last 3 rows of this run.",
    ]


def test_a_service_that_does_not_start_stops_the_run_with_one_line(tmp_path, monkeypatch):
    fake = FakeWandb()
    fake.init = lambda **settings: 1 / 0
    monkeypatch.setitem(sys.modules, "wandb", fake)
    with pytest.raises(TrainingError, match=r"Wandb did not start: ZeroDiv.*offline=True"):
        Wandb("lsm").open(tmp_path, RUN, resume_step=0)


def test_wandb_itself_offline(tmp_path, monkeypatch):
    pytest.importorskip("wandb", reason="the extra lsm[wandb] is not installed")
    monkeypatch.setenv("WANDB_SILENT", "true")
    for resume_step in (0, 1):
        writer = Wandb(project="lsm", offline=True).open(tmp_path, RUN, resume_step)
        writer.write(resume_step + 1, "train", {"loss": 0.5})
        writer.close()
    run_id = (tmp_path / "wandb_run_id").read_text()
    assert len(list(tmp_path.glob(f"wandb/offline-run-*/run-{run_id}.wandb"))) >= 1


def test_mlflow_itself_in_a_folder(tmp_path, monkeypatch):
    mlflow = pytest.importorskip("mlflow", reason="the extra lsm[mlflow] is not installed")
    monkeypatch.setenv("MLFLOW_ALLOW_FILE_STORE", "true")
    uri = (tmp_path / "store").as_uri()
    for resume_step in (0, 1):
        writer = Mlflow(experiment="lsm", tracking_uri=uri).open(tmp_path, RUN, resume_step)
        writer.write(resume_step + 1, "train", {"loss": 0.5 + resume_step, "norm": math.nan})
        writer.close()
    client = mlflow.MlflowClient(uri)
    run_id = (tmp_path / "mlflow_run_id").read_text()
    history = client.get_metric_history(run_id, "train/loss")
    assert [(point.step, point.value) for point in history] == [(1, 0.5), (2, 1.5)]
    run = client.get_run(run_id)
    assert (run.info.run_name, run.info.status) == ("digits", "FINISHED")
