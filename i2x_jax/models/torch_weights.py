"""Weights under the names and in the layout that PyTorch's torchvision gives them; NumPy only.

Real torchvision checkpoints thereby start our networks (`model.init_from`), and our checkpoints open in PyTorch.
ResNet-18 and 50 and InceptionV3 have torchvision's own names; ResNet-20 and the CNN, which it lacks, names made the
same way (`layer1.0.conv1.weight`, `conv2.weight`, `bn2.running_mean`, `fc.bias`). Transformers have timm's.

Our networks take levels scaled to -1..1. So does torchvision's InceptionV3 behind its `transform_input`; its ResNets
were trained on (level / 255 - mean) / std, which `fold_normalization` makes up for.
"""

import hashlib
import os
from collections.abc import Iterator, Mapping
from typing import Any

import numpy as np
from safetensors import SafetensorError
from safetensors.numpy import load_file

from i2x_jax.config import InputError, listed

TRANSFORMERS = ("vit_ti", "vit_s", "vit_b")
Tensors = dict[str, np.ndarray]

# What torchvision calls the convolutions of InceptionV3's stem, and its branches.
INCEPTION_STEM = {
    "conv1": "Conv2d_1a_3x3",
    "conv2": "Conv2d_2a_3x3",
    "conv3": "Conv2d_2b_3x3",
    "conv4": "Conv2d_3b_1x1",
    "conv5": "Conv2d_4a_3x3",
}
BRANCHES = {
    "one": "branch1x1",
    "three": "branch3x3",
    "five": "branch5x5",
    "seven": "branch7x7",
    "double": "branch3x3dbl",
    "pool": "branch_pool",
}
OTHER_BRANCHES = {
    **{(f"mixed_6{letter}", "double"): "branch7x7dbl" for letter in "bcde"},
    ("mixed_7a", "seven"): "branch7x7x3",
}
# A branch of one convolution has no number behind its name.
SINGLE = (("mixed_6a", "three"),)
FORKS = {"wide": "a", "tall": "b"}
# What timm calls the layers of a transformer's block, and what else it has.
VIT_LAYERS = {"qkv": "attn.qkv", "project": "attn.proj", "hidden": "mlp.fc1", "out": "mlp.fc2"}
VIT_EMBEDDING = {"positions": "pos_embed", "token": "cls_token"}

# Our axes in PyTorch's order, by their number: `[h, w, in, out]` to `[out, in, h, w]`, `[in, out]` to `[out, in]`.
TO_TORCH = {4: (3, 2, 0, 1), 3: (0, 1, 2), 2: (1, 0), 1: (0,)}
LEAVES = {"kernel": "weight", "scale": "weight", "bias": "bias", "mean": "running_mean", "var": "running_var"}
# Not weights: a counter beside each BatchNorm, and the head that InceptionV3 drops after training.
IGNORED_ENDINGS, IGNORED_STARTS = ("num_batches_tracked",), ("AuxLogits.",)
CLASSIFIER, VIT_CLASSIFIER = ("fc.weight", "fc.bias"), ("head.weight", "head.bias")
FIRST_LAYERS = (("conv1.weight", "bn1.running_mean"), ("Conv2d_1a_3x3.conv.weight", "Conv2d_1a_3x3.bn.running_mean"))
SHOWN = 3


def to_torch(network: str, variables: Mapping[str, Any]) -> Tensors:
    """Our variables as a flat state dict; without BatchNorm's batch counters, which PyTorch does without.

    Args:
      network: a name of `models.NETWORKS`.
      variables: of `models.Model`, on the host or a device.

    Returns:
      float32, convolutions `[out, in, h, w]`, the classifier `[classes, d]`.
    """
    return {
        _name(network, path): np.ascontiguousarray(np.asarray(leaf, np.float32).transpose(TO_TORCH[leaf.ndim]))
        for path, leaf in _leaves(variables)
    }


