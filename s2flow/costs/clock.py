"""From FLOPs and bytes to seconds: what a device achieves, and the roofline over it.

    compute  = FLOPs / rate           of self-attention and of everything else, one after the other
    memory   = bytes moved / bandwidth
    seconds  = max(compute, memory) + bytes sent / link

Rates that are assumed or typed are those of whole stages, so what lies between the products is in
them and the larger of both counts. Rates that were measured on single kernels (`measured`) pay for
every kind of kernel by itself, since they run one after another:

    seconds  = max(products, weights and their inputs and outputs) + max(attention, q k v out)
               + rest + sent

What kernels take to start is left out: on small models it is what the seconds are. The autoencoder and
the planning stage compute in float32, at a rate of their own. `offload=group` is no
faster than the weights travel from the CPU.

Where the numbers come from: TFLOP/s are what whole forwards of such models reach in bfloat16, some 40 %
of the data sheets' dense peak; GB/s of memory are 80 % of the data sheets'; GB/s of the link are
70 % of what NVLink sends in one direction (H800: the halved link of that card), and for cards
without it 20, a PCIe 4 slot. All of them are assumptions, which `--measure`, `tflops=`, `bandwidth=`
and `link=` replace.
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
    """What a device achieves: TFLOP/s, GB/s of its memory and of its link to other ranks.

    attention, float32: TFLOP/s of self-attention and of float32 work where they are known apart.
    share: of tflops, in float32, where that is not known apart. kernels: whether these are rates of
    single kernels (see the module). What is infinite is free.
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
        """Of work of one rank, without what it sends: FLOPs in all, those of self-attention.

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
    """What is assumed of a device by its name, such as "NVIDIA H100 80GB HBM3"; None: not known."""
    word = next((w for w in RATES if w.lower() in name.lower()), None)
    if word is None:
        return None
    share = 1.0 if word == "cpu" else VAE_SHARE  # which computes in float32 anyway
    return Rates(RATES[word], BANDWIDTH[word], LINK[word], share=share)


def rates_of(
    name: str,
    memory: float | None = None,
    tflops: float | None = None,
    bandwidth: float | None = None,
    link: float | None = None,
) -> Rates:
    """What is assumed of a device, with what was typed instead.

    memory: GiB, by which a GPU of unknown name counts as an H100 or an A100. Raises UserError for what
    is no rate.
    """
    usual = known(name) or known("H100" if (memory or 0) > 60 else "A100")
    typed = {"tflops": tflops, "bandwidth": bandwidth, "link": link}
    return with_typed(usual, **typed)


def with_typed(rates: Rates, **typed: float | None) -> Rates:
    """Rates with those that were typed in their place. Raises UserError for what is no rate."""
    for name, rate in typed.items():
        if rate is not None and not 0 < rate < math.inf:
            raise UserError(f"{name}={rate:g} is no rate; type a number above 0, as {name}=100")
    return replace(rates, **{k: v for k, v in typed.items() if v is not None})
