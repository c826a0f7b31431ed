//! Everything that touches the kernel: io_uring, disks, sockets, timers, the NBD server.
