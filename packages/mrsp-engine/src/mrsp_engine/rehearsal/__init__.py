"""Steps on tensors without numbers: what every rank of a run would hold, send and compute, found out on a laptop.

Weights are fake tensors (shapes and types only), so a model of any size is built from its configuration and the step's
own code runs on it, on as many processes as there would be GPUs. What ranks tell each other as plain objects is sent;
exchanges of fake tensors are written down and compared afterwards.
"""
