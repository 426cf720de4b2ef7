"""The parameters of the classes that serve a model, by their configuration alone."""

import diffusers
import torch
import transformers

from lane_worker.checkpoints.found import Shape
from lane_worker.checkpoints.layouts import Component


def parameters_of(component: Component) -> dict[str, Shape]:
    """The parameters of the real class with this configuration, and their shapes. Takes no memory for them."""
    with torch.device("meta"):
        if component.library == "diffusers":
            model = getattr(diffusers, component.kind).from_config(component.config)
        else:
            config = transformers.AutoConfig.for_model(**component.config)
            model = getattr(transformers, component.kind)(config)
    # a tied parameter is not stored under its second name
    tied = set(getattr(model, "_tied_weights_keys", None) or ())
    return {name: tuple(tensor.shape) for name, tensor in model.state_dict().items() if name not in tied}
