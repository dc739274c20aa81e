"""S²Flow: training-free high-resolution video generation, guided by the low-resolution flow."""

import os

# Before torch starts its threads: by default they spin while they wait, and on cores that anything
# else uses as well a clip then takes thirty times as long.
os.environ.setdefault("OMP_WAIT_POLICY", "passive")
