//! Two engines on simulated disks, network, operators and power, driven from a seed.
