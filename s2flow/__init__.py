"""S²Flow: training-free high-resolution video generation, guided by the low-resolution flow."""
