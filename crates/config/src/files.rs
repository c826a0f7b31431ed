//! How the parser reads files: a trait, so that the crate itself does no input or output.

use std::io;

/// What the parser needs from a file system to follow include statements.
///
/// Paths may be relative; then `directory`, an absolute path, is what they are relative to.
pub trait Files {
    /// The paths that match the shell pattern, sorted, in the form the pattern has (relative stays relative).
    ///
    /// No match is an empty list.
    ///
    /// # Errors
    /// A directory that cannot be searched.
    fn glob(&self, directory: &str, pattern: &str) -> io::Result<Vec<String>>;

    /// The bytes of a file.
    ///
    /// # Errors
    /// Whatever keeps it from being read; a directory is an error.
    fn read(&self, directory: &str, path: &str) -> io::Result<Vec<u8>>;

    /// The path with every symbolic link resolved, or `None` if there is no such file.
    fn real_path(&self, directory: &str, path: &str) -> Option<String>;

    /// The absolute path with symbolic links resolved in the directory part only, as messages show it.
    ///
    /// # Errors
    /// The directory part does not exist.
    fn absolute_path(&self, directory: &str, path: &str) -> io::Result<String>;
}

/// A file system without files: for texts that include nothing.
#[derive(Debug, Clone, Copy, Default)]
pub struct NoFiles;

impl Files for NoFiles {
    fn glob(&self, _directory: &str, _pattern: &str) -> io::Result<Vec<String>> {
        Ok(Vec::new())
    }

    fn read(&self, _directory: &str, _path: &str) -> io::Result<Vec<u8>> {
        Err(io::ErrorKind::NotFound.into())
    }

    fn real_path(&self, _directory: &str, _path: &str) -> Option<String> {
        None
    }

    fn absolute_path(&self, directory: &str, path: &str) -> io::Result<String> {
        Ok(if path.starts_with('/') { path.to_owned() } else { format!("{directory}/{path}") })
    }
}
