"""What a clip costs before it is made: FLOPs, bytes, seconds, memory and traffic, without weights.

The stages run as they are, on the meta device (`blank.py`): tensors have shapes and types and
no data, and what is counted follows diffusers' code and ours.

    trace      FLOPs, bytes alive and bytes moved of whatever runs inside
    forward    one velocity: linear and attention FLOPs at any density, its peak, what ranks exchange
    coverage   what planning costs in every layer of an LR step
    vae        hand-off and decoding, from one tile
    clip       the stages of a recipe: text, lr, plan, handoff, hr, decode
    stages     seconds and peak of a stage on a device, k ranks or offloaded
    clock      what a device achieves, assumed or typed, and the roofline
    measured   the same, timed on the device at hand
    paper      the paper's clock, and what each reading of its "s = 50 %" predicts

    python -m s2flow.costs         the paper's clock beside the model for a GPU of yours
    python run.py ... plan=true    a command's own clip (`s2flow.costs.planning`)

Seconds stand and fall with the rates, which are assumptions until measured: a scale, not a promise.
"""

from s2flow.costs.clip import flow_stage, measure, vae_stages, weights_of
from s2flow.costs.clock import BANDWIDTH, BUS, LINK, RATES, VAE_SHARE, Rates, known, rates_of
from s2flow.costs.coverage import Coverage, coverage_cost
from s2flow.costs.forward import Forward, forward_cost
from s2flow.costs.stages import GIB, RESERVE, SLACK, Costs, Stage, Weights, bound, seconds_of
from s2flow.costs.trace import Moved, Trace, tracing
from s2flow.costs.vae import Pass, vae_cost

__all__ = [
    "BANDWIDTH",
    "BUS",
    "GIB",
    "LINK",
    "RATES",
    "RESERVE",
    "SLACK",
    "VAE_SHARE",
    "Costs",
    "Coverage",
    "Forward",
    "Moved",
    "Pass",
    "Rates",
    "Stage",
    "Trace",
    "Weights",
    "bound",
    "coverage_cost",
    "flow_stage",
    "forward_cost",
    "known",
    "measure",
    "rates_of",
    "seconds_of",
    "tracing",
    "vae_cost",
    "vae_stages",
    "weights_of",
]
