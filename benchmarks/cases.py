"""The runs that result tables are made of."""

import dataclasses
import sys
from pathlib import Path

from benchmarks import sources

CONFIGS = Path("experiments/configs")


def shipped() -> list[Path]:
    """Returns the configs that can be run here: none of chains, nor for the reader's own data."""
    files = sorted((sources.ROOT / CONFIGS).glob("*/*.py"))
    others = ("compress", "retrain")
    return [p for p in files if p.parent.name != "finetune" and p.stem not in others]


@dataclasses.dataclass(frozen=True)
class Case:
    """What is run for one record.

    Attributes:
      title: what it is called in its row.
      config: FILE.py or FILE.py:arg in experiments/configs; its folder names the experiment.
      metric: the figure that counts.
      claimed: the figure to compare with, as text.
      best: name of the case that is our best on the same data; None where there is no other.
      seeds: number of runs, with the seeds 0, 1, ...; those that take over 20 minutes have one.
    """

    title: str
    config: str
    metric: str = "test/accuracy"
    claimed: str = "none"
    best: str | None = None
    seeds: int = 3

    @property
    def command(self) -> str:
        """The command that makes one run."""
        name = self.config.partition("/")[0]
        return f"python -m experiments.{name} --config={CONFIGS}/{self.config}"

    def run(self, seed: int, workdir: Path, data_dir: str | None) -> list[str]:
        """Returns the words of the command that makes the run of one seed in `workdir`."""
        _, *words = self.command.split()
        words += [f"--workdir={workdir}", f"--config.train.seed={seed}"]
        return [sys.executable, *words, *([f"--data_dir={data_dir}"] if data_dir else [])]

    @property
    def digest(self) -> str:
        """Digest of all that the record depends on."""
        config = sources.ROOT / CONFIGS / self.config.partition(":")[0]
        return sources.digest(config, self.config, self.metric, str(self.seeds))


