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

RATES = {"H200": 400, "H100": 400, "H800": 400, "B200": 800, "A100": 180, "4090": 120, "cpu": 0.05}
BANDWIDTH = {"H200": 3840, "H100": 2680, "H800": 2680, "B200": 6400, "A100": 1550, "4090": 806}
BANDWIDTH |= {"cpu": 10}
LINK = {"H200": 315, "H100": 315, "H800": 140, "B200": 630, "A100": 210, "4090": 20}
LINK |= {"cpu": 2}
VAE_SHARE = 0.1  # of the rate, for float32: the autoencoder, and sampled rows of attention
BUS = 25e9  # bytes a second from the CPU to a GPU


@dataclass(frozen=True)
class Rates:
    """Achieved rates: TFLOP/s, GB/s of memory and of the link to other ranks.

    attention, float32: TFLOP/s of self-attention and of float32 work, if known separately.
    share: float32 rate relative to tflops, if not. kernels: whether these are rates of single kernels
    (see the module). An infinite rate costs no time.
    """

    tflops: float
    bandwidth: float = math.inf
    link: float = math.inf
    attention: float | None = None
    float32: float | None = None
    kernels: bool = False
    share: float = VAE_SHARE

    def __post_init__(self) -> None:
        for name in ("tflops", "bandwidth", "link", "attention", "float32"):
            rate = getattr(self, name)
            if rate is not None and not rate > 0:
                raise UserError(
                    f"{name}={rate:g} is no rate; type a number above 0, as {name}=100"
                )

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

    def sending(self, sent: float) -> float:
        """Seconds to send so many bytes to other ranks."""
        return sent / (self.link * 1e9)


def known(name: str) -> Rates | None:
    """Assumed rates of a device by its name, such as "NVIDIA H100 80GB HBM3"; None: not known."""
    key = next((w for w in RATES if w.lower() in name.lower()), None)
    if key is None:
        return None
    share = 1.0 if key == "cpu" else VAE_SHARE  # it computes in float32 anyway
    return Rates(RATES[key], BANDWIDTH[key], LINK[key], share=share)


def rates_of(
    name: str,
    memory: float | None = None,
    tflops: float | None = None,
    bandwidth: float | None = None,
    link: float | None = None,
) -> Rates:
    """Assumed rates of a device, overridden by the given ones.

    memory: GiB; decides whether an unknown GPU counts as an H100 or an A100. Raises UserError for an
    invalid rate.
    """
    assumed = known(name) or known("H100" if (memory or 0) > 60 else "A100")
    given = {"tflops": tflops, "bandwidth": bandwidth, "link": link}
    return with_given(assumed, **given)


def with_given(rates: Rates, **given: float | None) -> Rates:
    """Rates overridden by the given ones. Raises UserError for an invalid rate."""
    for name, rate in given.items():
        if rate is not None and not 0 < rate < math.inf:
            raise UserError(f"{name}={rate:g} is no rate; type a number above 0, as {name}=100")
    return replace(rates, **{k: v for k, v in given.items() if v is not None})