def from_torch(
    network: str, tensors: Mapping[str, np.ndarray], initial: Mapping[str, Any], source: str
) -> tuple[dict[str, Any], int | None]:
    """A state dict as our variables.

    Args:
      network: a name of `models.NETWORKS`.
      tensors: as `to_torch` makes them, of any number type; batch counters and `AuxLogits` may be among them.
      initial: variables, or their shapes; the classifier stays theirs where the tensors know another number of classes.
      source: what errors call the tensors.

    Returns:
      The variables, float32, and the number of classes of the tensors if it was another.

    Raises:
      InputError: tensors are missing, unexpected, of another shape, not numbers, or not finite.
    """
    found = {name: tensor for name, tensor in tensors.items() if not _ignored(name)}
    wanted = {
        _name(network, path): tuple(leaf.shape[axis] for axis in TO_TORCH[len(leaf.shape)])
        for path, leaf in _leaves(initial)
    }
    other_classes = None
    classifier = VIT_CLASSIFIER if network in TRANSFORMERS else CLASSIFIER
    weight = found.get(classifier[0])
    if weight is not None and weight.ndim == 2 and weight.shape[1] == wanted[classifier[0]][1]:
        if weight.shape[0] != wanted[classifier[0]][0]:
            other_classes = weight.shape[0]
            for name in classifier:
                found.pop(name, None)
                del wanted[name]
    problems = {
        "lacks": [name for name in wanted if name not in found],
        "has unexpected": [name for name in found if name not in wanted],
        "has another shape in": [
            f"{name} {list(found[name].shape)} instead of {list(shape)}"
            for name, shape in wanted.items()
            if name in found and found[name].shape != shape
        ],
        "holds NaN, infinity or no numbers in": [name for name in wanted if name in found and not _sound(found[name])],
    }
    told = [f"{what} {listed(names, SHOWN)}" for what, names in problems.items() if names]
    if told:
        raise InputError(
            f"{source} {'; '.join(told)}; allowed: the tensors of {network} under torchvision's names, for the stem, "
            "width and image channels of this config; set model.init_from, or the group model to fit it"
        )

    def take(tree, path=()):
        if isinstance(tree, Mapping):
            return {key: take(item, (*path, key)) for key, item in tree.items()}
        name = _name(network, path)
        if name not in wanted:
            return tree
        tensor = np.asarray(found[name], np.float32)
        return tensor.transpose(np.argsort(TO_TORCH[tensor.ndim]))

    return take(initial), other_classes


def read(path: str | os.PathLike) -> Tensors:
    """All tensors of a .safetensors file.

    Raises:
      InputError: it is not there, or is not one.
    """
    allowed = "allowed: a .safetensors file such as experiments/tools/convert_torch.py writes; set model.init_from"
    if not os.path.isfile(path):
        raise InputError(f"weights {str(path)!r} are not a file; {allowed}")
    try:
        return load_file(path)
    except OSError as error:
        raise InputError(f"weights {str(path)!r} cannot be read ({error}); {allowed}") from None
    # A KeyError names a number type that NumPy does not have.
    except (SafetensorError, KeyError, TypeError, ValueError) as error:
        raise InputError(f"weights {str(path)!r} are not safetensors ({str(error).strip()}); {allowed}") from None


