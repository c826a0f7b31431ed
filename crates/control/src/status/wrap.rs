//! Breaking lines as `drbdsetup` does (status spec 4.2).

/// Collects tokens into lines of at most `width` columns.
#[derive(Debug)]
pub struct Wrapper {
    width: usize,
    column: usize,
    text: String,
}

impl Wrapper {
    /// An empty text for a terminal of this width.
    pub const fn new(width: usize) -> Self {
        Self { width, column: 0, text: String::new() }
    }

    /// Appends a token. It goes to a new line, indented, if it does not fit. Colour codes count as characters.
    pub fn put(&mut self, indent: usize, token: &str) {
        let mut token = token;
        if self.column + token.len() > self.width {
            self.text.push('\n');
            token = token.strip_prefix('\n').unwrap_or(token);
            self.column = 0;
        }
        if self.column == 0 {
            token = token.trim_start_matches(' ');
            self.text.extend(std::iter::repeat_n(' ', indent));
            self.column = indent;
        }
        self.text.push_str(token);
        self.column += token.len();
        if token.ends_with('\n') {
            self.column = 0;
        }
    }

    /// The text.
    pub fn finish(self) -> String {
        self.text
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_token_that_does_not_fit_starts_a_line() {
        let mut wrapper = Wrapper::new(10);
        for token in ["name", " a:1", " b:22", "\n"] {
            wrapper.put(2, token);
        }
        assert_eq!(wrapper.finish(), "  name a:1\n  b:22\n");
    }
}
