"""A task in scikit-learn: a model whose parameters are arrays, and the data of its clients."""

import numpy as np
from sklearn.datasets import load_digits
from sklearn.linear_model import SGDClassifier

from fluffle import ArrayTask, Examples

X, Y = load_digits(return_X_y=True)  # stands for your data: 1,797 handwritten digits
X = X / 16
TRAINING = 1400  # the rest is the test set


class MyTask(ArrayTask):
    def weights(self):  # version 0
        return {"coef": np.zeros((10, 64)), "intercept": np.zeros(10)}

    def dataset(self):  # of all clients; [partition] deals it out
        return Examples(X[:TRAINING], Y[:TRAINING])

    def classifier(self, weights, seed=0):
        made = SGDClassifier(
            loss="log_loss",
            learning_rate="constant",
            eta0=self.training.learning_rate,
            random_state=seed,
        )
        made.partial_fit(X[:10], np.arange(10), classes=np.arange(10))  # makes its arrays
        made.coef_[:], made.intercept_[:] = weights["coef"], weights["intercept"]
        return made

    def train(self, weights, client, rng, state):
        mine = self.client_indices(client)
        model = self.classifier(weights, int(rng.integers(2**31)))
        for _ in range(self.training.epochs):
            model.partial_fit(X[mine], Y[mine])
        local = {"coef": model.coef_, "intercept": model.intercept_}
        return local, len(mine), {"accuracy": model.score(X[mine], Y[mine])}, {}

    def evaluate(self, weights):  # the global model, on examples that no client has
        return {"accuracy": self.classifier(weights).score(X[TRAINING:], Y[TRAINING:])}
