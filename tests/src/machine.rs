//! What the machine must have: packages by name, installed through apt where that is possible.
//!
//! Nothing here is fatal to a test run: what is missing and cannot be installed becomes a
//! [`Skip`], which says in one line what to install and is counted as a skipped test.

use std::fmt;
use std::fs;
use std::path::{Path, PathBuf};
use std::process::{Command, Stdio};

use anyhow::{Context as _, Result, bail};

/// Why something was not run although nothing is wrong with the project.
///
/// Travels as the error of an [`anyhow::Result`]; [`skip_reason`] finds it again.
#[derive(Debug, Clone)]
pub struct Skip(pub String);

impl fmt::Display for Skip {
    fn fmt(&self, formatter: &mut fmt::Formatter<'_>) -> fmt::Result {
        formatter.write_str(&self.0)
    }
}

impl std::error::Error for Skip {}

/// An error that means "skipped: `reason`".
pub fn skip(reason: impl Into<String>) -> anyhow::Error {
    anyhow::Error::new(Skip(reason.into()))
}

/// The reason if `error` is a [`Skip`], whatever context was put around it.
pub fn skip_reason(error: &anyhow::Error) -> Option<String> {
    error.downcast_ref::<Skip>().map(|skip| skip.0.clone())
}

/// One `deb` line or stanza of the machine's own apt configuration.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Source {
    /// Where the packages come from.
    pub uri: String,
    /// Suites named in the entry.
    pub suites: Vec<String>,
    /// Components named in the entry.
    pub components: Vec<String>,
    /// Key file that signs it, if the entry names one.
    pub signed_by: Option<String>,
}

/// A field of `/etc/os-release`, without its quotes.
pub fn os_release(field: &str) -> Option<String> {
    let text = fs::read_to_string("/etc/os-release").ok()?;
    text.lines().find_map(|line| {
        let value = line.strip_prefix(field)?.strip_prefix('=')?;
        Some(value.trim_matches('"').to_owned())
    })
}

/// True for the user that may install packages.
pub fn is_root() -> bool {
    fs::metadata("/proc/self").is_ok_and(|meta| std::os::unix::fs::MetadataExt::uid(&meta) == 0)
}

/// Makes sure that all `packages` are installed.
///
/// # Errors
///
/// A [`Skip`] that names the missing packages, if this is not a machine with apt, if the user is not
/// root, or if apt cannot install them.
pub fn ensure_packages(packages: &[&str]) -> Result<()> {
    let missing: Vec<&str> = packages.iter().copied().filter(|name| !is_installed(name)).collect();
    if missing.is_empty() {
        return Ok(());
    }
    let list = missing.join(" ");
    if find_program("apt-get").is_none() {
        return Err(skip(format!("needs what Debian calls: {list} (no apt on this machine)")));
    }
    if !is_root() {
        return Err(skip(format!("needs packages; as root: apt-get install {list}")));
    }
    eprintln!("installing: {list}");
    // What is there stays as it is: apt would upgrade it.
    if install(&[], &missing) || (apt(&[], &["update", "-qq"]) && install(&[], &missing)) {
        return Ok(());
    }
    // A machine that already has some of them from backports cannot mix in the older ones.
    if let Some(options) = backports_options()?
        && apt(&options, &["update", "-qq"])
        && install(&options, packages)
    {
        return Ok(());
    }
    Err(skip(format!("apt cannot install: {list} (see the messages above)")))
}

fn is_installed(package: &str) -> bool {
    let output = Command::new("dpkg-query").args(["-W", "-f", "${db:Status-Status}", package]).output();
    output.is_ok_and(|output| output.status.success() && output.stdout == b"installed")
}

/// The full path of a program on `PATH` or in the system folders, if there is one.
pub fn find_program(name: &str) -> Option<PathBuf> {
    let path = std::env::var("PATH").unwrap_or_default();
    let system = ["/usr/local/sbin", "/usr/sbin", "/sbin", "/usr/bin", "/bin"];
    path.split(':')
        .chain(system)
        .filter(|folder| !folder.is_empty())
        .map(|folder| Path::new(folder).join(name))
        .find(|candidate| candidate.is_file())
}

fn install(options: &[String], packages: &[&str]) -> bool {
    let mut words = vec!["install", "-y", "-qq", "--no-install-recommends"];
    words.extend(packages);
    apt(options, &words)
}

