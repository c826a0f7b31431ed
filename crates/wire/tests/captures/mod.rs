//! Reading of captures of the kernel's DRBD: from a file to the packets of each connection. Shared by the tests that
//! judge packets and those that judge the engine.

pub(crate) mod capture;
pub(crate) mod session;
