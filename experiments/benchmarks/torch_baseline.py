"""I2X's explain stage as a competent user of PyTorch and scikit-learn would write it: what our speed is measured by.

Not a straw man: `channels_last`, all threads, batches tuned; logits and maps from one forward pass, with the backbone
outside the graph; scikit-learn's PCA, K-means, HDBSCAN (per class, as ours) and Ridge; everything in memory. Saliency
is what captum's `LayerGradCam(...).attribute(..., relu_attributions=True)` returns (a test compares them), taken from
that one pass, where captum would make its own. JAX is not imported. `benchmark.py` runs it beside ours.
"""

import time

import numpy as np
import torch
import torch.nn.functional as F
from safetensors.torch import load_file
from sklearn.cluster import HDBSCAN, KMeans
from sklearn.decomposition import PCA
from sklearn.linear_model import Ridge
from sklearn.preprocessing import StandardScaler

from experiments.benchmarks import torch_models
from experiments.benchmarks.benchmark_problem import Problem, Stopwatch
from experiments.benchmarks.sklearn_baseline import fitted, group, ridge_groups, ridge_samples
from i2x_jax.data.dataset import training_indices

BATCHES = (32, 64, 128, 256, 512, 1024)
TUNING_IMAGES = 1024


class Implementation:
    """The stages, each with the outputs of those before it as arguments; NumPy arrays in and out."""

    def __init__(self, problem: Problem, batch_size: int = 0):
        self.problem, self.explain_settings = problem, problem.config.explain
        torch.set_num_threads(problem.threads)
        self.device = torch.device("cuda" if torch.cuda.is_available() else "cpu")
        model = problem.config.model
        self.network = torch_models.create(
            model.name,
            num_classes=problem.num_classes,
            image_shape=problem.images.shape[1:],
            width=model.width,
            stem=model.stem,
        ).to(self.device, memory_format=torch.channels_last)
        self.tap = model.tap or list(self.network.stages())[-1]
        self.half = model.dtype == "bfloat16"
        self.load(-1)
        self.batch = batch_size or self.tuned_batch()

    def use(self, problem: Problem) -> None:
        """Goes on with other images, prototypes or checkpoints of the same network."""
        self.problem, self.explain_settings = problem, problem.config.explain

    def facts(self) -> dict:
        """What the report says of this side."""
        return {"torch": torch.__version__, "threads": torch.get_num_threads(), "batch_size": self.batch}

    def load(self, t: int) -> None:
        """The weights of analysed checkpoint t, for evaluation."""
        # Batch counters are no part of the file.
        self.network.load_state_dict(load_file(self.problem.weights[t]), strict=False)
        self.network.eval()

    def tuned_batch(self) -> int:
        """The batch size with the fastest forward pass."""
        images = self.problem.images[:TUNING_IMAGES]
        found = {}
        for size in BATCHES:
            if size > len(images):
                break
            self.logits_of(images[:size], size)
            started = time.perf_counter()
            self.logits_of(images, size)
            found[size] = time.perf_counter() - started
        return min(found, key=found.get, default=len(images))

    def tensor(self, images: np.ndarray) -> torch.Tensor:
        """Images `[B, H, W, C]` as the network wants them; uint8 NHWC is `channels_last` already."""
        return torch.from_numpy(images).to(self.device).permute(0, 3, 1, 2).float().div_(127.5).sub_(1)

    def features_of(self, images: np.ndarray) -> torch.Tensor:
        """The feature map `[B, d, h, w]`, float32."""
        with torch.autocast(self.device.type, torch.bfloat16, enabled=self.half):
            return self.network.features(self.tensor(images), self.tap).float()

    def logits_of(self, images: np.ndarray, size: int) -> np.ndarray:
        """Logits of all images."""
        with torch.inference_mode():
            parts = [
                self.network.head(self.features_of(images[i : i + size]), self.tap) for i in range(0, len(images), size)
            ]
            return torch.cat(parts).cpu().numpy()

    def forward(self) -> dict:
        """Logits of all images at the last checkpoint."""
        return {"logits": self.logits_of(self.problem.images, self.batch)}

    def all_features(self) -> np.ndarray:
        """Feature vectors of all locations, `[N*h*w, d]`."""
        images, rows = self.problem.images, None
        with torch.inference_mode():
            for start in range(0, len(images), self.batch):
                maps = self.features_of(images[start : start + self.batch]).permute(0, 2, 3, 1)
                if rows is None:
                    rows = np.empty((len(images), *maps.shape[1:]), np.float32)
                rows[start : start + len(maps)] = maps.cpu().numpy()
        return rows.reshape(-1, rows.shape[-1])

    def explained(self, images: np.ndarray, labels: np.ndarray) -> tuple[torch.Tensor, torch.Tensor]:
        """Logits and GradCAM maps `[B, h, w]` from one forward pass; only the head is differentiated."""
        with torch.no_grad():
            maps = self.features_of(images)
        maps.requires_grad_()
        logits = self.network.head(maps, self.tap)
        classes = torch.from_numpy(labels).to(self.device).long()
        if self.explain_settings.target == "predicted":
            classes = logits.argmax(1)
        (gradient,) = torch.autograd.grad(logits.gather(1, classes[:, None]).sum(), maps)
        with torch.no_grad():
            saliency = F.relu((gradient.mean((2, 3), keepdim=True) * maps).sum(1))
            return logits.detach(), saliency

    def maps(self, assignments: np.ndarray) -> dict:
        """Saliency of the images that ours takes at a time, to compare."""
        count = self.explain_settings.batch_size
        return {"maps": self.explained(self.problem.images[:count], self.problem.labels[:count])[1].cpu().numpy()}

    def saliency_intensity(self, assignments: np.ndarray) -> dict:
        """Intensity `[N, K]` and confidence `[N, M]` at the checkpoint that is loaded."""
        images, labels, size = self.problem.images, self.problem.labels, self.batch
        width = self.explain_settings.num_prototypes
        intensity = np.empty((len(images), width), np.float32)
        confidence = np.empty((len(images), self.problem.num_classes), np.float32)
        for start in range(0, len(images), size):
            rows = slice(start, start + size)
            logits, saliency = self.explained(images[rows], labels[rows])
            ids = torch.from_numpy(assignments[rows].reshape(len(logits), -1)).to(self.device).long()
            saliency = saliency.flatten(1)
            sums = torch.zeros(len(logits), width, device=self.device).scatter_add_(1, ids, saliency)
            counts = torch.zeros_like(sums).scatter_add_(1, ids, torch.ones_like(saliency))
            intensity[rows] = (sums / counts.clamp_(min=1)).cpu().numpy()
            confidence[rows] = logits.softmax(1).cpu().numpy()
        return {"intensity": intensity, "confidence": confidence}

    def pca(self, features: np.ndarray) -> dict:
        """PCA by the covariance (scikit-learn's fastest exact solver here), fitted and applied."""
        solver = "covariance_eigh" if len(features) > features.shape[1] else "full"
        model = PCA(self.explain_settings.pca_dims, svd_solver=solver)
        points = model.fit_transform(features)
        return {"points": points, "components": model.components_, "mean": model.mean_}

    def kmeans(self, points: np.ndarray, start: np.ndarray, iterations: int) -> dict:
        """Lloyd's iterations from a given start."""
        model = KMeans(len(start), init=start, n_init=1, max_iter=iterations, tol=0, algorithm="lloyd").fit(points)
        return fitted(model)

    def cool(self) -> None:
        """Nothing is compiled."""

    def kmeans_fit(self, points: np.ndarray) -> dict:
        """K-means from its own start until it converges."""
        return fitted(self._kmeans(points))

    def _kmeans(self, points):
        return KMeans(self.explain_settings.num_prototypes, max_iter=100, random_state=self.problem.config.seed).fit(
            points
        )

    def assign(self, points: np.ndarray, centroids: np.ndarray) -> dict:
        """The nearest centroid of every point."""
        # Fitted on the centroids themselves it keeps them; scikit-learn has no other way to be given some.
        model = KMeans(len(centroids), init=centroids, n_init=1, max_iter=1).fit(centroids)
        return {"ids": model.predict(points)}

    def grouping(self, confidence: np.ndarray) -> dict:
        """Groups of every interval `[T-1, N]`."""
        changes = np.diff(confidence.astype(np.float64), axis=0)
        return {"groups": np.stack([self.group_interval(dY) for dY in changes])}

    def group_interval(self, dY: np.ndarray) -> np.ndarray:
        """Groups of one interval `[N]`, within each class."""
        settings, labels = self.explain_settings, self.problem.labels
        if settings.group_by == "global":
            return group(dY, settings.min_cluster_size, settings.min_samples)
        ids = np.empty(len(dY), np.int32)
        for label in range(self.problem.num_classes):
            ids[labels == label] = group(dY[labels == label], settings.min_cluster_size, settings.min_samples)
        return ids

    def grouping_global(self, dY: np.ndarray) -> dict:
        """One HDBSCAN call over all rows of one interval."""
        return {"groups": HDBSCAN(max(5, len(dY) // 100), copy=True, min_samples=5).fit_predict(dY)}

    def mapping(self, intensity: np.ndarray, confidence: np.ndarray, groups: np.ndarray) -> dict:
        """Ridge on group means and on samples, over all classes and within each, and held-out R^2."""
        labels, found = self.problem.labels, []
        every = [slice(None), *(labels == label for label in range(self.problem.num_classes))]
        for t in range(len(groups)):
            dP, dY = (values[t + 1].astype(np.float64) - values[t] for values in (intensity, confidence))
            ids = groups[t].astype(np.int64)
            if self.explain_settings.group_by == "class":
                ids = np.where(ids < 0, ids, labels * (ids.max() + 1) + ids)
            by_groups = [ridge_groups(dP[rows], dY[rows], ids[rows]) for rows in every]
            by_samples = [ridge_samples(dP[rows], dY[rows], self.problem.folds[rows]) for rows in every]
            found.append((by_groups[0], *by_samples[0], [r2 for _, r2 in by_samples[1:]]))
        names = ("beta_groups", "beta", "r2", "r2_by_class")
        return {name: np.stack(values) for name, values in zip(names, zip(*found, strict=True), strict=True)}

    def beta_at(self, intensity: np.ndarray, confidence: np.ndarray, penalties: np.ndarray) -> dict:
        """Ridge on samples with given penalties, to compare coefficients."""
        betas = []
        for t, penalty in enumerate(penalties):
            dP, dY = (values[t + 1].astype(np.float64) - values[t] for values in (intensity, confidence))
            scaler = StandardScaler().fit(dP)
            betas.append(Ridge(penalty).fit(scaler.transform(dP), dY).coef_.T / scaler.scale_[:, None])
        return {"beta": np.stack(betas)}

    def explain(self) -> dict:
        """All of it, from images and checkpoints."""
        watch = Stopwatch()
        self.load(-1)
        features = self.all_features()
        watch.lap("features")
        reduced = self.pca(features)
        del features
        watch.lap("pca")
        model = self._kmeans(reduced["points"])
        locations = len(model.labels_) // len(self.problem.images)
        assignments = model.labels_.astype(np.int16).reshape(-1, locations)
        watch.lap("kmeans and assign")
        measured = []
        for t in range(len(self.problem.weights)):
            self.load(t)
            measured.append(self.saliency_intensity(assignments))
        intensity, confidence = (np.stack([each[name] for each in measured]) for name in ("intensity", "confidence"))
        watch.lap("saliency_intensity")
        groups = self.grouping(confidence)["groups"]
        watch.lap("grouping")
        mapped = self.mapping(intensity, confidence, groups)
        watch.lap("mapping")
        return {
            "assignments": assignments,
            "centroids": model.cluster_centers_ @ reduced["components"],
            "intensity": intensity,
            "confidence": confidence,
            "groups": groups,
            "r2": mapped["r2"],
            "iterations": model.n_iter_,
            "parts": watch.laps,
        }

    def start_training(self, augment: bool) -> dict:
        """The weights of step 0 and a new optimizer; its rate stays that of the config."""
        settings = self.problem.config.train
        self.load(0)
        self.augment = self.problem.config.data.augment if augment else "none"
        parameters = list(self.network.parameters())
        groups = [
            {"params": [p for p in parameters if p.ndim > 1], "weight_decay": settings.weight_decay},
            {"params": [p for p in parameters if p.ndim == 1], "weight_decay": 0.0},
        ]
        if settings.optimizer == "sgd":
            self.optimizer = torch.optim.SGD(groups, settings.learning_rate, momentum=0.9, nesterov=True, fused=True)
        else:
            self.optimizer = torch.optim.AdamW(groups, settings.learning_rate, fused=True)
        self.step = 0
        return {}

    def train_step(self, count: int) -> dict:
        """Some steps of training; returns their mean loss."""
        problem, loss_sum = self.problem, torch.zeros((), device=self.device)
        self.network.train()
        correct = torch.zeros((), dtype=torch.int64, device=self.device)
        for _ in range(count):
            rows = training_indices(
                len(problem.labels), problem.config.train.batch_size, self.step, problem.config.seed
            )
            images = torch.from_numpy(problem.images[rows]).to(self.device)
            labels = torch.from_numpy(problem.labels[rows]).to(self.device).long()
            x = augmented(images, self.augment).permute(0, 3, 1, 2).float().div_(127.5).sub_(1)
            with torch.autocast(self.device.type, torch.bfloat16, enabled=self.half):
                logits = self.network.head(self.network.features(x, self.tap), self.tap).float()
            loss = F.cross_entropy(logits, labels)
            self.optimizer.zero_grad(set_to_none=True)
            loss.backward()
            self.optimizer.step()
            loss_sum += loss.detach()
            correct += (logits.argmax(1) == labels).sum()
            self.step += 1
        return {"loss": float(loss_sum) / count, "correct": int(correct)}


def augmented(images: torch.Tensor, how: str) -> torch.Tensor:
    """Images `[B, H, W, C]` shifted by up to an eighth of the side, edges replicated, and mirrored if so asked."""
    if how == "none":
        return images
    count, height, width, _ = images.shape
    reach = max(1, min(height, width) // 8)
    rows, columns = (
        (torch.arange(side) + torch.randint(-reach, reach + 1, (count, 1))).clamp_(0, side - 1)
        for side in (height, width)
    )
    if how == "shift_flip":
        columns = torch.where(torch.rand(count, 1) < 0.5, columns.flip(1), columns)
    return images[torch.arange(count)[:, None, None], rows[:, :, None], columns[:, None, :]]
