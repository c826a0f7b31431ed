//! Option sections (configuration spec 8 and 9).

use super::Parser;
use crate::diagnostics::Stop;
use crate::model::{OptionEntry, Resource};
use crate::number::parse_number;
use crate::options::{ATTACH_ONLY_OPTIONS, OptionDefinition, OptionKind, OptionSet, ValueError};
use crate::token::{Keyword, OptionForm, OptionWord, Section, TokenKind};

/// What a section made of its next word.
enum Item {
    /// An option, or several.
    Statement,
    /// A word with a syntax of its own; the caller parses it, semicolon included.
    Special,
    /// The closing brace.
    End,
}

impl Parser<'_> {
    /// `disk { }` after its brace.
    pub(super) fn disk_options(&mut self) -> Result<Vec<OptionEntry>, Stop> {
        self.plain_options(Section::Disk)
    }

    /// `options { }` after its brace.
    pub(super) fn resource_options(&mut self) -> Result<Vec<OptionEntry>, Stop> {
        self.plain_options(Section::Resource)
    }

    /// `handlers { }` after its brace.
    pub(super) fn handlers(&mut self) -> Result<Vec<OptionEntry>, Stop> {
        self.plain_options(Section::Handlers)
    }

    /// `net { }` after its brace. `discard-my-data` may stand in running settings only, and means nothing.
    pub(super) fn net_options(&mut self, shown: bool) -> Result<Vec<OptionEntry>, Stop> {
        let mut options = Vec::new();
        self.mark_section();
        loop {
            match self.option_item(Section::Net, shown, &mut options)? {
                Item::Statement => {}
                Item::End => return Ok(options),
                Item::Special => match self.advance() {
                    TokenKind::Keyword(Keyword::Yes | Keyword::No) => self.expect_punctuation(b';')?,
                    TokenKind::Punctuation(b';') => {}
                    _ => return self.expected("yes | no | ;"),
                },
            }
        }
    }

    /// `startup { }` after its brace.
    pub(super) fn startup_options(&mut self, resource: &mut Resource) -> Result<(), Stop> {
        let mut options = Vec::new();
        self.mark_section();
        loop {
            match self.option_item(Section::Startup, true, &mut options)? {
                Item::Statement => {}
                Item::End => break,
                Item::Special if self.token.text == "become-primary-on" => {
                    resource.become_primary_on = self.names(b';')?;
                }
                Item::Special => {
                    resource.stacked_timeouts = true;
                    self.expect_punctuation(b';')?;
                }
            }
        }
        resource.startup = options;
        Ok(())
    }

    /// `{ }` of a proxy section with its brace: options, and plugins as lines of words.
    pub(super) fn proxy_options(&mut self) -> Result<(Vec<OptionEntry>, Vec<OptionEntry>), Stop> {
        self.expect_punctuation(b'{')?;
        let mut options = Vec::new();
        let mut plugins = Vec::new();
        self.mark_section();
        loop {
            match self.option_item(Section::Proxy, true, &mut options)? {
                Item::Statement => {}
                Item::End => return Ok((options, plugins)),
                Item::Special => plugins = self.proxy_plugins()?,
            }
        }
    }

    fn plain_options(&mut self, section: Section) -> Result<Vec<OptionEntry>, Stop> {
        let mut options = Vec::new();
        self.mark_section();
        while !matches!(self.option_item(section, false, &mut options)?, Item::End) {}
        Ok(options)
    }

    /// One statement of an option section, semicolon included.
    fn option_item(
        &mut self,
        section: Section,
        allows_special: bool,
        options: &mut Vec<OptionEntry>,
    ) -> Result<Item, Stop> {
        let kind = self.advance();
        self.mark_statement();
        let name = self.token.text.clone();
        match kind {
            TokenKind::EndOfFile => return self.expected("an option"),
            TokenKind::Punctuation(b'}') => return Ok(Item::End),
            TokenKind::Option(word) if fits(word, section) => match word.form {
                OptionForm::Flag if section != Section::Proxy => {
                    let value = match self.advance() {
                        TokenKind::Keyword(Keyword::Yes) => "yes",
                        TokenKind::Keyword(Keyword::No) => "no",
                        TokenKind::Punctuation(b';') => {
                            options.push(OptionEntry::new(name, "yes"));
                            return Ok(Item::Statement);
                        }
                        _ => return self.expected("yes | no | ;"),
                    };
                    options.push(OptionEntry::new(name, value));
                }
                OptionForm::NoFlag => options.push(OptionEntry::new(without_no(&name), "no")),
                OptionForm::Special if allows_special => return Ok(Item::Special),
                OptionForm::Special => return self.expected("an option keyword"),
                OptionForm::Dropped => {
                    self.expect_value()?;
                }
                OptionForm::Flag | OptionForm::Value => {
                    let new_name =
                        if section == Section::Proxy { name.as_str() } else { current_name(&name) };
                    let option = self.option_value(new_name.to_owned())?;
                    options.push(option);
                }
            },
            _ => return self.expected("an option keyword"),
        }
        self.expect_punctuation(b';')?;
        Ok(Item::Statement)
    }

    /// The value of an option, checked.
    fn option_value(&mut self, name: String) -> Result<OptionEntry, Stop> {
        let mut value = self.expect_value()?;
        self.check_value(&name, &mut value)?;
        Ok(OptionEntry { name, value: Some(value) })
    }

    /// The next token must be a value; its text.
    fn expect_value(&mut self) -> Result<String, Stop> {
        match self.advance() {
            TokenKind::Integer | TokenKind::Word | TokenKind::Keyword(Keyword::On) => {
                Ok(self.token.text.clone())
            }
            _ => {
                self.refuse_broken_word()?;
                self.expected_token("TK_STRING | TK_INTEGER")
            }
        }
    }

    /// The range check of those options that DRBD checks while parsing. A protocol becomes upper case.
    pub(super) fn check_value(&mut self, name: &str, value: &mut String) -> Result<(), Stop> {
        let Some(definition) = checked_definition(name) else { return Ok(()) };
        if matches!(definition.kind, OptionKind::Choice { .. }) {
            let upper = value.to_ascii_uppercase();
            if matches!(upper.as_str(), "A" | "B" | "C") {
                *value = upper;
            } else if !self.diagnostics.lenient {
                let message = format!("unknown protocol '{value}', should be one of A,B,C\n");
                self.diagnostics.fault(message);
            }
            return Ok(());
        }
        let OptionKind::Number { unit, .. } = definition.kind else { return Ok(()) };
        let number = match parse_number(value, unit) {
            Ok(number) => number,
            Err(error) => return Err(self.diagnostics.stop_number(&error)),
        };
        if let Err(error @ ValueError::Range { .. }) = definition.check_range(value, number) {
            self.range_fault(&error.to_string());
        }
        Ok(())
    }

    /// `syncer { }` after its brace: 8.3's section, whose options go to the sections they belong to today.
    pub(super) fn syncer(&mut self, resource: &mut Resource) -> Result<(), Stop> {
        self.mark_section();
        loop {
            let kind = self.advance();
            self.mark_statement();
            if kind == TokenKind::Punctuation(b'}') {
                return Ok(());
            }
            let TokenKind::Option(word) = kind else { return self.expected("a syncer option keyword") };
            if !word.in_syncer {
                return self.expected("a syncer option keyword");
            }
            let name = self.token.text.clone();
            let option = if word.form == OptionForm::Flag {
                let value = match self.advance() {
                    TokenKind::Keyword(Keyword::No) => "no",
                    TokenKind::Keyword(Keyword::Yes) => "yes",
                    _ => "",
                };
                if !value.is_empty() {
                    self.advance();
                }
                OptionEntry::new(name, if value.is_empty() { "yes" } else { value })
            } else {
                let option = self.option_value(current_name(&name).to_owned())?;
                self.advance();
                option
            };
            match word.section {
                Section::Net => resource.net.push(option),
                Section::Resource => resource.options.push(option),
                _ => resource.disk.push(option),
            }
            if self.token.kind != TokenKind::Punctuation(b';') {
                return self.expected(";");
            }
        }
    }

    /// `plugin { }`, its word already read: statements of any words.
    fn proxy_plugins(&mut self) -> Result<Vec<OptionEntry>, Stop> {
        if self.advance() != TokenKind::Punctuation(b'{') {
            let location = self.diagnostics.location();
            return Err(self
                .diagnostics
                .stop(format!("{location}: expected \"{{\" after \"proxy\" keyword\n")));
        }
        let mut plugins = Vec::new();
        let mut words: Vec<String> = Vec::new();
        loop {
            match self.advance() {
                TokenKind::EndOfFile => {
                    let location = self.diagnostics.location();
                    return Err(self.diagnostics.stop(format!("{location}: Unexpected end-of-file\n")));
                }
                TokenKind::Punctuation(b';') => {
                    plugins.push(OptionEntry { name: crate::model::joined_names(&words), value: None });
                    words.clear();
                }
                TokenKind::Punctuation(b'}') if words.is_empty() => return Ok(plugins),
                TokenKind::Punctuation(b'}') => {
                    let location = self.diagnostics.location();
                    return Err(self.diagnostics.stop(format!("{location}: Missing \";\" before  \"}}\"\n")));
                }
                _ => words.push(self.token.text.clone()),
            }
        }
    }
}