CASES = {
    "digits": Case(
        "scikit-learn digits, CNN, 20 epochs", "digits/cnn.py", claimed="above 97 %", seeds=5
    ),
    "mnist_mlp": Case(
        "MNIST MLP 784-128-10, pixels in [0, 1], 10 epochs",
        "mnist/mlp.py",
        claimed="98-99 %",
        best="mnist_best",
    ),
    "mnist_mlp_long": Case(
        "MNIST MLP 784-128-10, pixels in [0, 1], 100 epochs",
        "mnist/mlp.py:long",
        claimed="98-99 %",
        best="mnist_best",
    ),
    "mnist_mlp_standardised": Case(
        "MNIST MLP 784-128-10, standardised pixels, 10 epochs", "mnist/mlp.py:standardised"
    ),
    "mnist_faulty": Case(
        "MNIST MLP 784-128-64, softmax twice", "mnist/mlp_softmax.py:faulty", best="mnist_repaired"
    ),
    "mnist_repaired": Case("784-128-64-10, logits (repaired)", "mnist/mlp_softmax.py:repaired"),
    "mnist_cnn": Case("MNIST CNN, shifted pictures", "mnist/cnn.py"),
    "mnist_pruned": Case(
        "MNIST, LeNet-300-100, 90 % of its weights pruned",
        "mnist/pruned.py",
        claimed="that of all weights",
        best="mnist_dense",
    ),
    "mnist_dense": Case("LeNet-300-100, all weights", "mnist/pruned.py:dense"),
    "mnist_best": Case("MNIST, airbench's network, 8 epochs", "mnist/best.py"),
    "mnist_student_alone": Case(
        "MNIST MLP 784-256-10, 5,000 pictures",
        "mnist/student.py:alone",
        best="mnist_student_taught",
    ),
    "mnist_student_taught": Case("the same, taught by a CNN", "mnist/student.py:taught"),
    "fashion": Case("Fashion-MNIST, airbench's network, 15 epochs", "mnist/fashion.py", seeds=1),
    "cifar_cnn": Case(
        "CIFAR-10 CNN, 10 epochs", "cifar/cnn.py", claimed="91.80 %", best="cifar_airbench_wide"
    ),
    "cifar_modern": Case("CIFAR-10 CNN with batch norm, augmentation", "cifar/modern.py"),
    "cifar_resnet": Case(
        "CIFAR-10, a ResNet of three blocks, 12 epochs", "cifar/resnet.py", seeds=1
    ),
    "cifar_resnet26": Case("CIFAR-10, ResNet-26, 12 epochs", "cifar/resnet26.py", seeds=1),
    "cifar_resnet44": Case("CIFAR-10, ResNet-44, 12 epochs", "cifar/resnet44.py", seeds=1),
    "cifar_airbench": Case(
        "CIFAR-10, airbench94 with Muon, 8 epochs",
        "cifar/airbench.py",
        claimed="94.01 %",
        best="cifar_airbench_wide",
    ),
    "cifar_airbench_wide": Case(
        "CIFAR-10, the same wider, 16 epochs",
        "cifar/airbench_wide.py",
        claimed="95.01 %, airbench95",
        seeds=1,
    ),
    "cifar_cct": Case(
        "CIFAR-10, CCT of 0.62 M parameters", "cifar/cct.py", claimed="89.2 %, 200 epochs", seeds=1
    ),
    "cifar_resnet18_pruned": Case(
        "CIFAR-10, ResNet-18, 80 % of its weights pruned",
        "cifar/resnet18_pruned.py",
        claimed="within 0.1 points of all weights",
        best="cifar_resnet18_dense",
        seeds=1,
    ),
    "cifar_resnet18_dense": Case(
        "ResNet-18, all weights", "cifar/resnet18_pruned.py:dense", seeds=1
    ),
    "cats_dogs": Case(
        "Cats and dogs of CIFAR-10, 1000 pictures, logistic loss",
        "cifar/cats_dogs.py:scratch",
        best="cats_dogs_tuned",
    ),
    "cats_dogs_tuned": Case(
        "begun with a network of the other eight classes", "cifar/cats_dogs.py:tuned"
    ),
    "cats_dogs_eight": Case("CIFAR-10's other eight classes", "cifar/cats_dogs.py:eight", seeds=1),
    "folder_simple_cnn": Case(
        "Folder of pictures (hymenoptera), SimpleCNN of 205 M parameters",
        "folder/simple_cnn.py",
        metric="validation/accuracy",
        claimed="89.3 %",
        best="folder_transfer",
        seeds=1,
    ),
    "folder_transfer": Case(
        "begun with a network of CIFAR-10", "folder/transfer.py", metric="validation/accuracy"
    ),
    "shakespeare_nanogpt": Case(
        "Tiny Shakespeare GPT, 2000 steps",
        "shakespeare/gpt.py:nanogpt",
        metric="validation/loss",
        claimed="1.88",
        best="shakespeare",
    ),
    "shakespeare": Case("learning rate 2e-3", "shakespeare/gpt.py", metric="validation/loss"),
    "shakespeare_six": Case(
        "Tiny Shakespeare GPT, six layers of 384, 5000 steps of 64",
        "shakespeare/gpt_gpu.py",
        metric="validation/loss",
        claimed="1.4697",
        best="shakespeare_small",
        seeds=1,
    ),
    "shakespeare_small": Case(
        "by Muon, 1000 steps of 16",
        "shakespeare/gpt_gpu.py:small",
        metric="validation/loss",
        seeds=1,
    ),
    "imdb_lstm": Case(
        "IMDB reviews, two LSTMs of 128, 10 epochs",
        "imdb/lstm.py",
        claimed="87-88 %",
        best="imdb_best",
        seeds=1,
    ),
    "imdb_best": Case("convolution and LSTMs in both directions", "imdb/best.py"),
    "sst2_lstm": Case(
        "SST-2, an LSTM in both directions",
        "sst2/lstm.py",
        metric="validation/accuracy",
        claimed="85.21 %, 10 epochs",
        best="sst2_lstm_imdb",
    ),
    "imdb_short": Case(
        "IMDB reviews, the LSTM of SST-2, the last 64 words, 4 epochs", "imdb/short.py", seeds=1
    ),
    "sst2_lstm_imdb": Case(
        "the same LSTM, begun with its run on IMDB, best of 24 evaluations",
        "sst2/lstm_imdb.py",
        "validation/accuracy",
    ),
    "imdb_minilm": Case(
        "IMDB reviews, MiniLM-L6, the last 64 tokens, 1 epoch", "imdb/minilm.py", seeds=1
    ),
    "sst2_minilm": Case(
        "SST-2, MiniLM-L6, fine-tuned, 3 epochs",
        "sst2/minilm.py",
        metric="validation/accuracy",
        claimed="91-92 % (MiniLM-L6 class)",
        best="sst2_minilm_imdb",
        seeds=1,
    ),
    "sst2_minilm_imdb": Case(
        "MiniLM-L6, begun with its run on IMDB, best of 12 evaluations",
        "sst2/minilm_imdb.py",
        metric="validation/accuracy",
        seeds=1,
    ),
    "sst2_minilm_lora": Case(
        "SST-2, MiniLM-L6, low-rank adapters on its blocks, 5 epochs",
        "sst2/minilm_lora.py",
        metric="validation/accuracy",
        claimed="that of all parameters",
        best="sst2_minilm",
        seeds=1,
    ),
    "bert_pretrain": Case(
        "IMDB reviews, a small BERT, 600 steps",
        "bert/pretrain.py",
        metric="validation/loss",
        seeds=1,
    ),
    "multi30k": Case(
        "Multi30k German to English, Transformer of 2.3 M parameters, 35 epochs",
        "multi30k/transformer.py",
        metric="test/bleu",
        claimed="BLEU 36.52, 9.0 M parameters",
        seeds=1,
    ),
    "linear_slope": Case(
        "y = theta x, 3 steps of gradient descent",
        "linear/descent.py:slope",
        metric="test/theta_1",
        claimed="theta -8.66",
        best="linear_slope_best",
        seeds=1,
    ),
    "linear_slope_best": Case(
        "one step of 3/28, to the optimum 20/14",
        "linear/descent.py:slope_best",
        metric="test/theta_1",
        seeds=1,
    ),
    "linear_line": Case(
        "y = theta_0 + theta_1 x, learning rate 0.1 (diverges), 100 steps",
        "linear/descent.py:line",
        metric="test/loss",
        claimed="loss 2, optimum (2, 2)",
        best="linear_line_best",
        seeds=1,
    ),
    "linear_line_best": Case(
        "learning rate 0.05, to the optimum (0, 2)",
        "linear/descent.py:line_best",
        metric="test/loss",
        seeds=1,
    ),
}
