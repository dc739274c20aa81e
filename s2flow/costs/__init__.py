"""Cost estimates of a clip: FLOPs, bytes, seconds, memory and communication, without weights.

The stages are executed on the meta device (`blank`), where tensors have shapes and dtypes but no data,
so the counts follow diffusers' code and ours.

    trace      FLOPs, bytes alive and bytes moved of the operations in a block
    forward    one velocity: linear and attention FLOPs at any density, peak memory, communication
    vae        hand-off and decoding, from one tile
    clip       the stages of a recipe: text, lr, plan, handoff, hr, decode
    stages     seconds and peak memory of a stage on a device, with k ranks or offloading
    clock      assumed or given rates of a device, and the roofline; `measured`: timed on this machine
    paper      the paper's timings, and predictions of both readings of its "s = 50 %"

    python -m s2flow.costs         the paper's timings beside the model for a GPU of yours
    python run.py ... plan=true    the clip of a command (`planning`), and all clips of it (`forecast`)

Seconds depend on the rates, which are assumptions unless measured: take them as an order of magnitude.
"""
