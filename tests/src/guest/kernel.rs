//! The guest's kernel: Debian's own package, found by name, unpacked into the cache folder.

use std::fs;
use std::path::{Path, PathBuf};
use std::process::Command;

use anyhow::{Context as _, Result, bail};

use crate::machine::{self, skip};

/// Which kernel a guest boots.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
pub enum KernelChoice {
    /// Debian 13's own, Linux 6.12: the one guest tests run on unless they say otherwise.
    #[default]
    Stable,
    /// The newest of Debian 13's backports, for what 6.12 does not have.
    Backports,
}

/// Names the kernel of guests that ask for none: one of [`KernelChoice::NAMES`].
pub const KERNEL_VARIABLE: &str = "UDRBD_VM_KERNEL";

impl KernelChoice {
    /// What people call them.
    pub const NAMES: [&str; 2] = ["6.12", "backports"];

    /// The kernel of this name.
    ///
    /// # Errors
    ///
    /// If there is none.
    pub fn named(name: &str) -> Result<Self> {
        match name {
            "6.12" => Ok(Self::Stable),
            "backports" => Ok(Self::Backports),
            other => bail!("`{other}` is no guest's kernel: {}", Self::NAMES.join(" or ")),
        }
    }

    /// What [`KERNEL_VARIABLE`] asks for; where it is not set, the usual one.
    ///
    /// # Errors
    ///
    /// If it names no kernel.
    pub fn from_environment() -> Result<Self> {
        match std::env::var(KERNEL_VARIABLE) {
            Ok(name) if !name.is_empty() => Self::named(&name).context(KERNEL_VARIABLE),
            _ => Ok(Self::default()),
        }
    }

    fn suite(self) -> &'static str {
        match self {
            Self::Stable => "trixie",
            Self::Backports => "trixie-backports",
        }
    }
}

/// An unpacked kernel package.
#[derive(Debug, Clone)]
pub struct Kernel {
    /// What `uname -r` says in the guest.
    pub release: String,
    /// The bootable image.
    pub image: PathBuf,
    /// Its modules, with `modules.dep`.
    pub modules: PathBuf,
}

impl Kernel {
    /// Takes the kernel from the cache folder, or fetches it there with apt (no root needed).
    ///
    /// # Errors
    ///
    /// A [`machine::Skip`] where the package cannot be had; an error if what came cannot be unpacked.
    pub fn fetch(choice: KernelChoice) -> Result<Self> {
        if std::env::consts::ARCH != "x86_64" {
            return Err(skip("guests need an x86-64 machine: they run its own programs"));
        }
        let cache = machine::cache_folder()?;
        let unpacked = cache.join(format!("kernel-{}", choice.suite()));
        if !unpacked.is_dir() {
            let folder = tempfile::Builder::new().prefix("fetch-").tempdir_in(&cache)?;
            let tree = download(choice, folder.path())?;
            // Whoever comes second in a race finds the folder in place and uses it.
            if let Err(error) = fs::rename(&tree, &unpacked)
                && !unpacked.is_dir()
            {
                return Err(error).context(format!("cannot create {}", unpacked.display()));
            }
        }
        Self::in_tree(&unpacked)
    }

    fn in_tree(tree: &Path) -> Result<Self> {
        for entry in fs::read_dir(tree.join("lib/modules"))? {
            let modules = entry?.path();
            let release = modules.file_name().and_then(|name| name.to_str()).unwrap_or_default().to_owned();
            // The image lies in /boot, in newer packagings beside its modules.
            let images = [tree.join("boot").join(format!("vmlinuz-{release}")), modules.join("vmlinuz")];
            if let Some(image) = images.into_iter().find(|image| image.is_file())
                && modules.join("modules.dep").is_file()
            {
                return Ok(Self { release, image, modules });
            }
        }
        bail!("{} holds no kernel: remove it and try again", tree.display())
    }

    /// The files of `names` and of everything they need, in the order in which to load them.
    /// What is built into the kernel, or unknown to it, is left out.
    ///
    /// # Errors
    ///
    /// If `modules.dep` cannot be read.
    pub fn module_files(&self, names: &[&str]) -> Result<Vec<PathBuf>> {
        let text = fs::read_to_string(self.modules.join("modules.dep"))?;
        let files = load_order(&text, names);
        Ok(files.iter().map(|file| self.modules.join(file)).collect())
    }
}

/// Resolves `names` in the text of a `modules.dep`, dependencies first.
fn load_order(modules_dep: &str, names: &[&str]) -> Vec<String> {
    let stem = |path: &str| {
        let name = path.rsplit('/').next().unwrap_or(path);
        name.split(".ko").next().unwrap_or(name).replace('-', "_")
    };
    let mut order: Vec<String> = Vec::new();
    for name in names {
        let wanted = name.replace('-', "_");
        let line = modules_dep.lines().filter_map(|line| line.split_once(':'));
        let Some((file, needs)) = line.into_iter().find(|(file, _)| stem(file) == wanted) else { continue };
        // modules.dep lists what is needed nearest first: load it from the far end.
        for part in needs.split_whitespace().rev().chain([file]) {
            if !order.iter().any(|have| have == part) {
                order.push(part.to_owned());
            }
        }
    }
    order
}

