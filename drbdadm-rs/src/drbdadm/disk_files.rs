//! The file system, with shell patterns.

use std::fs;
use std::io;
use std::path::Path;

use udrbd_config::Files;

/// The file system of this machine.
#[derive(Debug, Clone, Copy, Default)]
pub struct DiskFiles;

impl Files for DiskFiles {
    fn glob(&self, directory: &str, pattern: &str) -> io::Result<Vec<String>> {
        let (root, rest) = match pattern.strip_prefix('/') {
            Some(rest) => ("/", rest),
            None => ("", pattern),
        };
        let mut found = vec![root.to_owned()];
        for component in rest.split('/').filter(|component| !component.is_empty()) {
            found = found.iter().flat_map(|parent| children(directory, parent, component)).collect();
        }
        found.retain(|path| !path.is_empty() && path != "/");
        found.sort();
        Ok(found)
    }

    fn read(&self, directory: &str, path: &str) -> io::Result<Vec<u8>> {
        fs::read(Path::new(directory).join(path))
    }

    fn real_path(&self, directory: &str, path: &str) -> Option<String> {
        let real = fs::canonicalize(Path::new(directory).join(path)).ok()?;
        Some(real.to_string_lossy().into_owned())
    }

    fn absolute_path(&self, directory: &str, path: &str) -> io::Result<String> {
        let (parent, name) = path.rsplit_once('/').unwrap_or((".", path));
        let parent = if parent.is_empty() { "/" } else { parent };
        let real = fs::canonicalize(Path::new(directory).join(parent))?;
        let real = real.to_string_lossy();
        Ok(if real == "/" { format!("/{name}") } else { format!("{real}/{name}") })
    }
}

/// The entries of a directory that match one component of a pattern.
fn children(directory: &str, parent: &str, component: &str) -> Vec<String> {
    let path = |name: &str| match parent {
        "" | "/" => format!("{parent}{name}"),
        _ => format!("{parent}/{name}"),
    };
    let full = |path: &str| Path::new(directory).join(path);
    if !component.contains(['*', '?', '[', '\\']) {
        let literal = path(component);
        let exists = fs::symlink_metadata(full(&literal)).is_ok();
        return if exists { vec![literal] } else { Vec::new() };
    }
    let Ok(entries) = fs::read_dir(full(parent)) else { return Vec::new() };
    entries
        .flatten()
        .filter_map(|entry| entry.file_name().into_string().ok())
        // A hidden file is matched by a pattern that begins with a dot only.
        .filter(|name| component.starts_with('.') || !name.starts_with('.'))
        .filter(|name| matches_pattern(component, name))
        .map(|name| path(&name))
        .collect()
}

/// Whether a text matches a shell pattern with `*`, `?`, `[...]` and backslashes.
#[must_use]
pub fn matches_pattern(pattern: &str, text: &str) -> bool {
    let pattern: Vec<char> = pattern.chars().collect();
    let text: Vec<char> = text.chars().collect();
    // Where to go on after the last `*`, if what follows it does not match here.
    let mut retry: Option<(usize, usize)> = None;
    let (mut at, mut position) = (0, 0);
    while position < text.len() {
        if pattern.get(at) == Some(&'*') {
            retry = Some((at + 1, position));
            at += 1;
            continue;
        }
        if let Some(length) = matches_one(&pattern[at..], text[position]) {
            at += length;
            position += 1;
            continue;
        }
        let Some((after, from)) = retry else { return false };
        retry = Some((after, from + 1));
        (at, position) = (after, from + 1);
    }
    pattern[at..].iter().all(|character| *character == '*')
}

/// How much of a pattern one character matches; `None` if it does not match.
fn matches_one(pattern: &[char], character: char) -> Option<usize> {
    match pattern {
        ['?', ..] => Some(1),
        ['\\', escaped, ..] => (*escaped == character).then_some(2),
        ['[', rest @ ..] => match matches_set(rest, character) {
            Some((true, length)) => Some(length + 1),
            Some((false, _)) => None,
            // Without its closing bracket a bracket is just that.
            None => (character == '[').then_some(1),
        },
        [literal, ..] => (*literal == character).then_some(1),
        [] => None,
    }
}

/// Whether a character is in the set behind an opening bracket, and the length of the set with its closing one.
fn matches_set(set: &[char], character: char) -> Option<(bool, usize)> {
    let negated = matches!(set.first(), Some('!' | '^'));
    let start = usize::from(negated);
    let mut found = false;
    let mut at = start;
    loop {
        match (set.get(at)?, set.get(at + 1), set.get(at + 2)) {
            (']', _, _) if at > start => return Some((found != negated, at + 1)),
            (low, Some('-'), Some(high)) if *high != ']' => {
                found |= (*low..=*high).contains(&character);
                at += 3;
            }
            (single, _, _) => {
                found |= *single == character;
                at += 1;
            }
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn patterns_match_as_in_a_shell() {
        for (pattern, text, expected) in [
            ("*.res", "r0.res", true),
            ("*.res", "r0.conf", false),
            ("r?.res", "r0.res", true),
            ("[a-c]*", "b.res", true),
            ("[!a-c]*", "b.res", false),
            ("a*b*c", "aXbYbZc", true),
            ("a*b*c", "aXbYbZ", false),
            ("\\*", "*", true),
            ("[x", "[x", true),
            ("", "", true),
            ("*", "", true),
        ] {
            assert_eq!(matches_pattern(pattern, text), expected, "{pattern} {text}");
        }
    }

    #[test]
    fn globs_are_sorted_and_keep_the_form_of_the_pattern() {
        let folder = tempfile::tempdir().unwrap();
        let directory = folder.path().to_str().unwrap();
        fs::create_dir(folder.path().join("drbd.d")).unwrap();
        for name in ["b.res", "a.res", ".hidden.res", "c.conf"] {
            fs::write(folder.path().join("drbd.d").join(name), "").unwrap();
        }
        let glob = |pattern: &str| DiskFiles.glob(directory, pattern).unwrap();
        assert_eq!(glob("drbd.d/*.res"), ["drbd.d/a.res", "drbd.d/b.res"]);
        assert_eq!(glob("drbd.d/c.conf"), ["drbd.d/c.conf"]);
        assert!(glob("drbd.d/missing").is_empty());
        assert_eq!(glob(&format!("{directory}/*/b.res")), [format!("{directory}/drbd.d/b.res")]);
    }

    #[test]
    fn absolute_paths_keep_the_last_component() {
        let folder = tempfile::tempdir().unwrap();
        let real = fs::canonicalize(folder.path()).unwrap();
        let directory = real.to_str().unwrap();
        fs::create_dir(real.join("sub")).unwrap();
        fs::write(real.join("sub/x.conf"), "").unwrap();
        std::os::unix::fs::symlink("sub", real.join("link")).unwrap();
        std::os::unix::fs::symlink("x.conf", real.join("sub/y.conf")).unwrap();
        let absolute = DiskFiles.absolute_path(directory, "link/y.conf").unwrap();
        assert_eq!(absolute, format!("{directory}/sub/y.conf"));
        assert_eq!(DiskFiles.absolute_path(directory, "/x.conf").unwrap(), "/x.conf");
    }
}
