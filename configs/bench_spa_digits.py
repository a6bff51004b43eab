"""Eight ways to train against ten attacks on handwritten digits, over three seeds, and the ablations of the joint attack."""
