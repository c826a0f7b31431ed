//! The parser: files to a [`Configuration`], with DRBD's messages (configuration spec 3 and 4).

mod host;
mod options;
mod resource;
mod volume;

pub(crate) use host::is_loopback;
pub(crate) use resource::compare_volume_sets;

use std::collections::HashSet;

use crate::diagnostics::{Diagnostics, Stop};
use crate::files::{Files, NoFiles};
use crate::lexer::{Lexer, Token};
use crate::model::{Configuration, Resource, UsageCount};
use crate::number::{Unit, leading_digits, parse_number};
use crate::token::{Keyword, TokenKind};

/// At most this much of a disappointing token is shown.
const SHOWN_TEXT_MAX: usize = 20;

/// A file to parse.
#[derive(Debug, Clone)]
pub struct Source {
    /// The name as given; messages show it.
    pub name: String,
    /// The absolute path; includes are relative to its directory.
    pub absolute: String,
    /// The directory that `name` is relative to.
    pub directory: String,
    /// The bytes.
    pub text: Vec<u8>,
}

/// Reads configuration files, one after the other, into one configuration.
pub struct Loader<'f> {
    parser: Parser<'f>,
}

impl std::fmt::Debug for Loader<'_> {
    fn fmt(&self, formatter: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        formatter.debug_struct("Loader").field("configuration", &self.parser.configuration).finish()
    }
}

impl<'f> Loader<'f> {
    /// Starts with an empty configuration.
    #[must_use]
    pub fn new(files: &'f dyn Files) -> Self {
        Self { parser: Parser::new(files) }
    }

    /// Parses a file and what it includes, and adds it all.
    ///
    /// # Errors
    /// A fault that ends parsing at once. Faults that do not are in the diagnostics.
    pub fn load(&mut self, source: Source) -> Result<(), Stop> {
        let parser = &mut self.parser;
        // DRBD counts the lines of a second file on from the first.
        parser.lexer = Lexer::starting_at(source.text, parser.diagnostics.line);
        parser.absolute = source.absolute;
        parser.diagnostics.file.clone_from(&source.name);
        let real = parser.files.real_path(&source.directory, &source.name).unwrap_or(source.name);
        parser.seen.insert(real);
        parser.parse_file()
    }

    /// The configuration, and what was found wrong with it.
    #[must_use]
    pub fn finish(self) -> (Configuration, Diagnostics) {
        (self.parser.configuration, self.parser.diagnostics)
    }
}

/// Parses what `drbdsetup show RESOURCE` prints, for comparison with a configuration.
///
/// `None` means that it does not begin with a resource: nothing runs. `source_name` is for messages.
///
/// # Errors
/// The text begins with a resource but does not go on as one; the diagnostics say how.
pub fn parse_shown_resource(
    resource_name: &str,
    source_name: &str,
    text: &[u8],
) -> (Result<Option<Resource>, Stop>, Diagnostics) {
    let mut parser = Parser::new(&NoFiles);
    parser.lexer = Lexer::new(text.to_vec());
    source_name.clone_into(&mut parser.diagnostics.file);
    parser.diagnostics.lenient = true;
    let expected = [
        |kind: TokenKind| kind == TokenKind::Keyword(Keyword::Resource),
        |kind: TokenKind| kind == TokenKind::Word,
        |kind: TokenKind| kind == TokenKind::Punctuation(b'{'),
    ];
    for is_expected in expected {
        if !is_expected(parser.advance()) {
            return (Ok(None), parser.diagnostics);
        }
    }
    let resource = parser.resource(resource_name.to_owned(), resource::Context::Shown);
    (resource.map(Some), parser.diagnostics)
}

/// Parses what `drbd-proxy-ctl -c "show proxy-settings NAME"` prints, into a resource that holds nothing else.
///
/// `None` means that it does not begin with a proxy section.
///
/// # Errors
/// The text is broken; the diagnostics say how.
pub fn parse_proxy_settings(source_name: &str, text: &[u8]) -> (Result<Option<Resource>, Stop>, Diagnostics) {
    let mut parser = Parser::new(&NoFiles);
    parser.lexer = Lexer::new(text.to_vec());
    source_name.clone_into(&mut parser.diagnostics.file);
    parser.diagnostics.lenient = true;
    if parser.advance() != TokenKind::Keyword(Keyword::Proxy) {
        return (Ok(None), parser.diagnostics);
    }
    let settings = parser
        .proxy_options()
        .map(|(proxy, proxy_plugins)| Some(Resource { proxy, proxy_plugins, ..Resource::default() }));
    (settings, parser.diagnostics)
}

