//! The program `drbdmeta`; see the library for what it does.

fn main() {
    std::process::exit(drbdadm_rs::dispatch("drbdmeta"));
}
