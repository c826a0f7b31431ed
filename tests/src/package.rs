//! The Debian package, made of built programs and of the files in `conf/`. What `cargo xtask dist` hands out is what
//! the guests install.

use std::fs;
use std::os::unix::fs::{PermissionsExt as _, symlink};
use std::path::{Path, PathBuf};
use std::process::Command;
use std::time::{SystemTime, UNIX_EPOCH};

use anyhow::{Context as _, Result, bail};

use crate::machine::{self, skip};

/// Its name.
pub const NAME: &str = "udrbd";
const VERSION: &str = env!("CARGO_PKG_VERSION");
const HOMEPAGE: &str = env!("CARGO_PKG_REPOSITORY");

/// The programs it is made of.
pub const PROGRAMS: &[&str] = &["udrbdd", "drbdadm"];

/// Programs that are one binary under several names: link and name it leads to.
const LINKS: &[(&str, &str)] = &[
    ("usr/sbin/drbdsetup", "drbdadm"),
    ("usr/sbin/drbdmeta", "drbdadm"),
    ("usr/sbin/drbd-overview", "drbdadm"),
    // The names `drbdadm -d` prints.
    ("usr/sbin/drbdadm-84", "drbdadm"),
    ("usr/sbin/drbdsetup-84", "drbdadm"),
];

/// Files of the checkout: source, place in the package, mode.
const FILES: &[(&str, &str, u32)] = &[
    ("conf/resources", "usr/lib/udrbd/resources", 0o755),
    ("conf/systemd/udrbdd.service", "usr/lib/systemd/system/udrbdd.service", 0o644),
    ("conf/systemd/drbd.service", "usr/lib/systemd/system/drbd.service", 0o644),
    ("conf/systemd/drbd@.service", "usr/lib/systemd/system/drbd@.service", 0o644),
    ("conf/systemd/udrbd-verify.service", "usr/lib/systemd/system/udrbd-verify.service", 0o644),
    ("conf/systemd/udrbd-verify.timer", "usr/lib/systemd/system/udrbd-verify.timer", 0o644),
    ("conf/systemd/drbd@.target", "usr/lib/systemd/system/drbd@.target", 0o644),
    ("conf/tmpfiles/udrbd.conf", "usr/lib/tmpfiles.d/udrbd.conf", 0o644),
    ("conf/udev/66-udrbd.rules", "usr/lib/udev/rules.d/66-udrbd.rules", 0o644),
    ("conf/ocf/drbd", "usr/lib/ocf/resource.d/udrbd/drbd", 0o755),
    ("conf/udrbd.default", "etc/default/udrbd", 0o644),
    // From here postinst creates what is missing; as files of the package they would clash with drbd-utils.
    ("conf/drbd.conf", "usr/share/udrbd/drbd.conf", 0o644),
    ("conf/drbd.d/global_common.conf", "usr/share/udrbd/global_common.conf", 0o644),
    ("conf/sysvinit/drbd", "usr/share/udrbd/init.d-drbd", 0o755),
    ("conf/drbd.conf", "usr/share/doc/udrbd/examples/drbd.conf", 0o644),
    ("conf/drbd.d/global_common.conf", "usr/share/doc/udrbd/examples/drbd.d/global_common.conf", 0o644),
    ("conf/drbd.d/r0.res", "usr/share/doc/udrbd/examples/drbd.d/r0.res", 0o644),
    ("conf/README.md", "usr/share/doc/udrbd/packaging.md", 0o644),
    ("README.md", "usr/share/doc/udrbd/README.md", 0o644),
    ("docs/spec-differences.md", "usr/share/doc/udrbd/spec-differences.md", 0o644),
];

/// Folders without files: where diverted files of another package go (see `conf/debian/diversions.sh`), and DRBD's own.
const FOLDERS: &[&str] = &[
    "usr/lib/udrbd/diverted/sbin",
    "usr/lib/udrbd/diverted/usr/sbin",
    "usr/lib/udrbd/diverted/lib/systemd/system",
    "usr/lib/udrbd/diverted/usr/lib/systemd/system",
    "usr/lib/udrbd/diverted/lib/modules-load.d",
    "usr/lib/udrbd/diverted/usr/lib/modules-load.d",
    "var/lib/drbd",
];

const MAINTAINER_SCRIPTS: &[&str] = &["preinst", "postinst", "prerm", "postrm"];