/// The state of a parse.
struct Parser<'f> {
    files: &'f dyn Files,
    lexer: Lexer,
    /// The last token read.
    token: Token,
    /// The absolute path of the current file.
    absolute: String,
    configuration: Configuration,
    diagnostics: Diagnostics,
    /// The real paths of the files read so far: none is read twice.
    seen: HashSet<String>,
}

impl<'f> Parser<'f> {
    fn new(files: &'f dyn Files) -> Self {
        let mut diagnostics = Diagnostics::new();
        diagnostics.line = 1;
        Self {
            files,
            lexer: Lexer::new(Vec::new()),
            token: Token { kind: TokenKind::EndOfFile, text: String::new() },
            absolute: String::new(),
            configuration: Configuration::default(),
            diagnostics,
            seen: HashSet::new(),
        }
    }

    /// Reads the next token and returns its kind.
    fn advance(&mut self) -> TokenKind {
        self.token = self.lexer.next_token();
        self.diagnostics.line = self.lexer.line();
        self.token.kind
    }

    /// The next messages are about the line of the current token.
    fn mark_statement(&mut self) {
        self.diagnostics.statement_line = self.diagnostics.line;
    }

    /// The next section messages are about the line of the current token.
    fn mark_section(&mut self) {
        self.diagnostics.section_line = self.diagnostics.line;
        self.mark_statement();
    }

    /// `FILE:LINE` of the current token.
    fn token_location(&self) -> String {
        format!("{}:{}", self.diagnostics.file, self.diagnostics.line)
    }

    /// The beginning of the current token's text.
    fn shown_text(&self) -> String {
        let bytes = self.token.text.as_bytes();
        if bytes.len() > SHOWN_TEXT_MAX {
            format!("{}...", String::from_utf8_lossy(&bytes[..SHOWN_TEXT_MAX]))
        } else {
            self.token.text.clone()
        }
    }

    /// Ends the parse: something else was expected here.
    fn expected<T>(&mut self, what: &str) -> Result<T, Stop> {
        let location = self.token_location();
        let text = self.shown_text();
        let message = format!("{location}: Parse error: '{what}' expected,\n\tbut got '{text}'\n");
        Err(self.diagnostics.stop(message))
    }

    /// The same, with the number of the token.
    fn expected_token<T>(&mut self, what: &str) -> Result<T, Stop> {
        let location = self.token_location();
        let text = self.shown_text();
        let number = self.token.kind.number();
        let message =
            format!("{location}: Parse error: '{what}' expected,\n\tbut got '{text}' (TK {number})\n");
        Err(self.diagnostics.stop(message))
    }

    /// Ends the parse if the current token is a broken word.
    fn refuse_broken_word(&mut self) -> Result<(), Stop> {
        let what = match self.token.kind {
            TokenKind::WordTooLong => "Token too long",
            TokenKind::QuotedTooLong => "Double quoted string too long",
            TokenKind::QuotedUnterminated => {
                "Unterminated double quoted string\n  we don't allow embedded newlines\n "
            }
            _ => return Ok(()),
        };
        let bytes = self.token.text.as_bytes();
        let shown = String::from_utf8_lossy(&bytes[..bytes.len().min(SHOWN_TEXT_MAX)]).into_owned();
        let location = self.token_location();
        Err(self.diagnostics.stop(format!("{location}: {what} >>>{shown}...<<<\n")))
    }

    /// The next token must be this punctuation character.
    fn expect_punctuation(&mut self, character: u8) -> Result<(), Stop> {
        if self.advance() == TokenKind::Punctuation(character) {
            return Ok(());
        }
        self.expected_token(&char::from(character).to_string())
    }

    /// The next token must be a word; its text.
    fn expect_word(&mut self) -> Result<String, Stop> {
        if self.advance() == TokenKind::Word {
            return Ok(self.token.text.clone());
        }
        self.refuse_broken_word()?;
        self.expected_token("TK_STRING")
    }

    /// The next token must be an integer; its text.
    fn expect_integer(&mut self) -> Result<String, Stop> {
        if self.advance() == TokenKind::Integer {
            return Ok(self.token.text.clone());
        }
        self.expected_token("TK_INTEGER")
    }

