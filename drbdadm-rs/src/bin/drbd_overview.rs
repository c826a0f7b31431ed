//! The program `drbd-overview`; see the library for what it does.

fn main() {
    std::process::exit(drbdadm_rs::dispatch("drbd-overview"));
}
