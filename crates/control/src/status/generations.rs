//! `get-gi` and `show-gi` (status spec 3.2).

use udrbd_units::{ConnectionState, DiskState, GenerationId};

use super::{DeviceSnapshot, Generations};

const LEGEND_ABOVE: &str = "
       +--<  Current data generation UUID  >-
       |               +--<  Bitmap's base data generation UUID  >-
       |               |                 +--<  younger history UUID  >-
       |               |                 |         +-<  older history  >-
       V               V                 V         V
";

const LEGEND_BELOW: &str = "                                                                    ^ ^ ^ ^ ^ ^ ^
                                      -<  Data consistency flag  >--+ | | | | | |
                             -<  Data was/is currently up-to-date  >--+ | | | | |
                                  -<  Node was/is currently primary  >--+ | | | |
                                  -<  Node was/is currently connected  >--+ | | |
         -<  Node was in the progress of setting all bits in the bitmap  >--+ | |
                        -<  The peer's disk was out-dated or inconsistent  >--+ |
      -<  This node was a crashed primary, and has not seen its peer since   >--+

";

/// Why a device has no generation identifiers to show; the text `drbdsetup` prints, with exit status 1.
#[derive(Clone, Copy, Debug, PartialEq, Eq, thiserror::Error)]
pub enum NoGenerations {
    /// StandAlone and Diskless.
    #[error("Device is unconfigured")]
    Unconfigured,
    /// Diskless.
    #[error("Device has no disk")]
    Diskless,
}

impl Generations {
    /// The identifiers (current, bitmap, younger and older history) with the flags word of a superblock
    /// (states spec 1.3).
    pub const fn from_flags_word(identifiers: [GenerationId; 4], flags: u32) -> Self {
        let [current, bitmap, younger, older] = identifiers;
        Self {
            current,
            bitmap,
            history: [younger, older],
            consistent: flags & 1 != 0,
            primary: flags & (1 << 1) != 0,
            connected: flags & (1 << 2) != 0,
            full_sync: flags & (1 << 3) != 0,
            was_up_to_date: flags & (1 << 4) != 0,
            peer_outdated: flags & (1 << 5) != 0,
            crashed_primary: flags & (1 << 6) != 0,
        }
    }
}

/// `get-gi`: one line, without newline.
pub fn get_gi(generations: &Generations) -> String {
    let flag = u8::from;
    format!(
        "{}:{}:{}:{}:{}:{}:{}:{}:{}:{}:{}",
        generations.current,
        generations.bitmap,
        generations.history[0],
        generations.history[1],
        flag(generations.consistent),
        flag(generations.was_up_to_date),
        flag(generations.primary),
        flag(generations.connected),
        flag(generations.full_sync),
        flag(generations.peer_outdated),
        flag(generations.crashed_primary),
    )
}

/// `show-gi`: the line of `get-gi` with its legend. An attached device always needs its activity log applied
/// after a crash, so the last line always says so.
pub fn show_gi(generations: &Generations) -> String {
    let disk = match (generations.consistent, generations.was_up_to_date) {
        (false, _) => "Inconsistent",
        (true, false) => "Outdated",
        (true, true) => "UpToDate",
    };
    format!(
        "{LEGEND_ABOVE}{}\n{LEGEND_BELOW}flags:{} {}, {}, {disk}{}{}\nmeta-data: need apply-al\n",
        get_gi(generations),
        if generations.crashed_primary { " crashed" } else { "" },
        if generations.primary { "Primary" } else { "Secondary" },
        if generations.connected { "Connected" } else { "StandAlone" },
        if generations.full_sync { ", need full sync" } else { "" },
        if generations.peer_outdated { ", peer Outdated" } else { "" },
    )
}

/// The generation identifiers of a device.
///
/// # Errors
/// The device has none.
pub fn generations_of(device: &DeviceSnapshot) -> Result<&Generations, NoGenerations> {
    if device.connection == ConnectionState::StandAlone && device.disk == DiskState::Diskless {
        return Err(NoGenerations::Unconfigured);
    }
    match &device.backing {
        Some(backing) if device.disk != DiskState::Diskless => Ok(&backing.generations),
        _ => Err(NoGenerations::Diskless),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn each_bit_of_the_flags_word_has_its_place_in_the_line() {
        let places: Vec<String> = (0..7)
            .map(|bit| get_gi(&Generations::from_flags_word([GenerationId::NONE; 4], 1 << bit)))
            .map(|line| line.split(':').skip(4).collect::<Vec<_>>().concat())
            .collect();
        assert_eq!(places, ["1000000", "0010000", "0001000", "0000100", "0100000", "0000010", "0000001"]);
    }
}