    /// The next token must be this keyword; `name` is what DRBD calls it.
    fn expect_keyword(&mut self, keyword: Keyword, name: &str) -> Result<(), Stop> {
        if self.advance() == TokenKind::Keyword(keyword) {
            return Ok(());
        }
        self.expected_token(name)
    }

    /// Checks a number against a range that belongs to no option table.
    fn check_number(&mut self, name: &str, text: &str, minimum: u64, maximum: u64) -> Result<(), Stop> {
        let value = match parse_number(text, Unit::One) {
            Ok(value) => value,
            Err(error) => return Err(self.diagnostics.stop_number(&error)),
        };
        if !(minimum..=maximum).contains(&value) {
            let message = format!("{name} {text} => {value} out of range [{minimum}..{maximum}].");
            self.range_fault(&message);
        }
        Ok(())
    }

    /// Reports a number out of range; of running settings that is only worth a message.
    fn range_fault(&mut self, text: &str) {
        let message = format!("{}: {text}\n", self.diagnostics.location());
        if self.diagnostics.lenient {
            self.diagnostics.warn(message);
        } else {
            self.diagnostics.fault(message);
        }
    }

    /// A file: sections up to its end.
    fn parse_file(&mut self) -> Result<(), Stop> {
        loop {
            let kind = self.advance();
            self.mark_statement();
            match kind {
                TokenKind::EndOfFile => return Ok(()),
                TokenKind::Keyword(Keyword::Global) => self.global()?,
                TokenKind::Keyword(Keyword::Common) => {
                    self.expect_punctuation(b'{')?;
                    let common = self.resource("common".to_owned(), resource::Context::Common)?;
                    self.configuration.common = Some(common);
                }
                TokenKind::Keyword(Keyword::Resource) => {
                    let name = self.expect_word()?;
                    if let Some(fault) = resource_name_fault(&name) {
                        self.diagnostics.fault(format!("{fault}\n"));
                        return Err(Stop { status: crate::exit_status::USAGE });
                    }
                    self.expect_punctuation(b'{')?;
                    let resource = self.resource(name, resource::Context::File)?;
                    self.configuration.resources.push(resource);
                }
                TokenKind::Keyword(Keyword::Skip) => self.skip()?,
                TokenKind::Keyword(Keyword::Include) => {
                    let pattern = self.expect_word()?;
                    self.expect_punctuation(b';')?;
                    self.include(&pattern)?;
                }
                _ => return self.expected("global | common | resource | skip | include"),
            }
        }
    }

    /// `global { }`, its word already read (configuration spec 6).
    fn global(&mut self) -> Result<(), Stop> {
        self.mark_statement();
        self.diagnostics.unique("global section", "global".to_owned())?;
        if !self.configuration.resources.is_empty() {
            let location = self.token_location();
            self.diagnostics.warn(format!(
                "{location}: You should put the global {{}} section\n\tin front of any resource {{}} section\n"
            ));
        }
        self.expect_punctuation(b'{')?;
        loop {
            let kind = self.advance();
            self.mark_statement();
            let TokenKind::Keyword(keyword) = kind else {
                if kind == TokenKind::Punctuation(b'}') {
                    return Ok(());
                }
                return self.expected("dialog-refresh | minor-count | disable-ip-verification");
            };
            self.global_statement(keyword)?;
            self.expect_punctuation(b';')?;
        }
    }

    fn global_statement(&mut self, keyword: Keyword) -> Result<(), Stop> {
        match keyword {
            Keyword::UdevAlwaysUseVnr => self.configuration.global.udev_always_use_vnr = true,
            Keyword::DisableIpVerification => self.configuration.global.disable_ip_verification = true,
            Keyword::MinorCount => {
                self.configuration.global.minor_count = self.global_number("minor-count", 1, 255)?;
            }
            Keyword::DialogRefresh => {
                self.configuration.global.dialog_refresh = self.global_number("dialog-refresh", 0, 600)?;
            }
            Keyword::CommandTimeoutShort => {
                self.configuration.global.command_timeout_short =
                    self.global_number("cmd-timeout-short", 0, 900)?;
            }
            Keyword::CommandTimeoutMedium => {
                self.configuration.global.command_timeout_medium =
                    self.global_number("cmd-timeout-medium", 0, 900)?;
            }
            Keyword::CommandTimeoutLong => {
                self.configuration.global.command_timeout_long =
                    self.global_number("cmd-timeout-long", 0, 900)?;
            }
            Keyword::UsageCount => {
                self.configuration.global.usage_count = match self.advance() {
                    TokenKind::Keyword(Keyword::Yes) => UsageCount::Yes,
                    TokenKind::Keyword(Keyword::No) => UsageCount::No,
                    TokenKind::Keyword(Keyword::Ask) => UsageCount::Ask,
                    _ => return self.expected("yes | no | ask"),
                };
            }
            _ => return self.expected("dialog-refresh | minor-count | disable-ip-verification"),
        }
        Ok(())
    }

