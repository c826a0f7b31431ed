//! Host sections: `on`, `floating`, `stacked-on-top-of` (configuration spec 7 and 12).

use std::net::{Ipv4Addr, Ipv6Addr};

use super::Parser;
use super::options::PORT_RANGE;
use super::volume::set_internal;
use crate::diagnostics::Stop;
use crate::model::{Address, Host, HostKind, ProxySection, Resource, Volume, insert_volume, joined_names};
use crate::token::{Keyword, TokenKind};

const HOST_STATEMENTS: &str = "disk | device | address | meta-disk | flexible-meta-disk";

impl Parser<'_> {
    /// Names up to the delimiter, at least one.
    pub(super) fn names(&mut self, delimiter: u8) -> Result<Vec<String>, Stop> {
        let mut names = Vec::new();
        loop {
            match self.advance() {
                TokenKind::Word => names.push(self.token.text.clone()),
                TokenKind::Punctuation(character) if character == delimiter => {
                    if names.is_empty() {
                        return self.expected_token("TK_STRING");
                    }
                    return Ok(names);
                }
                _ => return self.expected_token(&format!("TK_STRING | '{}'", char::from(delimiter))),
            }
        }
    }

    /// An address without its semicolon.
    fn bare_address(&mut self) -> Result<Address, Stop> {
        let kind = self.advance();
        let written = self.token.text.clone();
        let family = match kind {
            TokenKind::Keyword(Keyword::Sci) => "ssocks",
            TokenKind::Keyword(Keyword::Ssocks | Keyword::Sdp | Keyword::Ipv4 | Keyword::Ipv6) => {
                written.as_str()
            }
            TokenKind::Ipv4Address => "ipv4",
            _ => return self.expected("ssocks | sdp | ipv4 | ipv6 | <ipv4 address> "),
        };
        let ipv6 = family == "ipv6";
        if ipv6 {
            self.expect_punctuation(b'[')?;
            if self.advance() != TokenKind::Ipv6Address {
                return self.expected_token("TK_IPADDR6");
            }
        } else if kind != TokenKind::Ipv4Address && self.advance() != TokenKind::Ipv4Address {
            return self.expected_token("TK_IPADDR");
        }
        let address = self.token.text.clone();
        if ipv6 {
            self.expect_punctuation(b']')?;
        }
        self.expect_punctuation(b':')?;
        let port = self.expect_integer()?;
        self.check_port(&port)?;
        Ok(Address { family: family.to_owned(), address, port })
    }

    fn check_port(&mut self, port: &str) -> Result<(), Stop> {
        self.check_number("port", port, PORT_RANGE.0, PORT_RANGE.1)
    }

    /// An address with its semicolon. One of local scope must be unique per host, any other everywhere.
    fn address(&mut self, names: &[String]) -> Result<Address, Stop> {
        let address = self.bare_address()?;
        let key = format!("{}:{}", address.address, address.port);
        if is_loopback(&address.address) {
            for name in names {
                self.diagnostics.unique("IP", format!("{name}:{key}"))?;
            }
        } else {
            self.diagnostics.unique("IP", key)?;
        }
        self.expect_punctuation(b';')?;
        Ok(address)
    }

    /// `floating ADDRESS`, its word already read, and what follows.
    pub(super) fn floating_section(&mut self, resource: &mut Resource) -> Result<(), Stop> {
        self.mark_section();
        let line = self.diagnostics.line;
        let address = self.bare_address()?;
        self.diagnostics.unique("IP", format!("{}:{}", address.address, address.port))?;
        let name = if address.family == "ipv6" {
            format!("ipv6 [{}]:{}", address.address, address.port)
        } else {
            format!("{}:{}", address.address, address.port)
        };
        let mut host = Host::new(HostKind::Floating, vec![name], line);
        host.address = Some(address);
        let has_body = match self.advance() {
            TokenKind::Punctuation(b'{') => true,
            TokenKind::Punctuation(b';') => false,
            _ => return self.expected_token("{ | ;"),
        };
        self.host_section(resource, host, has_body, true)
    }

    /// `on NAMES {`, already read, and what follows.
    ///
    /// A section of running settings need not be `complete`.
    pub(super) fn named_section(
        &mut self,
        resource: &mut Resource,
        names: Vec<String>,
        complete: bool,
    ) -> Result<(), Stop> {
        self.mark_section();
        let host = Host::new(HostKind::On, names, self.diagnostics.line);
        self.host_section(resource, host, true, complete)
    }

    fn host_section(
        &mut self,
        resource: &mut Resource,
        mut host: Host,
        has_body: bool,
        complete: bool,
    ) -> Result<(), Stop> {
        for name in &host.names {
            self.diagnostics.unique_in_resource("host section", format!("{}: on {name}", resource.name))?;
        }
        if has_body {
            while self.host_statement(&resource.name, &mut host)? {}
        }
        self.inherit_volumes(&resource.volumes, &mut host)?;
        for volume in &host.volumes {
            self.check_meta_disk(volume, &host.names)?;
        }
        if complete {
            self.check_host_complete(&resource.name, &host);
        }
        resource.hosts.push(host);
        Ok(())
    }

    /// One statement; `false` at the closing brace.
    fn host_statement(&mut self, resource_name: &str, host: &mut Host) -> Result<bool, Stop> {
        let kind = self.advance();
        self.mark_statement();
        let keyword = match kind {
            TokenKind::Keyword(keyword) => keyword,
            TokenKind::Punctuation(b'}') => return Ok(false),
            _ => return self.expected(HOST_STATEMENTS),
        };
        match keyword {
            Keyword::Disk | Keyword::Device | Keyword::MetaDisk | Keyword::FlexibleMetaDisk => {
                let word = match keyword {
                    Keyword::Disk => "disk",
                    Keyword::Device => "device",
                    _ => "meta-disk",
                };
                self.once_per_host(resource_name, &host.names, word, word)?;
                let mut volumes = std::mem::take(&mut host.volumes);
                let volume = self.implicit_volume(&mut volumes);
                self.volume_statement(volume, &host.names)?;
                host.volumes = volumes;
            }
            Keyword::Address => {
                self.refuse_second_address(host)?;
                self.once_per_host(resource_name, &host.names, "address", "address")?;
                host.address = Some(self.checked_address(&host.names)?);
            }
            Keyword::AlternateLinkAddress => {
                self.refuse_second_address(host)?;
                self.once_per_host(resource_name, &host.names, "alt-address", "alt-address")?;
                host.alternate_address = Some(self.checked_address(&host.names)?);
            }
            Keyword::Proxy => host.proxy = Some(self.proxy_section(&host.names)?),
            Keyword::Volume => self.explicit_volume(&mut host.volumes, &host.names)?,
            Keyword::Options => {
                self.expect_punctuation(b'{')?;
                host.options = self.resource_options()?;
            }
            _ => return self.expected(HOST_STATEMENTS),
        }
        Ok(true)
    }

    /// An address statement. DRBD checks the port of these twice, and says so twice.
    fn checked_address(&mut self, names: &[String]) -> Result<Address, Stop> {
        let address = self.address(names)?;
        self.check_port(&address.port)?;
        Ok(address)
    }

    fn refuse_second_address(&mut self, host: &Host) -> Result<(), Stop> {
        if !host.is_floating() {
            return Ok(());
        }
        let location = self.diagnostics.location();
        Err(self
            .diagnostics
            .stop(format!("{location}: address statement not allowed for floating {{}} host sections\n")))
    }

    fn once_per_host(
        &mut self,
        resource_name: &str,
        names: &[String],
        what: &str,
        key: &str,
    ) -> Result<(), Stop> {
        for name in names {
            self.diagnostics
                .unique_in_resource(&format!("{what} statement"), format!("{resource_name}:{name}:{key}"))?;
        }
        Ok(())
    }

    /// `proxy on NAMES { }`, its first word already read.
    fn proxy_section(&mut self, host_names: &[String]) -> Result<ProxySection, Stop> {
        self.expect_keyword(Keyword::On, "TK_ON")?;
        let mut proxy = ProxySection { names: self.names(b'{')?, ..ProxySection::default() };
        loop {
            match self.advance() {
                TokenKind::Keyword(Keyword::Inside) => proxy.inside = Some(self.address(&proxy.names)?),
                TokenKind::Keyword(Keyword::Outside) => proxy.outside = Some(self.address(&proxy.names)?),
                TokenKind::Keyword(Keyword::Options) => {
                    (proxy.options, proxy.plugins) = self.proxy_options()?;
                }
                TokenKind::Punctuation(b'}') => break,
                _ => return self.expected("inside | outside"),
            }
        }
        for (missing, word) in [(proxy.inside.is_none(), "inside"), (proxy.outside.is_none(), "outside")] {
            if missing {
                let message = format!(
                    "{}:{}: in section: on {} {{ proxy on {} {{ ... }} }}: '{word}' keyword missing.\n",
                    self.diagnostics.file,
                    self.diagnostics.section_line,
                    joined_names(host_names),
                    joined_names(&proxy.names)
                );
                self.diagnostics.fault(message);
            }
        }
        Ok(proxy)
    }

    /// `stacked-on-top-of`, already read, and what follows.
    pub(super) fn stacked_section(&mut self, resource: &mut Resource) -> Result<(), Stop> {
        self.mark_section();
        let line = self.diagnostics.line;
        let lower_name = self.expect_word()?;
        self.diagnostics.unique("stacked-on-top-of", format!("stacked:{lower_name}"))?;
        let mut host = Host::new(HostKind::Stacked { lower_name, lower: None }, Vec::new(), line);
        self.expect_punctuation(b'{')?;
        loop {
            match self.advance() {
                TokenKind::Keyword(Keyword::Device) => {
                    let mut volumes = std::mem::take(&mut host.volumes);
                    let volume = self.implicit_volume(&mut volumes);
                    self.device(volume, &[])?;
                    // DRBD looks the volume up once more for each of the two, and complains each time.
                    self.implicit_volume(&mut volumes);
                    set_internal(self.implicit_volume(&mut volumes));
                    host.volumes = volumes;
                }
                TokenKind::Keyword(Keyword::Address) => host.address = Some(self.checked_address(&[])?),
                TokenKind::Keyword(Keyword::AlternateLinkAddress) => {
                    host.alternate_address = Some(self.checked_address(&[])?);
                }
                TokenKind::Keyword(Keyword::Proxy) => host.proxy = Some(self.proxy_section(&[])?),
                TokenKind::Keyword(Keyword::Volume) => self.stacked_volume(&mut host.volumes)?,
                TokenKind::Punctuation(b'}') => break,
                _ => return self.expected("device | address | proxy"),
            }
        }
        resource.has_stacked_section = true;
        self.inherit_volumes(&resource.volumes, &mut host)?;
        if host.address.is_none() {
            self.missing_keyword(&resource.name, &host.names, "address");
        }
        resource.hosts.push(host);
        Ok(())
    }

    /// Gives the host what the resource said about volumes so far and the host did not (DRBD's `inherit_volumes`).
    fn inherit_volumes(&mut self, from: &[Volume], host: &mut Host) -> Result<(), Stop> {
        for source in from {
            if !host.volumes.iter().any(|volume| volume.number == source.number) {
                insert_volume(&mut host.volumes, Volume::new(source.number, source.implicit));
            }
            let Some(volume) = host.volumes.iter_mut().find(|volume| volume.number == source.number) else {
                continue;
            };
            if let (None, Some(disk)) = (&volume.disk, &source.disk) {
                volume.disk = Some(disk.clone());
                for name in &host.names {
                    self.diagnostics.unique("disk", format!("disk:{name}:{disk}"))?;
                }
            }
            if volume.device.is_none() {
                volume.device.clone_from(&source.device);
            }
            if let (None, Some(minor)) = (volume.minor, source.minor) {
                volume.minor = Some(minor);
                for name in &host.names {
                    self.diagnostics.unique("device-minor", format!("device-minor:{name}:{minor}"))?;
                }
            }
            if volume.meta_disk.is_none() && source.meta_disk.is_some() {
                volume.meta_disk.clone_from(&source.meta_disk);
                if source.meta_index.is_some() {
                    volume.meta_index.clone_from(&source.meta_index);
                }
            }
        }
        Ok(())
    }

    /// External metadata, at its index, belongs to one volume of a host.
    fn check_meta_disk(&mut self, volume: &Volume, names: &[String]) -> Result<(), Stop> {
        let Some(meta_disk) = volume.meta_disk.as_deref().filter(|path| *path != "internal") else {
            return Ok(());
        };
        let index = volume.meta_index.as_deref().unwrap_or("");
        for name in names {
            self.diagnostics.unique("meta-disk", format!("{name}:{meta_disk}[{index}]"))?;
        }
        Ok(())
    }

    fn missing_keyword(&mut self, resource_name: &str, names: &[String], keyword: &str) {
        let message = format!(
            "{}:{}: in resource {resource_name}, on {} {{ ... }}: '{keyword}' keyword missing.\n",
            self.diagnostics.file,
            self.diagnostics.section_line,
            joined_names(names)
        );
        self.diagnostics.fault(message);
    }

    fn check_host_complete(&mut self, resource_name: &str, host: &Host) {
        if host.address.is_none() {
            self.missing_keyword(resource_name, &host.names, "address");
        }
        let mut previous = None;
        for volume in &host.volumes {
            if previous.is_some_and(|number| number >= volume.number) {
                self.diagnostics.warn(format!("internal error: in {resource_name}: unsorted volumes list\n"));
            } else {
                previous = Some(volume.number);
            }
            let missing = [
                ("device", volume.device.is_none() && volume.minor.is_none()),
                ("disk", volume.disk.is_none()),
                ("meta-disk", volume.meta_disk.is_none()),
                ("meta-index", volume.meta_index.is_none()),
            ];
            for (keyword, is_missing) in missing {
                if is_missing {
                    self.missing_keyword(resource_name, &host.names, keyword);
                }
            }
        }
        let any_implicit = host.volumes.iter().any(|volume| volume.implicit);
        let any_other_number = host.volumes.iter().any(|volume| volume.number != 0);
        if any_implicit && any_other_number {
            let location = self.token_location();
            self.diagnostics.fault(format!(
                "{location}: in resource {resource_name}: you must not mix implicit and explicit volumes\n"
            ));
        }
    }
}

/// Whether an address never leaves the node, so that every node can have it.
pub(crate) fn is_loopback(address: &str) -> bool {
    address.parse::<Ipv6Addr>().is_ok_and(|address| address.is_loopback())
        || address.parse::<Ipv4Addr>().is_ok_and(|address| address.is_loopback())
}
