//! `resource` and `common` sections (configuration spec 7).

use super::Parser;
use crate::diagnostics::{Diagnostics, Stop};
use crate::model::{Host, OptionEntry, Resource, joined_names};
use crate::token::{Keyword, TokenKind};

const RESOURCE_STATEMENTS: &str =
    "protocol | on | disk | net | syncer | startup | handlers | ignore-on | stacked-on-top-of";

/// Where a resource is read from.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Context {
    /// A `resource` section of a file.
    File,
    /// A `common` section of a file.
    Common,
    /// What `drbdsetup show` prints.
    Shown,
}

impl Parser<'_> {
    /// A resource after its opening brace. The end of the file closes it as a brace does.
    pub(super) fn resource(&mut self, name: String, context: Context) -> Result<Resource, Stop> {
        self.diagnostics.start_resource();
        self.diagnostics.unique("resource section", name.clone())?;
        let mut resource = Resource {
            name,
            file: self.absolute.clone(),
            line: self.diagnostics.line,
            ..Resource::default()
        };
        loop {
            let kind = self.advance();
            self.mark_statement();
            match kind {
                TokenKind::EndOfFile | TokenKind::Punctuation(b'}') => break,
                TokenKind::Option(_) if self.token.text == "protocol" => {
                    self.protocol_statement(&mut resource)?;
                }
                TokenKind::Keyword(keyword) => self.resource_statement(&mut resource, keyword, context)?,
                _ => return self.expected_token(RESOURCE_STATEMENTS),
            }
        }
        if context == Context::Common && !resource.hosts.is_empty() {
            let message = format!(
                "{}:{}: in the {} section, there are no host sections allowed.\n",
                self.diagnostics.file, self.diagnostics.section_line, resource.name
            );
            self.diagnostics.fault(message);
        }
        if context != Context::Shown {
            check_equal_volumes(&mut self.diagnostics, &resource);
        }
        Ok(resource)
    }

    /// `protocol C;`, 8.3's place for it.
    fn protocol_statement(&mut self, resource: &mut Resource) -> Result<(), Stop> {
        self.diagnostics.unique_in_resource("protocol statement", format!("{}: protocol", resource.name))?;
        let mut value = self.expect_word()?;
        self.check_value("protocol", &mut value)?;
        resource.net.push(OptionEntry::new("protocol", value));
        self.expect_punctuation(b';')
    }

    fn resource_statement(
        &mut self,
        resource: &mut Resource,
        keyword: Keyword,
        context: Context,
    ) -> Result<(), Stop> {
        match keyword {
            Keyword::On => {
                let names = self.names(b'{')?;
                self.named_section(resource, names, true)
            }
            Keyword::StackedOnTopOf => self.stacked_section(resource),
            Keyword::IgnoreOn => self.ignore_on(resource),
            Keyword::ThisHost | Keyword::RemoteHost => {
                let name = self.token.text.clone();
                self.expect_punctuation(b'{')?;
                self.named_section(resource, vec![name], false)
            }
            Keyword::Floating => self.floating_section(resource),
            Keyword::Disk => self.disk_statement(resource),
            Keyword::Net => {
                self.once("net", &resource.name)?;
                self.expect_punctuation(b'{')?;
                let options = self.net_options(context == Context::Shown)?;
                resource.net.extend(options);
                Ok(())
            }
            Keyword::Syncer => {
                self.once("syncer", &resource.name)?;
                self.expect_punctuation(b'{')?;
                self.syncer(resource)
            }
            Keyword::Startup => {
                self.once("startup", &resource.name)?;
                self.expect_punctuation(b'{')?;
                self.startup_options(resource)
            }
            Keyword::Handlers => {
                self.once("handlers", &resource.name)?;
                self.expect_punctuation(b'{')?;
                resource.handlers = self.handlers()?;
                Ok(())
            }
            Keyword::Proxy => {
                self.once("proxy", &resource.name)?;
                (resource.proxy, resource.proxy_plugins) = self.proxy_options()?;
                Ok(())
            }
            Keyword::Device | Keyword::MetaDisk | Keyword::FlexibleMetaDisk => {
                if keyword == Keyword::Device {
                    self.diagnostics
                        .unique_in_resource("device statement", format!("{}:device", resource.name))?;
                }
                let volume = self.implicit_volume(&mut resource.volumes);
                self.volume_statement(volume, &[]).map(|_| ())
            }
            Keyword::Volume => self.explicit_volume(&mut resource.volumes, &[]),
            Keyword::Options => {
                self.diagnostics.unique_in_resource(
                    "resource options section",
                    format!("{}:res_options", resource.name),
                )?;
                self.expect_punctuation(b'{')?;
                let options = self.resource_options()?;
                resource.options.extend(options);
                Ok(())
            }
            _ => self.expected_token(RESOURCE_STATEMENTS),
        }
    }

    fn once(&mut self, section: &str, resource_name: &str) -> Result<(), Stop> {
        self.diagnostics
            .unique_in_resource(&format!("{section} section"), format!("{resource_name}:{section}"))
    }

    fn disk_statement(&mut self, resource: &mut Resource) -> Result<(), Stop> {
        match self.advance() {
            TokenKind::Word => {
                let path = self.token.text.clone();
                self.implicit_volume(&mut resource.volumes).disk = Some(path);
                self.expect_punctuation(b';')
            }
            TokenKind::Punctuation(b'{') => {
                self.once("disk", &resource.name)?;
                let options = self.disk_options()?;
                resource.disk.extend(options);
                Ok(())
            }
            _ => {
                self.refuse_broken_word()?;
                self.expected_token("TK_STRING | {")
            }
        }
    }

    fn ignore_on(&mut self, resource: &Resource) -> Result<(), Stop> {
        self.expect_word()?;
        let location = self.token_location();
        self.diagnostics.warn(format!(
            "{location}: in resource {}, WARN: The 'ignore-on' keyword is deprecated.\n",
            resource.name
        ));
        self.expect_punctuation(b';')
    }
}

