"""Cost estimates of a clip: FLOPs, bytes, seconds, memory and communication, without weights.

The stages are executed on the meta device (`blank.py`), where tensors have shapes and dtypes but no
data, so the counts follow diffusers' code and ours.

    trace      FLOPs, bytes alive and bytes moved of the operations in a block
    forward    one velocity: linear and attention FLOPs at any density, peak memory, communication
    coverage   cost of planning in every layer of an LR step
    vae        hand-off and decoding, from one tile
    clip       the stages of a recipe: text, lr, plan, handoff, hr, decode
    stages     seconds and peak memory of a stage on a device, with k ranks or offloading
    clock      assumed or given rates of a device, and the roofline
    measured   rates timed on this machine's device
    paper      the paper's timings, and predictions of both readings of its "s = 50 %"

    python -m s2flow.costs         the paper's timings beside the model for a GPU of yours
    python run.py ... plan=true    the clip of a command (`s2flow.costs.planning`)

Seconds depend on the rates, which are assumptions unless measured: take them as an order of magnitude.
"""

from s2flow.costs.clip import flow_stage, measure, vae_stages, weights_of
from s2flow.costs.clock import BANDWIDTH, BUS, LINK, RATES, VAE_SHARE, Rates, known, rates_of
from s2flow.costs.coverage import Coverage, coverage_cost
from s2flow.costs.forward import Forward, forward_cost
from s2flow.costs.stages import CONTEXT_GIB, GIB, SLACK, Costs, Stage, Weights, bound, seconds_of
from s2flow.costs.trace import Moved, Trace, tracing
from s2flow.costs.vae import Pass, vae_cost

__all__ = [
    "BANDWIDTH",
    "BUS",
    "GIB",
    "LINK",
    "RATES",
    "CONTEXT_GIB",
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