/// Makes the package of the checkout `source` and the programs in `binaries`, and returns its path in `output`.
///
/// # Errors
///
/// A [`machine::Skip`] where there is no `dpkg-deb`; else whatever cannot be read or written.
pub fn build(source: &Path, binaries: &Path, output: &Path) -> Result<PathBuf> {
    if machine::find_program("dpkg-deb").is_none() {
        return Err(skip("needs dpkg-deb to make a package"));
    }
    fs::create_dir_all(output).with_context(|| format!("cannot make {}", output.display()))?;
    let stage = tempfile::Builder::new().prefix("udrbd-package-").tempdir()?;
    let root = stage.path();
    fs::set_permissions(root, fs::Permissions::from_mode(0o755))?;
    let architecture = printed(Command::new("dpkg").arg("--print-architecture"))?;

    for name in PROGRAMS {
        let program = root.join("usr/sbin").join(name);
        put(
            &fs::read(binaries.join(name)).with_context(|| format!("{name} is not built"))?,
            &program,
            0o755,
        )?;
        strip(&program)?;
    }
    for (from, to, mode) in FILES {
        let bytes = fs::read(source.join(from)).with_context(|| format!("cannot read {from}"))?;
        put(&bytes, &root.join(to), *mode)?;
    }
    for (link, target) in LINKS {
        symlink(target, root.join(link))?;
    }
    for folder in FOLDERS {
        fs::create_dir_all(root.join(folder))?;
    }
    let documents = root.join("usr/share/doc").join(NAME);
    let copyright = fs::read_to_string(source.join("conf/debian/copyright"))?;
    put(copyright.replace("@homepage@", HOMEPAGE).as_bytes(), &documents.join("copyright"), 0o644)?;
    put(changelog()?.as_bytes(), &documents.join("changelog"), 0o644)?;
    run(Command::new("gzip").args(["-9n"]).arg(documents.join("changelog")))?;
    for folder in folders_below(root)? {
        fs::set_permissions(folder, fs::Permissions::from_mode(0o755))?;
    }
    write_control(source, root, &architecture)?;

    let package = output.join(format!("{NAME}_{VERSION}_{architecture}.deb"));
    run(Command::new("dpkg-deb").args(["--root-owner-group", "--build"]).arg(root).arg(&package))?;
    Ok(package)
}

/// What dpkg itself reads: control file, maintainer scripts, configuration files, checksums.
fn write_control(source: &Path, root: &Path, architecture: &str) -> Result<()> {
    let files = files_below(root)?;
    let bytes: u64 =
        files.iter().filter_map(|file| file.symlink_metadata().ok()).map(|about| about.len()).sum();
    let names = files.iter().filter_map(|file| file.strip_prefix(root).ok());
    let sums = printed(Command::new("md5sum").args(names).current_dir(root))?;
    let programs = PROGRAMS.iter().map(|name| fs::read(root.join("usr/sbin").join(name)));
    let depends = dependencies(&programs.collect::<std::io::Result<Vec<_>>>()?);

    let folder = root.join("DEBIAN");
    let template = |name: &str| {
        fs::read_to_string(source.join("conf/debian").join(name))
            .with_context(|| format!("conf/debian/{name}"))
    };
    let control = template("control")?
        .replace("@version@", VERSION)
        .replace("@architecture@", architecture)
        .replace("@size@", &bytes.div_ceil(1024).to_string())
        .replace("@depends@", &depends)
        .replace("@homepage@", HOMEPAGE);
    put(control.as_bytes(), &folder.join("control"), 0o644)?;
    let diversions = template("diversions.sh")?;
    for name in MAINTAINER_SCRIPTS {
        let script = template(name)?.replace("@diversions@", &diversions);
        put(script.as_bytes(), &folder.join(name), 0o755)?;
    }
    put(b"/etc/default/udrbd\n", &folder.join("conffiles"), 0o644)?;
    put(format!("{sums}\n").as_bytes(), &folder.join("md5sums"), 0o644)?;
    fs::set_permissions(folder, fs::Permissions::from_mode(0o755))?;
    Ok(())
}

/// The packages of the shared libraries the programs were linked with, at least in the version that has the newest
/// symbol they use.
fn dependencies(programs: &[Vec<u8>]) -> String {
    let newest = programs.iter().flat_map(|bytes| glibc_versions(bytes)).max();
    let (major, minor) = newest.unwrap_or((2, 34));
    let mut depends = format!("libc6 (>= {major}.{minor})");
    let needs_unwinder = |bytes: &Vec<u8>| contains(bytes, b"libgcc_s.so.1\0");
    if programs.iter().any(needs_unwinder) {
        depends.push_str(", libgcc-s1 (>= 4.2)");
    }
    depends
}

fn contains(bytes: &[u8], wanted: &[u8]) -> bool {
    bytes.windows(wanted.len()).any(|window| window == wanted)
}

