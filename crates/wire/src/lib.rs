//! DRBD 8.4 wire protocol: packets, bitmap run-length code, digests and authentication as values.
