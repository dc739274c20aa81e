"""In which tiles an autoencoder works.

It works on squares of `side` pixels that start every `stride` pixels, their overlaps blended: far less
memory, slightly other pixels. Wan 2.2 5B's encoder packs 2 x 2 pixels before it cuts, so that its tiles
are twice as large.
"""

from collections.abc import Iterator
from contextlib import contextmanager
from fractions import Fraction
from typing import Any

from s2flow.backbones.swap import swapped
from s2flow.errors import UserError


def tile_vae(vae: Any, tile: tuple[int, int] | None) -> None:
    """Let an autoencoder work in tiles of (side, stride) pixels; None: on whole frames."""
    if not hasattr(vae, "tile_sample_min_height"):
        if tile is not None:
            raise UserError(
                f"vae_tile={list(tile)}: {type(vae).__name__} has no tiles; leave vae_tile out"
            )
        return
    if tile is None:
        vae.disable_tiling()
        return
    side, stride = tile
    if hasattr(vae, "tile_overlap_factor"):  # HunyuanVideo-1.5
        vae.use_tiling = True
        vae.tile_sample_min_height = vae.tile_sample_min_width = side
        latent = side // vae.spatial_compression_ratio
        vae.tile_latent_min_height = vae.tile_latent_min_width = latent
        vae.tile_overlap_factor = Fraction(side - stride, side)  # a float is rounded down to less
        return
    vae.enable_tiling(
        tile_sample_min_height=side,
        tile_sample_min_width=side,
        tile_sample_stride_height=stride,
        tile_sample_stride_width=stride,
    )


@contextmanager
def tiled(vae: Any, tile: tuple[int, int] | None) -> Iterator[None]:
    """`tile_vae` for a while: within, and then as it was. None: the VAE stays as it is."""
    if vae is None or tile is None:
        yield
        return
    now = {k: v for k, v in vars(vae).items() if k == "use_tiling" or k.startswith("tile_")}
    with swapped(vae, **now):
        tile_vae(vae, tile)
        yield