fn download(choice: KernelChoice, folder: &Path) -> Result<PathBuf> {
    for tool in ["apt-get", "dpkg-deb", "depmod", "xz"] {
        if machine::find_program(tool).is_none() {
            return Err(skip(format!("needs {tool} to fetch the guest's kernel")));
        }
    }
    eprintln!("fetching the kernel of {}", choice.suite());
    let base = machine::distribution_source()?;
    let options = machine::apt_options(folder, &base, &[choice.suite()])?;
    let apt = |program: &str, words: &[&str]| -> Result<String> {
        let output = Command::new(program)
            .args(&options)
            .args(words)
            .current_dir(folder)
            .output()
            .with_context(|| format!("cannot run {program}"))?;
        if !output.status.success() {
            let message = String::from_utf8_lossy(&output.stderr);
            return Err(skip(format!(
                "cannot fetch the guest's kernel: {}",
                message.lines().next().unwrap_or("")
            )));
        }
        Ok(String::from_utf8_lossy(&output.stdout).into_owned())
    };
    apt("apt-get", &["update", "-qq"])?;
    let shown = apt("apt-cache", &["show", "linux-image-amd64"])?;
    let package = kernel_package(&shown)
        .with_context(|| format!("{}: linux-image-amd64 names no kernel package", choice.suite()))?;
    let release = package.trim_start_matches("linux-image-");
    // Newer packagings put the image and the modules into packages of their own.
    let parts = parts_of(&apt("apt-cache", &["show", &package])?, release);
    let mut words = vec!["download", "-qq", &package];
    words.extend(parts.iter().map(String::as_str));
    apt("apt-get", &words)?;

    let tree = folder.join("tree");
    for entry in fs::read_dir(folder)? {
        let path = entry?.path();
        if path.extension().is_some_and(|ext| ext == "deb") {
            run("dpkg-deb", &["-x".as_ref(), path.as_ref(), tree.as_ref()])?;
        }
    }
    if !tree.join("lib").exists() {
        std::os::unix::fs::symlink("usr/lib", tree.join("lib"))?;
    }
    run("depmod", &["-b".as_ref(), tree.as_ref(), release.as_ref()])?;
    Ok(tree)
}

/// The kernel package that the meta package depends on.
fn kernel_package(shown: &str) -> Option<String> {
    shown
        .lines()
        .filter_map(|line| line.strip_prefix("Depends:"))
        .flat_map(|depends| depends.split(','))
        .filter_map(|depend| depend.split_whitespace().next())
        .find(|name| {
            name.strip_prefix("linux-image-")
                .is_some_and(|rest| rest.starts_with(|c: char| c.is_ascii_digit()))
        })
        .map(str::to_owned)
}

/// The packages of the same release that the kernel package depends on.
fn parts_of(shown: &str, release: &str) -> Vec<String> {
    let wanted = ["base", "binary", "modules"].map(|part| format!("linux-{part}-{release}"));
    shown
        .lines()
        .filter_map(|line| line.strip_prefix("Depends:"))
        .flat_map(|depends| depends.split(','))
        .filter_map(|depend| depend.split_whitespace().next())
        .filter(|name| wanted.iter().any(|part| part == name))
        .map(str::to_owned)
        .collect()
}

fn run(program: &str, words: &[&std::ffi::OsStr]) -> Result<()> {
    let program = machine::find_program(program).unwrap_or_else(|| program.into());
    let status = Command::new(&program).args(words).status()?;
    if !status.success() {
        bail!("{} failed: {status}", program.display());
    }
    Ok(())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn modules_load_after_what_they_need_and_once() {
        let dep = "kernel/fs/9p/9p.ko.xz: kernel/net/9p/9pnet.ko.xz kernel/fs/netfs/netfs.ko.xz\n\
                   kernel/net/9p/9pnet.ko.xz:\nkernel/net/9p/9pnet_virtio.ko.xz: kernel/net/9p/9pnet.ko.xz kernel/v/virtio-ring.ko.xz\n\
                   kernel/v/virtio-ring.ko.xz:\n";
        let order = load_order(dep, &["9p", "9pnet_virtio", "virtio_ring", "built_in"]);
        assert_eq!(
            order,
            [
                "kernel/fs/netfs/netfs.ko.xz",
                "kernel/net/9p/9pnet.ko.xz",
                "kernel/fs/9p/9p.ko.xz",
                "kernel/v/virtio-ring.ko.xz",
                "kernel/net/9p/9pnet_virtio.ko.xz"
            ]
        );
    }

    #[test]
    fn every_kernel_has_its_name() {
        let named = KernelChoice::NAMES.map(|name| KernelChoice::named(name).unwrap());
        assert_eq!(named, [KernelChoice::Stable, KernelChoice::Backports]);
        assert!(KernelChoice::named("7").is_err());
    }

    #[test]
    fn the_meta_package_leads_to_the_kernel() {
        let shown =
            "Package: linux-image-amd64\nDepends: linux-base, linux-image-6.12.1+deb13-amd64 (= 6.12.1-1)\n";
        assert_eq!(kernel_package(shown).as_deref(), Some("linux-image-6.12.1+deb13-amd64"));
        let shown = "Depends: linux-base-7.2-amd64 (= 1), linux-binary-7.2-amd64 (= 1), linux-modules-7.2-amd64 (= 1)\n";
        assert_eq!(
            parts_of(shown, "7.2-amd64"),
            ["linux-base-7.2-amd64", "linux-binary-7.2-amd64", "linux-modules-7.2-amd64"]
        );
    }
}
