//! Volumes, devices and metadata (configuration spec 7).

use super::Parser;
use crate::diagnostics::Stop;
use crate::model::{Volume, insert_volume};
use crate::number::leading_digits;
use crate::token::{Keyword, TokenKind};

/// Every device name begins like this.
const DEVICE_PREFIX: &str = "/dev/drbd";

impl Parser<'_> {
    /// The list's implicit volume 0, made if the list is empty.
    ///
    /// In a list with an explicit volume that is a fault, and the first volume stands in for it.
    pub(super) fn implicit_volume<'v>(&mut self, volumes: &'v mut Vec<Volume>) -> &'v mut Volume {
        if volumes.is_empty() {
            volumes.push(Volume::new(0, true));
        }
        let only_implicit = volumes.len() == 1 && volumes[0].number == 0 && volumes[0].implicit;
        if !only_implicit {
            let location = self.token_location();
            self.diagnostics
                .fault(format!("{location}: mixing explicit and implicit volumes is not allowed\n"));
        }
        &mut volumes[0]
    }

    /// A statement of a volume, its first word already read; `false` if it is none.
    pub(super) fn volume_statement(&mut self, volume: &mut Volume, names: &[String]) -> Result<bool, Stop> {
        match self.token.kind {
            TokenKind::Keyword(Keyword::Disk) => match self.advance() {
                TokenKind::Word => {
                    volume.disk = Some(self.token.text.clone());
                    self.expect_punctuation(b';')?;
                }
                TokenKind::Punctuation(b'{') => volume.disk_options = self.disk_options()?,
                _ => {
                    self.refuse_broken_word()?;
                    return self.expected_token("TK_STRING | {");
                }
            },
            TokenKind::Keyword(Keyword::Device) => self.device(volume, names)?,
            TokenKind::Keyword(Keyword::MetaDisk) => self.meta_disk(volume)?,
            TokenKind::Keyword(Keyword::FlexibleMetaDisk) => {
                let path = self.expect_word()?;
                let index = if path == "internal" { "internal" } else { "flexible" };
                volume.meta_index = Some(index.to_owned());
                volume.meta_disk = Some(path);
                self.expect_punctuation(b';')?;
            }
            _ => return Ok(false),
        }
        Ok(true)
    }

    /// `volume N { }`, its word already read.
    pub(super) fn explicit_volume(
        &mut self,
        volumes: &mut Vec<Volume>,
        names: &[String],
    ) -> Result<(), Stop> {
        let number = leading_digits(&self.expect_integer()?);
        let mut volume = Volume::new(number, false);
        self.expect_punctuation(b'{')?;
        loop {
            if self.advance() == TokenKind::Punctuation(b'}') {
                break;
            }
            if !self.volume_statement(&mut volume, names)? {
                return self.expected_token("device | disk | meta-disk | flex-meta-disk | }");
            }
        }
        insert_volume(volumes, volume);
        Ok(())
    }

    /// `volume N { device ...; }` of a stacked section, its word already read.
    pub(super) fn stacked_volume(&mut self, volumes: &mut Vec<Volume>) -> Result<(), Stop> {
        let number = leading_digits(&self.expect_integer()?);
        let mut volume = Volume::new(number, false);
        self.expect_punctuation(b'{')?;
        self.expect_keyword(Keyword::Device, "TK_DEVICE")?;
        self.device(&mut volume, &[])?;
        self.expect_punctuation(b'}')?;
        set_internal(&mut volume);
        insert_volume(volumes, volume);
        Ok(())
    }

    /// `meta-disk`, its word already read.
    fn meta_disk(&mut self, volume: &mut Volume) -> Result<(), Stop> {
        let path = self.expect_word()?;
        let internal = path == "internal";
        volume.meta_disk = Some(path);
        if internal {
            volume.meta_index = Some("internal".to_owned());
            return self.expect_punctuation(b';');
        }
        match self.advance() {
            TokenKind::Punctuation(b'[') => {
                volume.meta_index = Some(self.expect_integer()?);
                self.expect_punctuation(b']')?;
                self.expect_punctuation(b';')
            }
            TokenKind::Punctuation(b';') => {
                volume.meta_index = Some("flexible".to_owned());
                Ok(())
            }
            _ => self.expected("[ | ;"),
        }
    }

    /// `device`, its word already read (DRBD's `parse_device`).
    pub(super) fn device(&mut self, volume: &mut Volume, names: &[String]) -> Result<(), Stop> {
        match self.advance() {
            TokenKind::Word => {
                let word = self.token.text.clone();
                let device = if word.starts_with("drbd") { format!("/dev/{word}") } else { word };
                volume.device = Some(device.clone());
                if !device.starts_with(DEVICE_PREFIX) {
                    let location = self.diagnostics.location();
                    self.diagnostics.fault(format!(
                        "{location}: device name must start with /dev/drbd\n\
                         \t(/dev/ is optional, but drbd is required)\n"
                    ));
                }
                match self.advance() {
                    TokenKind::Keyword(Keyword::Minor) => self.explicit_minor(volume)?,
                    TokenKind::Punctuation(b';') => self.minor_of_name(volume, &device),
                    _ => return self.expected("minor | ;"),
                }
            }
            TokenKind::Keyword(Keyword::Minor) => self.explicit_minor(volume)?,
            // Whatever else stands here is passed over; the parse fails at what follows.
            _ => {}
        }
        for name in names {
            let minor = volume.minor_or_unknown();
            self.diagnostics.unique("device-minor", format!("device-minor:{name}:{minor}"))?;
            if let Some(device) = &volume.device {
                self.diagnostics.unique("device", format!("device:{name}:{device}"))?;
            }
        }
        Ok(())
    }

    /// The minor number of a name that ends in it.
    fn minor_of_name(&mut self, volume: &mut Volume, device: &str) {
        let digits = device.strip_prefix(DEVICE_PREFIX).unwrap_or(device);
        volume.minor = if is_number(digits) { digits.parse().ok() } else { None };
        if volume.minor.is_none() {
            let location = self.diagnostics.location();
            self.diagnostics
                .fault(format!("{location}: no minor given nor device name contains a minor number\n"));
        }
    }

    /// The number behind `minor`, which must agree with the device name.
    fn explicit_minor(&mut self, volume: &mut Volume) -> Result<(), Stop> {
        let minor = leading_digits(&self.expect_integer()?);
        volume.minor = Some(minor);
        self.expect_punctuation(b';')?;
        let Some(device) = &volume.device else { return Ok(()) };
        let name = device.get(DEVICE_PREFIX.len()..).unwrap_or("");
        let location = self.diagnostics.location();
        if is_number(name) {
            if name.parse() != Ok(minor) {
                self.diagnostics.fault(format!(
                    "{location}: explicit minor number must match with device name\n\
                     \tTry \"device /dev/drbd{minor} minor {minor};\",\n\
                     \tor leave off either device name or explicit minor.\n\
                     \tArbitrary device names must start with /dev/drbd_\n\
                     \tmind the '_'! (/dev/ is optional, but drbd_ is required)\n"
                ));
            }
        } else if !name.starts_with('_') {
            self.diagnostics.fault(format!(
                "{location}: arbitrary device name must start with /dev/drbd_\n\
                 \tmind the '_'! (/dev/ is optional, but drbd_ is required)\n"
            ));
        }
        Ok(())
    }
}

fn is_number(text: &str) -> bool {
    !text.is_empty() && text.bytes().all(|byte| byte.is_ascii_digit())
}

/// The metadata of stacked volumes is always internal.
pub(super) fn set_internal(volume: &mut Volume) {
    volume.meta_disk = Some("internal".to_owned());
    volume.meta_index = Some("internal".to_owned());
}