/// The versions of the C library's symbols a program asks for: in its string table they stand as `GLIBC_2.34`.
fn glibc_versions(program: &[u8]) -> Vec<(u32, u32)> {
    const MARK: &[u8] = b"GLIBC_";
    let starts = program.windows(MARK.len()).enumerate().filter(|(_, window)| *window == MARK);
    starts
        .filter_map(|(start, _)| {
            let rest = &program[start + MARK.len()..];
            let text = std::str::from_utf8(rest.get(..rest.iter().position(|byte| *byte == 0)?)?).ok()?;
            let mut numbers = text.split('.');
            let version = (numbers.next()?.parse().ok()?, numbers.next()?.parse().ok()?);
            Some(version)
        })
        .collect()
}

/// The changelog as Debian's tools read it. `$SOURCE_DATE_EPOCH` makes the package reproducible.
fn changelog() -> Result<String> {
    let now = SystemTime::now().duration_since(UNIX_EPOCH)?.as_secs().to_string();
    let seconds = std::env::var("SOURCE_DATE_EPOCH").unwrap_or(now);
    let date = printed(Command::new("date").arg("-R").arg("-u").arg(format!("--date=@{seconds}")))?;
    Ok(format!(
        "{NAME} ({VERSION}) unstable; urgency=medium\n\n  * Version {VERSION}; see {HOMEPAGE}\n\n \
         -- The udrbd authors <udrbd@users.noreply.github.com>  {date}\n"
    ))
}

/// Takes out what only a debugger reads, where there is a `strip`.
fn strip(program: &Path) -> Result<()> {
    match machine::find_program("strip") {
        Some(strip) => run(Command::new(strip).arg(program)),
        None => Ok(()),
    }
}

fn put(bytes: &[u8], path: &Path, mode: u32) -> Result<()> {
    if let Some(folder) = path.parent() {
        fs::create_dir_all(folder)?;
    }
    fs::write(path, bytes).with_context(|| format!("cannot write {}", path.display()))?;
    fs::set_permissions(path, fs::Permissions::from_mode(mode))?;
    Ok(())
}

/// Regular files below a folder, in order.
fn files_below(folder: &Path) -> Result<Vec<PathBuf>> {
    let mut found = Vec::new();
    for sub in folders_below(folder)? {
        let entries = fs::read_dir(sub)?.collect::<std::io::Result<Vec<_>>>()?;
        found.extend(
            entries
                .iter()
                .map(fs::DirEntry::path)
                .filter(|path| path.symlink_metadata().is_ok_and(|about| about.is_file())),
        );
    }
    found.sort();
    Ok(found)
}

/// The folders below a folder, and itself.
fn folders_below(folder: &Path) -> Result<Vec<PathBuf>> {
    let mut found = vec![folder.to_owned()];
    for entry in fs::read_dir(folder)? {
        let entry = entry?;
        if entry.file_type()?.is_dir() {
            found.extend(folders_below(&entry.path())?);
        }
    }
    Ok(found)
}

/// Runs a program that must succeed; its standard output without the last newline.
fn printed(command: &mut Command) -> Result<String> {
    let output = command.output().with_context(|| format!("cannot run {:?}", command.get_program()))?;
    if !output.status.success() {
        bail!("{command:?} failed: {}", String::from_utf8_lossy(&output.stderr));
    }
    Ok(String::from_utf8_lossy(&output.stdout).trim_end().to_owned())
}

fn run(command: &mut Command) -> Result<()> {
    printed(command).map(drop)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_newest_symbol_decides_about_the_c_library() {
        let program = b"..\0GLIBC_2.9\0GLIBC_2.34\0GLIBC_2.17\0GLIBC_PRIVATE\0GLIBC_".to_vec();
        assert_eq!(dependencies(&[program, b"GLIBC_2.2.5\0".to_vec()]), "libc6 (>= 2.34)");
        let unwinds = b"libgcc_s.so.1\0GLIBC_2.36\0".to_vec();
        assert_eq!(dependencies(&[unwinds]), "libc6 (>= 2.36), libgcc-s1 (>= 4.2)");
    }

    /// A file of drbd-utils can only be diverted to a folder that is there when that package is unpacked.
    #[test]
    fn every_diverted_name_has_a_folder_to_go_to() {
        let source = Path::new(env!("CARGO_MANIFEST_DIR")).join("../conf/debian/diversions.sh");
        let script = fs::read_to_string(&source).unwrap();
        let names = Command::new("sh").arg("-c").arg(format!("{script}\neach_name echo")).output().unwrap();
        let names = String::from_utf8(names.stdout).unwrap();
        assert!(names.lines().any(|name| name == "/sbin/drbdadm"), "{names}");
        for name in names.lines() {
            let folder = format!("usr/lib/udrbd/diverted{}", name.rsplit_once('/').unwrap().0);
            assert!(FOLDERS.contains(&folder.as_str()), "{folder}");
        }
    }
}
