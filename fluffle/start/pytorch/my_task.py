"""A task in PyTorch: the model, its training loop and the data; put your own in their place."""

import numpy as np
import torch
from torch import nn

from fluffle import ArrayTask, Examples

torch.set_num_threads(1)  # clients train beside each other, a thread each


def images(seed, count):
    """Stands for your data: in which corner of 12 by 12 noisy pixels a bright square lies."""
    rng = np.random.default_rng(seed)
    y = rng.integers(4, size=count)
    x = rng.normal(0, 1.0, (count, 1, 12, 12)).astype(np.float32)
    for image, k in zip(x, y, strict=True):
        image[0, 6 * (k // 2) : 6 * (k // 2) + 6, 6 * (k % 2) : 6 * (k % 2) + 6] += 1
    return Examples(x, y)


def network():
    return nn.Sequential(
        nn.Conv2d(1, 8, 3), nn.ReLU(), nn.MaxPool2d(2), nn.Flatten(), nn.Linear(200, 4)
    )


class MyTask(ArrayTask):
    def weights(self):  # version 0: the same for a seed, wherever it is made
        torch.manual_seed(self.seed)
        return {name: value.numpy() for name, value in network().state_dict().items()}

    def dataset(self):  # of all clients; [partition] deals it out
        return images(1, 800)

    def loaded(self, weights):
        model = network()
        model.load_state_dict({name: torch.from_numpy(value) for name, value in weights.items()})
        return model

    def train(self, weights, client, rng, state):
        model, mine = self.loaded(weights), self.client_indices(client)
        x, y = (torch.from_numpy(part[mine]) for part in self.dataset())
        optimizer = torch.optim.SGD(model.parameters(), self.training.learning_rate)
        for _ in range(self.training.epochs):
            order = torch.from_numpy(rng.permutation(len(mine)))  # no other source of chance
            for batch in order.split(self.training.batch_size):
                optimizer.zero_grad()
                loss = nn.functional.cross_entropy(model(x[batch]), y[batch])
                loss.backward()
                optimizer.step()
        local = {name: value.numpy() for name, value in model.state_dict().items()}
        return local, len(mine), {"loss": loss.item()}, {}

    def evaluate(self, weights):  # the global model, on examples that no client has
        x, y = (torch.from_numpy(part) for part in images(2, 400))
        with torch.no_grad():
            outputs = self.loaded(weights)(x)
        loss = nn.functional.cross_entropy(outputs, y).item()
        return {"loss": loss, "accuracy": (outputs.argmax(1) == y).float().mean().item()}
