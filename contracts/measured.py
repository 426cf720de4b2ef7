"""The memory that an inference holds on a card beside the weights, as counted, and the margin on top. Pure (ADR
0025)."""

from typing import Final

from msgspec import Struct

from contracts.geometry import Size

# The count is what torch's tensors hold; an inference takes more. Real decodes on a CPU (320 x 176 x 9) took 1.26 and
# 1.37 GB where 1.10 were counted, because convolutions need room to work in. Matrix products need next to none: a real
# pass of a transformer's block took 0.5539 GB where 0.5534 were counted.
VAE_MARGIN: Final = 1.25
TRANSFORMER_MARGIN: Final = 1.10
STEP_BYTES: Final = 100_000_000
# The pipelines that encode an image or a video before they begin.
ENCODING: Final = frozenset({"WanImageToVideoPipeline", "WanVACEPipeline"})


class Measured(Struct, frozen=True, kw_only=True):
    """The peaks of live tensor bytes, beside the weights, of the parts of *model*: the most for any of *sizes*.

    *encode_bytes* counts for pipelines that encode an image.
    """

    model: str
    pipeline: str
    sizes: tuple[Size, ...]
    vae_tiling: bool
    dtype: str
    decode_bytes: int
    encode_bytes: int
    transformer_bytes: int

    @property
    def activation_bytes(self) -> int:
        """What `checkpoint.activation_bytes` has to be for these sizes: the largest part and its margin, rounded up."""
        encode_bytes = self.encode_bytes if self.pipeline in ENCODING else 0
        vae = max(self.decode_bytes, encode_bytes) * VAE_MARGIN
        return -int(-max(vae, self.transformer_bytes * TRANSFORMER_MARGIN) // STEP_BYTES) * STEP_BYTES
