//! Reading of recorded cases: what the real DRBD did, one JSON object per line.
//!
//! The files live in `tests/data/<folder>/`; a folder of the same layout named by `$UDRBD_EXTRA_VECTORS` is read as
//! well.

use std::fs;
use std::path::PathBuf;

use serde::de::DeserializeOwned;

/// A recorded case and where it came from.
pub(crate) struct Case<T> {
    /// `<file>:<line>`, for messages.
    pub(crate) origin: String,
    /// What was recorded.
    pub(crate) record: T,
}

/// Reads every case of the file `name` in `folder` ("states"), own and extra ones. Panics on a line that is no record:
/// a case that cannot be read must not pass for one that holds.
pub(crate) fn read_cases<T: DeserializeOwned>(folder: &str, name: &str) -> Vec<Case<T>> {
    let own = PathBuf::from(env!("CARGO_MANIFEST_DIR")).join("tests/data").join(folder).join(name);
    assert!(own.is_file(), "{} is missing", own.display());
    let extra =
        std::env::var_os("UDRBD_EXTRA_VECTORS").map(|root| PathBuf::from(root).join(folder).join(name));
    let mut cases = Vec::new();
    for path in [Some(own), extra.filter(|path| path.is_file())].into_iter().flatten() {
        let text = fs::read_to_string(&path).unwrap_or_else(|error| panic!("{}: {error}", path.display()));
        for (index, line) in text.lines().enumerate().filter(|(_, line)| !line.trim().is_empty()) {
            let origin = format!("{}:{}", path.display(), index + 1);
            let record = serde_json::from_str(line).unwrap_or_else(|error| panic!("{origin}: {error}"));
            cases.push(Case { origin, record });
        }
    }
    cases
}