    fn global_number(&mut self, name: &str, minimum: u64, maximum: u64) -> Result<u32, Stop> {
        let text = self.expect_integer()?;
        self.check_number(name, &text, minimum, maximum)?;
        Ok(leading_digits(&text))
    }

    /// `skip { }`, its word already read: anything with balanced braces.
    fn skip(&mut self) -> Result<(), Stop> {
        self.mark_statement();
        match self.advance() {
            TokenKind::Word => self.expect_punctuation(b'{')?,
            TokenKind::Punctuation(b'{') => {}
            _ => {
                self.refuse_broken_word()?;
                return self.expected("[ some_text ] {");
            }
        }
        let mut depth = 1_u64;
        while depth > 0 {
            match self.advance() {
                TokenKind::Punctuation(b'{') => depth += 1,
                TokenKind::Punctuation(b'}') => depth -= 1,
                TokenKind::EndOfFile => {
                    let location = self.diagnostics.location();
                    let message = format!("{location}: reached eof while parsing this skip block.\n");
                    return Err(self.diagnostics.stop(message));
                }
                _ => {}
            }
        }
        Ok(())
    }

    /// Reads the files a pattern names, each at most once (configuration spec 4).
    fn include(&mut self, pattern: &str) -> Result<(), Stop> {
        let directory = match self.absolute.rsplit_once('/') {
            Some(("", _)) => "/".to_owned(),
            Some((directory, _)) => directory.to_owned(),
            None => ".".to_owned(),
        };
        let Ok(paths) = self.files.glob(&directory, pattern) else { return self.include_fault(pattern) };
        if paths.is_empty() && !pattern.contains(['?', '*', '[']) {
            return self.include_fault(pattern);
        }
        for path in paths {
            let real = self.files.real_path(&directory, &path).unwrap_or_else(|| path.clone());
            if self.seen.contains(&real) {
                continue;
            }
            let opened = self.files.read(&directory, &path).and_then(|text| {
                let absolute = self.files.absolute_path(&directory, &path)?;
                Ok((text, absolute))
            });
            self.seen.insert(real);
            match opened {
                Ok((text, absolute)) => self.included_file(path, absolute, text)?,
                Err(_) => self.include_fault(&path)?,
            }
        }
        Ok(())
    }

    #[expect(clippy::unnecessary_wraps, reason = "so that callers can return it")]
    fn include_fault(&mut self, name: &str) -> Result<(), Stop> {
        let location = self.token_location();
        self.diagnostics.fault(format!("{location}: Failed to open include file '{name}'.\n"));
        Ok(())
    }

    fn included_file(&mut self, name: String, absolute: String, text: Vec<u8>) -> Result<(), Stop> {
        let outer_lexer = std::mem::replace(&mut self.lexer, Lexer::new(text));
        let outer_absolute = std::mem::replace(&mut self.absolute, absolute);
        let outer_file = std::mem::replace(&mut self.diagnostics.file, name);
        let outer_line = std::mem::replace(&mut self.diagnostics.line, 1);
        self.parse_file()?;
        self.lexer = outer_lexer;
        self.absolute = outer_absolute;
        self.diagnostics.file = outer_file;
        self.diagnostics.line = outer_line;
        Ok(())
    }
}

/// What is wrong with a resource name, in DRBD's words.
#[must_use]
pub fn resource_name_fault(name: &str) -> Option<&'static str> {
    if name.is_empty() {
        return Some("Resource name is empty.");
    }
    let control = name.bytes().any(|byte| byte < b' ' || byte == 0x7f);
    control.then_some("Resource name is invalid - please don't use control characters.")
}
