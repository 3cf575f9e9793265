"""What `lsm.export` has written, served: the answers are those of the run."""

import threading

import numpy as np
import pytest
from serving import Policy, serving

from launch.serve import models
from lsm.errors import LsmError
from lsm.export.write import write
from tests.export.exports import columns, trained

WORDS = {"uint8": "UINT8", "int32": "INT32", "float32": "FP32"}


def asked(given):
    return {
        "inputs": [
            {
                "name": name,
                "datatype": WORDS[array.dtype.name],
                "shape": list(array.shape),
                "data": array.ravel().tolist(),
            }
            for name, array in given.items()
        ]
    }


def answers(tmp_path, name, batches, policy):
    """What a server says to batches that are asked at the same time, and the run's predictions."""
    run = trained(name)
    (tmp_path / name).mkdir()
    write(run, tmp_path / name / "1")
    found = {}
    with serving(tmp_path, {name: models.load}, policy) as server:
        inputs = [one["name"] for one in server.json("GET", f"/v2/models/{name}")[1]["inputs"]]

        # After a full batch the next one waits for others.
        full = {c: np.repeat(batches[0][c][:1], policy.largest, axis=0) for c in inputs}
        assert server.json("POST", f"/v2/models/{name}/infer", asked(full))[0] == 200

        def ask(i):
            body = asked({column: batches[i][column] for column in inputs})
            found[i] = server.json("POST", f"/v2/models/{name}/infer", body)

        threads = [threading.Thread(target=ask, args=[i]) for i in range(len(batches))]
        for thread in threads:
            thread.start()
        for thread in threads:
            thread.join()
        page = server.request("GET", "/metrics", key="metrics")[2].decode()
    count = next(line for line in page.splitlines() if line.startswith("lsm_batch_rows_count"))
    assert float(count.split()[-1]) - 1 < len(batches)  # some were joined
    for i, given in enumerate(batches):
        status, answer = found[i]
        assert status == 200, answer
        expected = run.predict(given)
        for output in answer["outputs"]:
            of_run = np.asarray(expected[output["name"]])
            assert output["shape"] == list(of_run.shape)
            np.testing.assert_allclose(
                np.reshape(output["data"], of_run.shape), of_run, rtol=1e-5, atol=1e-6
            )


def test_pictures(tmp_path):
    policy = Policy(largest=8, wait=2.0)
    batches = [columns("mlp", rows, seed=seed) for seed, rows in enumerate((1, 3, 2))]
    answers(tmp_path, "mlp", batches, policy)


@pytest.mark.slow
@pytest.mark.parametrize("name", ["bert", "lstm", "cnn"])
def test_texts_of_other_lengths_and_pictures_through_batch_norm(tmp_path, name):
    lengths = (3, 9, 12, 5) if name != "cnn" else (None,) * 3
    batches = [columns(name, 2, length, seed=i) for i, length in enumerate(lengths)]
    answers(tmp_path, name, batches, Policy(largest=8, wait=2.0))


def test_a_damaged_artefact_is_told_in_a_line(tmp_path):
    run, folder = trained("mlp"), tmp_path / "1"
    write(run, folder)
    (folder / "predict.stablehlo").write_bytes(b"")
    with pytest.raises(LsmError, match="1"):
        models.load(folder)
