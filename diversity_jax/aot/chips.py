"""Chips and slices that a training step can be compiled for without having them, and what their makers say they can
do.
"""

from dataclasses import dataclass
import math
import re

from diversity_jax.core.errors import InputError

SOURCES_READ_ON = "2026-11-21"


@dataclass(frozen=True, kw_only=True)
class Chip:
    """One device as JAX sees it, by its maker's data sheet; per device, bytes are of 8 bits and rates are per
    second.
    """

    name: str
    platform: str  # "tpu" or "cuda"
    hbm_bytes: int  # what a program can use: for TPUs what libtpu's compiler allows, else the driver's figure
    peak_flops: float  # dense bfloat16 with float32 accumulation
    hbm_bytes_per_second: float
    link_bytes_per_second: float  # sent by one device in one ring: both directions of one torus axis, or all of NVLink
    network_bytes_per_second: float  # sent by one device to another slice or node
    dimensions: int  # numbers in the name of a slice
    source: str


_GIB = 1 << 30
_DATA_SHEET = "H100 and H200 data sheets (SXM, dense bfloat16, 900 GB/s NVLink both ways, one 400 Gb/s adapter a GPU)"
CHIPS = {
    chip.name: chip
    for chip in (
        Chip(
            name="v4",
            platform="tpu",
            hbm_bytes=int(30.75 * _GIB),
            peak_flops=275e12,
            hbm_bytes_per_second=1.2e12,
            link_bytes_per_second=100e9,
            network_bytes_per_second=6.25e9,
            dimensions=3,
            source=(
                "cloud.google.com/tpu/docs/v4; 50 GB/s a link and 6.25 GB/s of network a chip from the JAX scaling book"
            ),
        ),
        Chip(
            name="v5e",
            platform="tpu",
            hbm_bytes=int(15.75 * _GIB),
            peak_flops=197e12,
            hbm_bytes_per_second=819e9,
            link_bytes_per_second=100e9,
            network_bytes_per_second=3.125e9,
            dimensions=2,
            source="cloud.google.com/tpu/docs/v6e (its column v5e): 1600 Gb/s over 4 links, 2 x 100 Gb/s for 8 chips",
        ),
        Chip(
            name="v5p",
            platform="tpu",
            hbm_bytes=int(95.74 * _GIB),
            peak_flops=459e12,
            hbm_bytes_per_second=2765e9,
            link_bytes_per_second=200e9,
            network_bytes_per_second=6.25e9,
            dimensions=3,
            source="cloud.google.com/tpu/docs/v5p: 1200 GB/s both ways over 6 links, 50 Gb/s of network a chip",
        ),
        Chip(
            name="v6e",
            platform="tpu",
            hbm_bytes=int(31.25 * _GIB),
            peak_flops=918e12,
            hbm_bytes_per_second=1640e9,
            link_bytes_per_second=200e9,
            network_bytes_per_second=12.5e9,
            dimensions=2,
            source="cloud.google.com/tpu/docs/v6e: 800 GB/s both ways over 4 links, 4 x 200 Gb/s for 8 chips",
        ),
        Chip(
            name="h100",
            platform="cuda",
            hbm_bytes=84_942_979_072,
            peak_flops=989e12,
            hbm_bytes_per_second=3.35e12,
            link_bytes_per_second=450e9,
            network_bytes_per_second=50e9,
            dimensions=1,
            source=_DATA_SHEET,
        ),
        Chip(
            name="h200",
            platform="cuda",
            hbm_bytes=151_397_597_184,
            peak_flops=989e12,
            hbm_bytes_per_second=4.8e12,
            link_bytes_per_second=450e9,
            network_bytes_per_second=50e9,
            dimensions=1,
            source=_DATA_SHEET,
        ),
    )
}
_EXAMPLES = {
    "v4": "v4:2x2x4",
    "v5e": "v5e:4x4",
    "v5p": "v5p:2x2x4",
    "v6e": "v6e:4x4",
    "h100": "h100:8",
    "h200": "h200:1",
}


@dataclass(frozen=True, kw_only=True)
class Target:
    """Slices of chips: `v5e:4x4` is one slice of 16, `v5e:4x4*2` two of them joined by the data-centre network."""

    chip: Chip
    shape: tuple[int, ...]  # of one slice
    slices: int = 1

    @property
    def devices(self) -> int:
        """Of all slices."""
        return math.prod(self.shape) * self.slices

    @property
    def shape_name(self) -> str:
        """`4x4`."""
        return "x".join(map(str, self.shape))

    @property
    def name(self) -> str:
        """As it is written on the command line."""
        return f"{self.chip.name}:{self.shape_name}" + (f"*{self.slices}" if self.slices > 1 else "")


def parse_target(text: str) -> Target:
    """The target that a name such as `v5e:4x4`, `v5p:2x2x4*2` or `h100:8` stands for.

    Raises:
      InputError: no such chip, or a shape that its slices do not have.
    """
    match = re.fullmatch(r"(\w+):(\d+(?:x\d+)*)(?:\*(\d+))?", text.strip().lower())
    if match is None or match[1] not in CHIPS:
        raise InputError(
            f"--topology {text}: is not known; choose CHIP:SHAPE with a chip of {', '.join(CHIPS)}, such as v5e:4x4 "
            "or h100:8"
        )
    chip = CHIPS[match[1]]
    target = Target(chip=chip, shape=tuple(map(int, match[2].split("x"))), slices=int(match[3] or 1))
    if len(target.shape) != chip.dimensions or not target.devices:
        raise InputError(
            f"--topology {text}: a slice of {chip.name} has {chip.dimensions} sizes, such as {_EXAMPLES[chip.name]}"
        )
    if chip.platform == "cuda" and target.shape[0] > 8:
        raise InputError(f"--topology {text}: a node has up to 8 GPUs; for two nodes of 8 write {chip.name}:8*2")
    return target
