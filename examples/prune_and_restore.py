"""Prune a small network on scikit-learn's digits to 90 %, with fine-tuning: pip install mpfast torch scikit-learn."""

import torch
from sklearn.datasets import load_digits

from mpfast.integrations.torch import FineTuning, PruneAndRestore, Selection, hold

torch.manual_seed(0)
images, labels = load_digits(return_X_y=True)
order = torch.randperm(len(images))
x, y = torch.tensor(images / 8 - 1, dtype=torch.float32)[order], torch.tensor(labels)[order]
train = list(zip(x[:1200].split(50), y[:1200].split(50), strict=True))
model = torch.nn.Sequential(
    torch.nn.Linear(64, 256), torch.nn.ReLU(), torch.nn.Linear(256, 256), torch.nn.ReLU(), torch.nn.Linear(256, 10)
)


def loss(model, batch):
    return torch.nn.functional.cross_entropy(model(batch[0]), batch[1])


def accuracy(model):
    with torch.no_grad():
        return float((model(x[1200:]).argmax(dim=1) == y[1200:]).float().mean())


optimizer = torch.optim.AdamW(model.parameters(), lr=2e-3)
for _ in range(30):
    for batch in train:
        optimizer.zero_grad()
        loss(model, batch).backward()
        optimizer.step()
print(f"dense: accuracy {accuracy(model):.3f}")

job = PruneAndRestore(
    model,
    train,
    loss,
    selection=Selection(batches=24),
    fine_tuning=FineTuning(lr=0.02, epochs=3),
    evaluate=accuracy,
)
for step in job.run([0.2, 0.4, 0.6, 0.8, 0.9], magnitude_until=0.4):
    print(f"{step.method} to {step.sparsity:.2f}: {step.restored} restored, accuracy {step.score:.3f}")

hold(model, job.masks)  # from here on any training keeps the zeros
