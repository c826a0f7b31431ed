//! The checkout this was built from, and cargo in it.

use std::path::{Path, PathBuf};
use std::process::{Command, Stdio};

use anyhow::{Context as _, Result, bail};
use udrbd_tests::machine;

/// The checkout's folder.
pub(crate) fn root() -> PathBuf {
    let manifest = Path::new(env!("CARGO_MANIFEST_DIR"));
    manifest.ancestors().nth(2).unwrap_or(manifest).to_owned()
}

/// cargo, run in the checkout: the one that runs us, so that toolchains do not mix.
pub(crate) fn cargo() -> Command {
    let mut command = Command::new(std::env::var_os("CARGO").unwrap_or_else(|| "cargo".into()));
    command.current_dir(root()).stdin(Stdio::null());
    command
}

/// Runs cargo with `words`; it must succeed.
pub(crate) fn run_cargo(words: &[&str]) -> Result<()> {
    let status = cargo().args(words).status().context("cannot run cargo")?;
    if !status.success() {
        bail!("cargo {} failed", words.join(" "));
    }
    Ok(())
}

/// Installs what the build itself needs beyond Rust: bindgen wants libclang.
pub(crate) fn ensure_build_packages() -> Result<()> {
    let lock = std::fs::read_to_string(root().join("Cargo.lock")).unwrap_or_default();
    if lock.contains("name = \"bindgen\"") {
        machine::ensure_packages(&["libclang-dev"])?;
    }
    Ok(())
}

/// Builds the daemon and the command line as they are shipped.
///
/// # Errors
///
/// If they do not build.
pub(crate) fn build_release() -> Result<()> {
    ensure_build_packages()?;
    run_cargo(&["build", "--release", "--quiet", "-p", "udrbdd", "-p", "drbdadm-rs", "--bins"])
}
