"""Training: the state, the recipes (one pure step each), the engines that shard a step over devices, and the loop."""
