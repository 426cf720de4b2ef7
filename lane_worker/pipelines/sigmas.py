"""Where the steps of an inference lie between noise and video, as the "beta" scheduler of ComfyUI places them."""

from typing import Any, Final

import numpy as np
from diffusers import FlowMatchEulerDiscreteScheduler

# Both parameters of the distribution, and how many noise levels there are to choose from: ComfyUI's defaults.
SHAPE: Final = 0.6
LEVELS: Final = 1000
# Points of the integral; with these a quantile is right to a millionth, and the levels are a thousandth apart.
POINTS: Final = 100_001


class BetaSigmasEuler(FlowMatchEulerDiscreteScheduler):
    """Euler steps of a flow at the noise levels of `beta_levels`, shifted afterwards (ADR 0028).

    diffusers' own `use_beta_sigmas` spreads the steps between the two ends of the shifted levels, which a shift hardly
    moves: `shift` would do next to nothing.
    """

    def set_timesteps(self, num_inference_steps: int | None = None, device: Any = None, **_: Any) -> None:
        """As diffusers' own, for a number of steps only."""
        if num_inference_steps is None:
            raise ValueError("the levels are made for a number of steps")
        super().set_timesteps(device=device, sigmas=beta_levels(num_inference_steps).tolist())


def beta_levels(steps: int) -> np.ndarray[Any, np.dtype[np.float64]]:
    """*steps* noise levels from 1 downwards, before the shift: quantiles of Beta(0.6, 0.6), denser at both ends.

    The rule: https://github.com/comfyanonymous/ComfyUI/blob/e53f8fd168d8792f4ba53c7b831c20c23afe6218/comfy/samplers.py
    (beta_scheduler), after https://arxiv.org/abs/2407.12173.
    """
    # The quantiles come from the integral of the density. With x = sin(angle)^2 it has no pole at the ends.
    angles = np.linspace(0, np.pi / 2, POINTS)
    density = (np.sin(angles) * np.cos(angles)) ** (2 * SHAPE - 1)
    integral = np.concatenate([[0.0], np.cumsum(density[1:] + density[:-1])])
    wanted = 1 - np.linspace(0, 1, steps, endpoint=False)
    quantiles = np.sin(np.interp(wanted * integral[-1], integral, angles)) ** 2
    levels: np.ndarray[Any, np.dtype[np.float64]] = (np.rint(quantiles * (LEVELS - 1)) + 1) / LEVELS
    return levels
