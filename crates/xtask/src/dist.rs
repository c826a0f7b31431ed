//! `cargo xtask dist`: the Debian package, from a release build.

use std::process::ExitCode;

use anyhow::Result;
use udrbd_tests::{machine, package, replica};

use crate::workspace;

/// Builds the programs and the package, and prints where it is.
///
/// # Errors
///
/// If something does not build, or this machine has no `dpkg-deb`.
pub(crate) fn run() -> Result<ExitCode> {
    workspace::build_release()?;
    if machine::find_program("strip").is_none() {
        eprintln!("without strip (Debian: binutils) the programs keep their debugging information");
    }
    let root = workspace::root();
    let programs = replica::built(package::PROGRAMS)?;
    let file = package::build(&root, &programs, &root.join("target/dist"))?;
    println!("{} ({} KiB)", file.display(), file.metadata()?.len().div_ceil(1024));
    println!("install it with: apt install {}", file.display());
    Ok(ExitCode::SUCCESS)
}