/// Whether an option word may stand in a section.
///
/// DRBD's marks of the words usable in `syncer` and in `proxy` overlap, so a proxy section takes both kinds.
fn fits(word: OptionWord, section: Section) -> bool {
    if word.form == OptionForm::Dropped {
        return true;
    }
    if section == Section::Proxy && (word.in_proxy || word.in_syncer) {
        return true;
    }
    word.section == section && (section != Section::Proxy || word.form == OptionForm::Special)
}

/// The name today of an option with an old name.
fn current_name(name: &str) -> &str {
    match name {
        "rate" => "resync-rate",
        "after" => "resync-after",
        "outdate-peer" => "fence-peer",
        _ => name,
    }
}

/// `no-disk-barrier` without its `no-`.
fn without_no(name: &str) -> &str {
    name.strip_prefix("no-").unwrap_or(name)
}

/// The definition of an option whose value DRBD checks while parsing.
fn checked_definition(name: &str) -> Option<&'static OptionDefinition> {
    const ALL: &[OptionSet] = &[OptionSet::NET, OptionSet::DISK, OptionSet::STARTUP];
    let name = current_name(name);
    ALL.iter()
        .find_map(|set| set.find(name))
        .or_else(|| ATTACH_ONLY_OPTIONS.iter().find(|definition| definition.name == name))
        .filter(|definition| definition.checked_by_parser)
}

/// Ports are 1 to 65535.
pub(super) const PORT_RANGE: (u64, u64) = (1, 65535);