def sha256(path: str | os.PathLike) -> str:
    """SHA-256 of a file, as 64 hexadecimal digits."""
    with open(path, "rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()


def fold_normalization(tensors: Mapping[str, np.ndarray], mean: np.ndarray, std: np.ndarray) -> Tensors:
    """Weights for input scaled to -1..1 from weights for input normalised as (level / 255 - mean) / std.

    The scale goes into the first convolution, the offset into the running mean of the BatchNorm after it. That is exact
    except where the convolution reaches over the border: its zero padding stands for the mean colour before, and for
    middle grey after. (A network's first batch of training replaces the offset, not the scale.)

    Args:
      tensors: a state dict.
      mean: `[C]`, 0..1, by channel.
      std: `[C]`, above 0.

    Raises:
      InputError: no first convolution is known, or it has another number of channels.
    """
    mean, std = np.asarray(mean, np.float64), np.asarray(std, np.float64)
    kernel_name, norm_name = _first_layer(tensors)
    kernel = np.asarray(tensors[kernel_name], np.float64)
    if not mean.shape == std.shape == kernel.shape[1:2]:
        raise InputError(
            f"a normalisation of {mean.size} means and {std.size} deviations for {kernel_name} {list(kernel.shape)}; "
            f"allowed: {kernel.shape[1]} of each, one for every channel"
        )
    offset = np.einsum("ochw,c->o", kernel, (0.5 - mean) / std)
    folded = kernel / (2 * std)[:, None, None]
    return {
        **tensors,
        kernel_name: folded.astype(np.float32),
        norm_name: (tensors[norm_name] - offset).astype(np.float32),
    }


def fold_channels(tensors: Mapping[str, np.ndarray]) -> Tensors:
    """Weights for grey images from weights for colour: the same outputs as for three equal channels, exactly.

    Raises:
      InputError: no first convolution is known.
    """
    name, _ = _first_layer(tensors)
    return {**tensors, name: tensors[name].sum(1, keepdims=True, dtype=np.float64).astype(np.float32)}


def _first_layer(tensors):
    for names in FIRST_LAYERS:
        if set(names) <= set(tensors) and tensors[names[0]].ndim == 4:
            return names
    raise InputError(
        f"no first convolution among {listed(list(tensors), SHOWN)}; allowed: weights with {FIRST_LAYERS[0][0]} and "
        f"{FIRST_LAYERS[0][1]}, or {FIRST_LAYERS[1][0]} and {FIRST_LAYERS[1][1]}"
    )


def _leaves(tree, path=()) -> Iterator[tuple[tuple[str, ...], Any]]:
    for key, item in tree.items():
        yield from _leaves(item, (*path, key)) if isinstance(item, Mapping) else [((*path, key), item)]


def _name(network, path):
    """The tensor name of a leaf at (collection, *modules, leaf)."""
    *modules, leaf = path[1:]
    if network in TRANSFORMERS:
        return _vit_name(modules, leaf)
    if modules == ["classifier"]:
        return f"fc.{LEAVES[leaf]}"
    *block, layer = modules
    names = _inception_names(block) if network == "inception_v3" else _resnet_names(block)
    return f"{names[layer]}.{LEAVES[leaf]}"


def _vit_name(modules, leaf):
    """As `_name`, of a transformer."""
    if leaf in VIT_EMBEDDING:
        return VIT_EMBEDDING[leaf]
    if modules == ["embed", "project"]:
        name = "patch_embed.proj"
    elif len(modules) == 2:
        block, layer = modules
        name = f"blocks.{int(block.removeprefix('block')) - 1}.{VIT_LAYERS.get(layer, layer)}"
    else:
        name = {"classifier": "head"}.get(modules[0], modules[0])
    return f"{name}.{LEAVES[leaf]}"


def _resnet_names(block):
    """Convolution and BatchNorm of a block of a ResNet, or of the CNN, whose stages are single convolutions."""
    if len(block) == 1 or block[0] == "stem":
        number = block[0].removeprefix("conv") if block[0] != "stem" else "1"
        return {"conv": f"conv{number}", "norm": f"bn{number}"}
    stage, place, *rest = block
    prefix = f"layer{stage.removeprefix('stage')}.{int(place.removeprefix('block')) - 1}"
    if rest == ["shortcut"]:
        return {"conv": f"{prefix}.downsample.0", "norm": f"{prefix}.downsample.1"}
    number = rest[-1].removeprefix("conv")
    return {"conv": f"{prefix}.conv{number}", "norm": f"{prefix}.bn{number}"}


def _inception_names(block):
    stage, branch, *rest = block
    if stage == "stem":
        name = INCEPTION_STEM[branch]
    else:
        name = f"M{stage[1:]}.{_branch_name(stage, branch, rest)}"
    return {"conv": f"{name}.conv", "norm": f"{name}.bn"}


def _branch_name(stage, branch, rest):
    name = OTHER_BRANCHES.get((stage, branch), BRANCHES[branch])
    if branch in ("one", "pool") or (stage, branch) in SINGLE:
        return name
    if rest[0] == "fork":
        # The two ends of a fork share a number, one after that of the last convolution before it.
        return f"{name}_{2 if branch == 'three' else 3}{FORKS[rest[1]]}"
    return f"{name}_{rest[0].removeprefix('conv')}"


def _ignored(name):
    return name.endswith(IGNORED_ENDINGS) or name.startswith(IGNORED_STARTS)


def _sound(tensor):
    return np.issubdtype(tensor.dtype, np.floating) and bool(np.isfinite(tensor).all())