/// Runs apt-get; its standard output (progress) goes to standard error so that ours stays clean.
fn apt(options: &[String], words: &[&str]) -> bool {
    let output = Command::new("apt-get")
        .args(options)
        .args(["-o", "DPkg::Lock::Timeout=900"])
        .args(words)
        .env("DEBIAN_FRONTEND", "noninteractive")
        .stdin(Stdio::null())
        .output();
    match output {
        Ok(output) if output.status.success() => true,
        Ok(output) => {
            eprintln!("{}", String::from_utf8_lossy(&output.stderr).trim_end());
            false
        }
        Err(error) => {
            eprintln!("apt-get: {error}");
            false
        }
    }
}

/// apt options that add the backports suite of this release and prefer it, or `None` if there is no
/// such suite to be derived.
fn backports_options() -> Result<Option<Vec<String>>> {
    let Some(codename) = os_release("VERSION_CODENAME") else { return Ok(None) };
    let Ok(base) = distribution_source() else { return Ok(None) };
    let backports = format!("{codename}-backports");
    let folder = cache_folder()?.join("apt-backports");
    let mut options = apt_options(&folder, &base, &[&codename, &backports])?;
    // Unlike a kernel that is only unpacked, these are installed: the machine's own archive folder will do.
    options.retain(|option| !option.starts_with("-oDir::Cache="));
    options.push(format!("-oAPT::Default-Release={backports}"));
    Ok(Some(options))
}

/// Writes a sources file of its own into `folder` and returns the options that make apt use it, its
/// package lists and its archive folder instead of the machine's.
///
/// # Errors
///
/// If the folder cannot be written.
pub fn apt_options(folder: &Path, base: &Source, suites: &[&str]) -> Result<Vec<String>> {
    for sub in ["lists/partial", "cache/archives/partial"] {
        let path = folder.join(sub);
        fs::create_dir_all(&path).with_context(|| format!("cannot create {}", path.display()))?;
    }
    let mut text =
        format!("Types: deb\nURIs: {}\nSuites: {}\nComponents: main\n", base.uri, suites.join(" "));
    if let Some(key) = &base.signed_by {
        text.push_str(&format!("Signed-By: {key}\n"));
    }
    let file = folder.join("udrbd.sources");
    fs::write(&file, text).with_context(|| format!("cannot write {}", file.display()))?;
    Ok(vec![
        format!("-oDir::Etc::sourcelist={}", file.display()),
        "-oDir::Etc::sourceparts=/dev/null".to_owned(),
        format!("-oDir::State::lists={}", folder.join("lists").display()),
        format!("-oDir::Cache={}", folder.join("cache").display()),
        // The folder may be one that apt's own unprivileged user cannot enter.
        "-oAPT::Sandbox::User=root".to_owned(),
    ])
}

/// The entry of the machine's apt configuration that holds the distribution itself.
///
/// `UDRBD_VM_MIRROR` (a URI) takes its place where it is set.
///
/// # Errors
///
/// A [`Skip`] if this is not Debian or no entry names the release's own suite.
pub fn distribution_source() -> Result<Source> {
    if let Ok(uri) = std::env::var("UDRBD_VM_MIRROR") {
        return Ok(Source { uri, suites: vec![], components: vec!["main".to_owned()], signed_by: None });
    }
    if os_release("ID").as_deref() != Some("debian") {
        return Err(skip(
            "the guest's kernel is found through a Debian machine's apt sources; elsewhere set UDRBD_VM_MIRROR",
        ));
    }
    let codename = os_release("VERSION_CODENAME").unwrap_or_default();
    let mut files = vec![PathBuf::from("/etc/apt/sources.list")];
    if let Ok(folder) = fs::read_dir("/etc/apt/sources.list.d") {
        files.extend(folder.flatten().map(|entry| entry.path()));
    }
    files.sort();
    files
        .iter()
        .filter_map(|path| Some((path, fs::read_to_string(path).ok()?)))
        .flat_map(|(path, text)| match path.extension().and_then(|ext| ext.to_str()) {
            Some("sources") => parse_stanzas(&text),
            Some("list") => parse_lines(&text),
            _ => vec![],
        })
        .find(|source| source.suites.contains(&codename) && source.components.iter().any(|c| c == "main"))
        .ok_or_else(|| skip("no apt source of this machine holds its own release; set UDRBD_VM_MIRROR"))
}

