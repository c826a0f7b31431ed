//! The checkout this was built from, and cargo in it.

use std::path::{Path, PathBuf};
use std::process::{Command, Stdio};
use std::sync::OnceLock;

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

/// The features a build here can have, as words for cargo: ublk where its bindings can be made, for which bindgen wants
/// libclang. It is installed where that is possible; where it is not, the build goes on without, and says so.
pub(crate) fn features() -> &'static [&'static str] {
    static FEATURES: OnceLock<&[&str]> = OnceLock::new();
    FEATURES.get_or_init(|| match machine::ensure_packages(&["libclang-dev"]) {
        Err(error) if !has_libclang() => {
            eprintln!("built without ublk (no /dev/drbdN, NBD only): {error:#}");
            &[]
        }
        _ => &["--features", "udrbdd/ublk"],
    })
}

/// Whether there is a libclang that did not come as a package of Debian's.
fn has_libclang() -> bool {
    let named = std::env::var_os("LIBCLANG_PATH").map(PathBuf::from);
    let folders =
        ["/usr/lib", "/usr/lib64", "/usr/local/lib", "/usr/lib/x86_64-linux-gnu"].map(PathBuf::from);
    folders.into_iter().chain(named).any(|folder| {
        std::fs::read_dir(folder).is_ok_and(|mut entries| {
            entries.any(|entry| {
                entry.is_ok_and(|entry| entry.file_name().to_string_lossy().starts_with("libclang.so"))
            })
        })
    })
}

/// Builds the daemon and the command line as they are shipped.
///
/// # Errors
///
/// If they do not build.
pub(crate) fn build_release() -> Result<()> {
    let mut words = vec!["build", "--release", "--quiet", "-p", "udrbdd", "-p", "drbdadm-rs", "--bins"];
    words.extend(features());
    run_cargo(&words)
}
