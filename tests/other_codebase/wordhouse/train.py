"""A trainer that takes any SeqIO mixture by name: a table of next-token logits, trained by plain gradient descent.

python -m wordhouse.train MODULE_TO_IMPORT MIXTURE SEQUENCE_LENGTH STEPS
"""

import importlib
import json
import sys

import numpy as np
import seqio

BATCH = 16
LEARNING_RATE = 200.0


def gradient(logits, inputs, targets, weights):
    """Mean loss a token and its gradient by the table of logits."""
    rows = logits[inputs]
    rows = rows - rows.max(-1, keepdims=True)
    probabilities = np.exp(rows) / np.exp(rows).sum(-1, keepdims=True)
    chosen = np.take_along_axis(probabilities, targets[..., None], -1)[..., 0]
    loss = -(np.log(chosen) * weights).sum() / weights.sum()
    error = probabilities
    np.put_along_axis(error, targets[..., None], chosen[..., None] - 1, -1)
    error *= (weights / weights.sum())[..., None]
    table = np.zeros_like(logits)
    np.add.at(table, inputs, error)
    return loss, table


def main(module, mixture, length, steps):
    importlib.import_module(module)
    dataset = seqio.get_dataset(
        mixture,
        task_feature_lengths={"targets": length},
        dataset_split="train",
        shuffle=True,
        num_epochs=None,
        feature_converter=seqio.LMFeatureConverter(pack=True),
        batch_size=BATCH,
        seed=1,
    )
    size = seqio.get_mixture_or_task(mixture).output_features["targets"].vocabulary.vocab_size
    logits, losses = np.zeros((size, size)), []
    for batch in dataset.take(steps).as_numpy_iterator():
        inputs, targets, weights = (
            batch[f"decoder_{name}"] for name in ("input_tokens", "target_tokens", "loss_weights")
        )
        loss, table = gradient(logits, inputs, targets, weights.astype(float))
        logits -= LEARNING_RATE * table
        losses.append(float(loss))
    ours = sorted(name for name in sys.modules if name.startswith("diversity_jax"))
    print(json.dumps({"losses": losses, "full": bool((weights == 1).all()), "modules": ours}))


if __name__ == "__main__":
    main(sys.argv[1], sys.argv[2], int(sys.argv[3]), int(sys.argv[4]))
