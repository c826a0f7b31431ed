//! The configuration as text and as XML (configuration spec 14).

mod text;
mod xml;

pub use text::{header, resource};
pub use xml::{footer as xml_footer, header as xml_header, resource as xml_resource};

use crate::model::{OptionEntry, Resource};

/// A bare value has at most this many characters.
const BARE_LENGTH_MAX: usize = 80;

/// Quotes a value if the language needs it to (DRBD's `esc`).
#[must_use]
pub fn quoted(value: &str) -> String {
    let is_bare = |byte: u8| byte.is_ascii_alphanumeric() || matches!(byte, b'/' | b'.' | b'_' | b'-');
    if !value.is_empty() && value.len() <= BARE_LENGTH_MAX && value.bytes().all(is_bare) {
        return value.to_owned();
    }
    let mut text = String::with_capacity(value.len() + 2);
    text.push('"');
    for character in value.chars() {
        if matches!(character, '"' | '\\') {
            text.push('\\');
        }
        text.push(character);
    }
    text.push('"');
    text
}

/// An option to print: its name, and its value if it has one, quoted if that is to be done.
struct Printed<'a> {
    name: &'a str,
    value: Option<&'a str>,
    /// The value is printed as it is.
    raw: bool,
}

impl<'a> Printed<'a> {
    fn list(options: &'a [OptionEntry]) -> Vec<Self> {
        options
            .iter()
            .map(|option| Self { name: &option.name, value: option.value.as_deref(), raw: false })
            .collect()
    }

    /// The startup section with the two entries that are no options of their own.
    fn startup(resource: &'a Resource, primaries: &'a str) -> Vec<Self> {
        let mut list = Self::list(&resource.startup);
        if resource.stacked_timeouts {
            list.push(Self { name: "stacked-timeouts", value: None, raw: false });
        }
        if !resource.become_primary_on.is_empty() {
            list.push(Self { name: "become-primary-on", value: Some(primaries), raw: true });
        }
        list
    }
}

#[cfg(test)]
mod tests {
    use super::quoted;

    #[test]
    fn values_are_quoted_when_the_scanner_needs_it() {
        assert_eq!(quoted("/dev/sdb1"), "/dev/sdb1");
        assert_eq!(quoted(""), "\"\"");
        assert_eq!(quoted("a b"), "\"a b\"");
        assert_eq!(quoted(r#"a"\"#), r#""a\"\\""#);
        assert_eq!(quoted(&"x".repeat(80)), "x".repeat(80));
        assert_eq!(quoted(&"x".repeat(81)), format!("\"{}\"", "x".repeat(81)));
    }
}