/// All host sections must have the same volumes.
fn check_equal_volumes(diagnostics: &mut Diagnostics, resource: &Resource) {
    let Some((first, others)) = resource.hosts.split_first() else { return };
    for other in others {
        compare_volume_sets(diagnostics, &resource.name, first, other, None);
    }
}

/// Compares the volumes of two sections.
///
/// `lower` is set when the second is the section that the first is stacked on: the name of its resource, and
/// whether surplus volumes there, which are allowed, are worth a message.
pub(crate) fn compare_volume_sets(
    diagnostics: &mut Diagnostics,
    resource_name: &str,
    first: &Host,
    second: &Host,
    lower: Option<(&str, bool)>,
) {
    let prefix = format!("{}:{}: in resource {resource_name}, on ", diagnostics.file, diagnostics.line);
    let first_names = joined_names(&first.names);
    let second_name = lower.map_or_else(|| joined_names(&second.names), |(name, _)| name.to_owned());
    let mut left = first.volumes.iter().peekable();
    let mut right = second.volumes.iter().peekable();
    loop {
        match (left.peek(), right.peek()) {
            (None, None) => return,
            (Some(a), b) if b.is_none_or(|b| a.number < b.number) => {
                diagnostics.fault(format!(
                    "{prefix}{first_names} {{ ... }}: volume {} not defined on {second_name}\n",
                    a.number
                ));
                left.next();
            }
            (a, Some(b)) if a.is_none_or(|a| a.number > b.number) => {
                let message = format!(
                    "{prefix}{first_names} {{ ... }}: volume {} missing (present on {second_name})\n",
                    b.number
                );
                match lower {
                    None => diagnostics.fault(message),
                    Some((_, true)) => diagnostics.warn(message),
                    Some((_, false)) => {}
                }
                right.next();
            }
            (Some(a), Some(b)) => {
                if a.implicit != b.implicit {
                    diagnostics.fault(format!(
                        "{prefix}{first_names} resp. {second_name}: volume {} must not be implicit on one but \
                         not the other\n",
                        a.number
                    ));
                }
                left.next();
                right.next();
            }
            (_, None) | (None, Some(_)) => return,
        }
    }
}
