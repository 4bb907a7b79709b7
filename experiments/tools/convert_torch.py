"""Turns PyTorch weights (.pth) into a .safetensors file for `--config.model.init_from`. This alone needs PyTorch.

    pip install -r requirements-baseline.txt
    python experiments/tools/convert_torch.py --input=resnet50.pth --output=resnet50.safetensors \
        --mean=0.485,0.456,0.406 --std=0.229,0.224,0.225
    python run.py --config=... --config.model.name=resnet50 --config.model.init_from=resnet50.safetensors

The names must be torchvision's; a .pth is unpickled as weights only, so nothing in it is executed. Our networks take
input scaled to -1..1. Weights trained on another normalisation need it named by --mean and --std (those above are the
ImageNet ones of torchvision's ResNets); it is folded into the first convolution and the BatchNorm behind it, which is
exact except at the border of the image, where zero padding then stands for middle grey instead of the mean colour.
torchvision's InceptionV3 scales its input to -1..1 itself: its weights need neither. --grey folds three colour channels
into one, for grey images.
"""

import os
import pathlib
import pickle
import sys

from absl import app, flags, logging

sys.path.insert(0, str(pathlib.Path(__file__).resolve().parents[2]))

import numpy as np
from safetensors.numpy import save_file

from i2x_jax.config import InputError
from i2x_jax.models import torch_weights

# Where training scripts put the weights among other things.
NESTED = ("state_dict", "model")

_INPUT = flags.DEFINE_string("input", None, "The .pth file: a state dict, or a dict that holds one.", required=True)
_OUTPUT = flags.DEFINE_string("output", None, "The .safetensors file to write.", required=True)
_MEAN = flags.DEFINE_list("mean", None, "Mean of each channel, 0 to 1, that the weights were trained with.")
_STD = flags.DEFINE_list("std", None, "Deviation of each channel that the weights were trained with.")
_GREY = flags.DEFINE_bool("grey", False, "Make weights for grey images from weights for colour.")


def read_pth(path: str) -> torch_weights.Tensors:
    """The tensors of a .pth file.

    Raises:
      InputError: no PyTorch, no such file, or not a state dict.
    """
    try:
        import torch
    except ImportError:
        raise InputError(
            "PyTorch is not installed; allowed: an environment with it; pip install -r requirements-baseline.txt"
        ) from None
    allowed = "allowed: a state dict as torch.save(model.state_dict()) writes it; set --input"
    try:
        found = torch.load(path, map_location="cpu", weights_only=True)
    except OSError as error:
        raise InputError(f"{path!r} cannot be read ({error.strerror}); {allowed}") from None
    except (pickle.UnpicklingError, RuntimeError, EOFError, ValueError, KeyError, AttributeError) as error:
        reason = (str(error).strip().splitlines() or [type(error).__name__])[0][:160]
        raise InputError(f"{path!r} holds no weights alone ({reason}); {allowed}") from None
    for key in NESTED:
        if isinstance(found, dict) and isinstance(found.get(key), dict):
            found = found[key]
    if not isinstance(found, dict) or not found or not all(torch.is_tensor(value) for value in found.values()):
        raise InputError(f"{path!r} holds no state dict; {allowed}")
    # A network wrapped for several GPUs has one more level of names.
    return {name.removeprefix("module."): value.to(torch.float32).numpy() for name, value in found.items()}


def numbers(flag: flags.FlagHolder) -> np.ndarray:
    """The values of --mean or --std.

    Raises:
      InputError: they are no numbers.
    """
    try:
        values = np.array([float(value) for value in flag.value])
    except ValueError:
        values = np.array([np.nan])
    if not (np.isfinite(values).all() and (values >= 0).all() and (values.any() or flag.name == "mean")):
        raise InputError(f"--{flag.name} is {','.join(flag.value)!r}; allowed: numbers such as 0.485,0.456,0.406")
    return values


def convert(source: str, target: str) -> None:
    """Reads, folds what the flags ask for, and writes the file whole or not at all.

    Raises:
      InputError: the file, or what the flags ask for, cannot be used.
    """
    tensors = read_pth(source)
    if (_MEAN.value is None) != (_STD.value is None):
        raise InputError("only one of --mean and --std is given; allowed: both or neither")
    if _MEAN.value is not None:
        tensors = torch_weights.fold_normalization(tensors, numbers(_MEAN), numbers(_STD))
    if _GREY.value:
        tensors = torch_weights.fold_channels(tensors)
    temporary = f"{target}.tmp"
    try:
        save_file({name: np.ascontiguousarray(tensor) for name, tensor in tensors.items()}, temporary)
        os.replace(temporary, target)
    except OSError as error:
        raise InputError(
            f"{target!r} cannot be written ({error}); allowed: a folder with permission and space"
        ) from None
    finally:
        pathlib.Path(temporary).unlink(missing_ok=True)
    print(f"{target}: {len(tensors)} tensors, {sum(tensor.size for tensor in tensors.values()):,} numbers")


def main(argv: list[str]) -> None:
    """Flags to a file; errors in one line."""
    del argv
    try:
        convert(_INPUT.value, _OUTPUT.value)
    except InputError as problem:
        print(f"convert_torch.py: error: {problem}", file=sys.stderr)
        sys.exit(2)


if __name__ == "__main__":
    logging.set_verbosity(logging.ERROR)
    app.run(main)
