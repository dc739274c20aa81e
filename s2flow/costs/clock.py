"""From FLOPs and bytes to seconds: the rates of a device, and the roofline model.

    compute  = FLOPs / rate           of self-attention and of everything else, one after the other
    memory   = bytes moved / bandwidth
    seconds  = max(compute, memory) + bytes sent / link

Assumed and given rates are those of whole stages: they include the work between the products, and the
larger of compute and memory decides. Rates measured on single kernels (`measured`) are applied to each
kind of kernel, since kernels run one after another:

    seconds  = max(products, weights and their inputs and outputs) + max(attention, q k v out)
               + rest + sent

Kernel launches are not counted; on small models they dominate. The autoencoder and the planning stage
compute in float32, at a separate rate. `offload=group` is limited by the transfer of the weights from
the CPU.

Sources: TFLOP/s are what whole forwards of such models reach in bfloat16, some 40 % of the data sheets'
dense peak; GB/s of memory are 80 % of the data sheets'; GB/s of the link are 70 % of NVLink in one
direction (H800: the halved link of that GPU), and 20 (PCIe 4) for GPUs without it. All are assumptions,
which `--measure`, `tflops=`, `bandwidth=` and `link=` replace.
"""

import math
from dataclasses import dataclass, replace

from s2flow.costs.trace import Moved
from s2flow.errors import UserError

VAE_SHARE = 0.1  # of the rate, for float32: the autoencoder, and sampled rows of attention
BUS = 25e9  # bytes a second from the CPU to a GPU


@dataclass(frozen=True)
class Rates:
    """Achieved rates: TFLOP/s, GB/s of memory and of the link to other ranks.

    attention, float32: TFLOP/s of self-attention and of float32 work, if known separately.
    share: float32 rate relative to tflops, if not. kernels: whether these are rates of single kernels.
    An infinite rate costs no time.
    """

    tflops: float
    bandwidth: float = math.inf
    link: float = math.inf
    attention: float | None = None
    float32: float | None = None
    kernels: bool = False
    share: float = VAE_SHARE

    @property
    def in_float32(self) -> float:
        """TFLOP/s of float32 work."""
        return self.float32 or self.share * self.tflops

    def seconds(self, flops: float, attention: float, moved: Moved, single: bool = False) -> float:
        """Seconds of one rank's work, without communication. flops include attention.

        single: whether it is computed in float32.
        """
        rate = self.in_float32 if single else self.tflops
        products = (flops - attention) / (rate * 1e12)
        attended = attention / ((self.attention or self.tflops) * 1e12)
        byte = 1 / (self.bandwidth * 1e9)
        if not self.kernels:
            return max(products + attended, moved.total * byte)
        return (
            max(products, (moved.weights + moved.products) * byte)
            + max(attended, moved.attention * byte)
            + moved.rest * byte
        )

    def having(self, **given: float | None) -> "Rates":
        """With the given rates instead, None left out. Raises UserError for an invalid one."""
        given = {name: rate for name, rate in given.items() if rate is not None}
        for name, rate in given.items():
            if not 0 < rate < math.inf:
                raise UserError(
                    f"{name}={rate:g} is no rate; type a number above 0, as {name}=100"
                )
        return replace(self, **given)


RATES = {
    "H200": Rates(400, 3840, 315),
    "H100": Rates(400, 2680, 315),
    "H800": Rates(400, 2680, 140),
    "B200": Rates(800, 6400, 630),
    "A100": Rates(180, 1550, 210),
    "4090": Rates(120, 806, 20),
    "cpu": Rates(0.05, 10, 2, share=1.0),  # it computes in float32 anyway
}


def known(name: str) -> Rates | None:
    """Assumed rates of a device by its name, such as "NVIDIA H100 80GB HBM3"; None: not known."""
    return next((rates for word, rates in RATES.items() if word.lower() in name.lower()), None)


def rates_of(name: str, memory: float | None = None, **given: float | None) -> Rates:
    """Assumed rates of a device, overridden by the given ones. Raises UserError for an invalid one.

    memory: GiB; decides whether an unknown GPU counts as an H100 or an A100.
    """
    return (known(name) or RATES["H100" if (memory or 0) > 60 else "A100"]).having(**given)
