"""What every pipeline host would build for itself, built once by its fork server: imports and tables, and no tensor."""

from importlib import import_module
from typing import Final

from transformers.conversion_mapping import get_checkpoint_conversion_mapping

# What the libraries import at their first load, save and run, and no earlier.
AT_FIRST_USE: Final = (
    "PIL.ImageFile",
    "av.subtitles.stream",
    "diffusers.guiders",
    "diffusers.schedulers.scheduling_ddpm",
    "diffusers.schedulers.scheduling_deis_multistep",
    "diffusers.schedulers.scheduling_dpmsolver_singlestep",
    "diffusers.schedulers.scheduling_edm_euler",
    "diffusers.schedulers.scheduling_k_dpm_2_ancestral_discrete",
    "diffusers.schedulers.scheduling_k_dpm_2_discrete",
    "diffusers.schedulers.scheduling_unipc_multistep",
    "encodings.utf_8_sig",
    "numpy.ctypeslib",
)


def preload() -> None:
    """Imports and builds them. A host that is forked afterwards imports nothing more for its rehearsal, and starts a
    quarter sooner.

    The table names the weights of every architecture that transformers knows, by a thousand regular expressions.
    transformers would build it at the first text encoder that is loaded, whichever that is.
    """
    for name in AT_FIRST_USE:
        import_module(name)
    get_checkpoint_conversion_mapping("umt5")