fn parse_stanzas(text: &str) -> Vec<Source> {
    let words = |stanza: &str, key: &str| -> Vec<String> {
        stanza
            .lines()
            .filter_map(|line| line.split_once(':'))
            .find(|(name, _)| name.eq_ignore_ascii_case(key))
            .map(|(_, value)| value.split_whitespace().map(str::to_owned).collect())
            .unwrap_or_default()
    };
    text.split("\n\n")
        .filter(|stanza| words(stanza, "Types").iter().any(|kind| kind == "deb"))
        .flat_map(|stanza| {
            let (suites, components) = (words(stanza, "Suites"), words(stanza, "Components"));
            let signed_by = words(stanza, "Signed-By").first().cloned();
            words(stanza, "URIs")
                .into_iter()
                .map(move |uri| Source {
                    uri,
                    suites: suites.clone(),
                    components: components.clone(),
                    signed_by: signed_by.clone(),
                })
                .collect::<Vec<_>>()
        })
        .collect()
}

fn parse_lines(text: &str) -> Vec<Source> {
    let mut sources = Vec::new();
    for line in text.lines() {
        let Some(rest) = line.trim().strip_prefix("deb ") else { continue };
        let rest = rest.trim_start();
        let (options, rest) = match rest.strip_prefix('[').and_then(|inner| inner.split_once(']')) {
            Some((options, rest)) => (options, rest),
            None => ("", rest),
        };
        let mut words = rest.split_whitespace().map(str::to_owned);
        let (Some(uri), Some(suite)) = (words.next(), words.next()) else { continue };
        let signed_by = options
            .split_whitespace()
            .find_map(|option| option.strip_prefix("signed-by="))
            .map(str::to_owned);
        sources.push(Source { uri, suites: vec![suite], components: words.collect(), signed_by });
    }
    sources
}

/// The folder where downloads are kept between runs: `$UDRBD_VM_CACHE`, else `udrbd` in the user's cache folder.
///
/// # Errors
///
/// If it cannot be created, or neither of `UDRBD_VM_CACHE`, `XDG_CACHE_HOME`, `HOME` is set.
pub fn cache_folder() -> Result<PathBuf> {
    let variable = |name: &str| std::env::var_os(name).filter(|value| !value.is_empty()).map(PathBuf::from);
    let folder = if let Some(folder) = variable("UDRBD_VM_CACHE") {
        folder
    } else if let Some(folder) = variable("XDG_CACHE_HOME") {
        folder.join("udrbd")
    } else if let Some(home) = variable("HOME") {
        home.join(".cache/udrbd")
    } else {
        bail!("no cache folder: set UDRBD_VM_CACHE");
    };
    fs::create_dir_all(&folder).with_context(|| format!("cannot create {}", folder.display()))?;
    Ok(fs::canonicalize(folder)?)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn stanza_sources_carry_their_key_and_every_uri() {
        let text = "Types: deb deb-src\nURIs: http://a/debian http://b/debian\nSuites: one one-updates\n\
                    Components: main contrib\nSigned-By: /k.gpg\n\nTypes: deb-src\nURIs: http://c\nSuites: one\n";
        let sources = parse_stanzas(text);
        assert_eq!(sources.len(), 2);
        assert_eq!(sources[1].uri, "http://b/debian");
        assert_eq!(sources[1].suites, ["one", "one-updates"]);
        assert_eq!(sources[1].signed_by.as_deref(), Some("/k.gpg"));
    }

    #[test]
    fn one_line_sources_skip_their_options_and_comments() {
        let text = "# deb http://no one main\ndeb [arch=amd64 signed-by=/k.gpg] http://a one main extra\ndeb-src http://a one main\n";
        let sources = parse_lines(text);
        assert_eq!(sources.len(), 1);
        assert_eq!(sources[0].uri, "http://a");
        assert_eq!(sources[0].components, ["main", "extra"]);
        assert_eq!(sources[0].signed_by.as_deref(), Some("/k.gpg"));
    }

    #[test]
    fn a_skip_is_found_under_its_context() {
        let error = skip("no such package").context("while preparing");
        assert_eq!(skip_reason(&error).as_deref(), Some("no such package"));
        assert_eq!(skip_reason(&anyhow::anyhow!("broken")), None);
    }
}
