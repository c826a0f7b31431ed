//! The text form of metadata: what `dump-md` prints and `restore-md` reads (metadata spec 9.5).

use std::io::{self, Write};

use udrbd_units::Sector;

use crate::activity_log::{self, RingBlock};
use crate::bitmap::area_bytes;
use crate::{BLOCK_BYTES, Superblock};

/// What stands above the bitmap.
#[derive(Clone, Debug)]
pub struct DumpHead<'a> {
    /// The date as `%F %T %z [%s]`.
    pub date: &'a str,
    /// The name of the node.
    pub host: &'a str,
    /// The command line with the program's base name.
    pub command: &'a str,
    /// The superblock; its size must be clipped to what the layout can hold.
    pub superblock: &'a Superblock,
    /// The byte at which the superblock starts.
    pub md_offset: u64,
    /// Set if the metadata was found at the place of an earlier size of the device.
    pub moved: Option<MovedDevice<'a>>,
}

/// Sizes and names of a device that has been resized since its metadata was written.
#[derive(Clone, Debug)]
pub struct MovedDevice<'a> {
    /// The name of the device now.
    pub name: &'a str,
    /// Its size now, in bytes.
    pub bytes: u64,
    /// The byte at which the superblock would be expected now.
    pub md_offset: u64,
    /// The name it had.
    pub known_name: &'a str,
    /// The size it had, in bytes.
    pub known_bytes: u64,
}

impl DumpHead<'_> {
    /// Writes everything up to the bitmap. An unclean superblock gets a line that `restore-md` does not accept.
    ///
    /// The real flags are printed; the original did so only from 9.33.0 on (metadata spec 9.5).
    ///
    /// # Errors
    /// Those of the writer.
    pub fn write(&self, out: &mut impl Write) -> io::Result<()> {
        let superblock = self.superblock;
        writeln!(out, "# DRBD meta data dump\n# {}\n# {}> {}\n#\n", self.date, self.host, self.command)?;
        writeln!(out, "version \"v08\";\n")?;
        if !superblock.is_clean() {
            writeln!(out, "This_is_an_unclean_meta_data_dump._Don't_trust_the_bitmap.")?;
            writeln!(out, "# You should \"apply-al\" first, if you plan to restore this.\n")?;
        }
        writeln!(out, "# md_size_sect {}", superblock.md_size_sect)?;
        if let Some(moved) = &self.moved {
            moved.write(out)?;
        }
        let at = |sectors: i32| self.md_offset.wrapping_add_signed(i64::from(sectors) * 512);
        writeln!(out, "# md_offset {}", self.md_offset)?;
        writeln!(out, "# al_offset {}", at(superblock.al_offset))?;
        writeln!(out, "# bm_offset {}\n", at(superblock.bm_offset))?;
        writeln!(
            out,
            "uuid {{\n    0x{}; 0x{}; 0x{}; 0x{};\n    flags 0x{:08X};\n}}",
            superblock.current,
            superblock.bitmap,
            superblock.history[0],
            superblock.history[1],
            superblock.flags.0
        )?;
        writeln!(out, "# al-extents {};", superblock.al_nr_extents)?;
        writeln!(out, "la-size-sect {};", superblock.la_size_sect)?;
        writeln!(out, "bm-byte-per-bit {};", superblock.bm_bytes_per_bit)?;
        writeln!(out, "device-uuid 0x{:016X};", superblock.device_uuid)?;
        writeln!(out, "la-peer-max-bio-size {};", superblock.la_peer_max_bio_size)?;
        let striping = superblock.striping();
        writeln!(out, "al-stripes {};", striping.stripes)?;
        writeln!(out, "al-stripe-size-4k {};", striping.stripe_size_4k)?;
        writeln!(out, "# bm-bytes {};", area_bytes(superblock.la_size_sect))
    }
}

impl MovedDevice<'_> {
    fn write(&self, out: &mut impl Write) -> io::Result<()> {
        writeln!(out, "#\n### Device seems to have been resized!")?;
        writeln!(out, "### dumping meta data from the last known position")?;
        writeln!(out, "### current size of {}: {} byte", self.name, self.bytes)?;
        writeln!(out, "### expected position of meta data:")?;
        writeln!(out, "## md_offset {}\n## al_offset 0\n## bm_offset 0", self.md_offset)?;
        writeln!(out, "### last known size of {}: {} byte", self.known_name, self.known_bytes)?;
        writeln!(out, "### adjusted position of meta data:")
    }
}

/// Bytes of one line of the bitmap's text: four words of 64 bits, which are eight of 32.
const GROUP_BYTES: usize = 32;
/// Groups after which a line says where it is.
const MARK_GROUPS: u64 = 8;
/// Data one group stands for, in kB.
const GROUP_DATA_KB: u64 = 1024;

/// Writes the bitmap as text, piece by piece: 64-bit words, long runs folded.
#[derive(Debug)]
pub struct BitmapWriter<W> {
    out: W,
    groups: u64,
    run: Option<Run>,
    bits_set: u64,
}

/// Groups of which all eight 32-bit words have one value.
#[derive(Clone, Copy, Debug)]
struct Run {
    word: u32,
    first_group: u64,
    groups: u64,
}

impl<W: Write> BitmapWriter<W> {
    /// Starts the text.
    ///
    /// # Errors
    /// Those of the writer.
    pub fn new(mut out: W) -> io::Result<Self> {
        out.write_all(b"bm {")?;
        Ok(Self { out, groups: 0, run: None, bits_set: 0 })
    }

    /// Adds the next bytes of the bitmap.
    ///
    /// # Errors
    /// Those of the writer.
    ///
    /// # Panics
    /// If the number of bytes is not a multiple of 32; whole pages are.
    pub fn push(&mut self, bytes: &[u8]) -> io::Result<()> {
        let (groups, rest) = bytes.as_chunks::<GROUP_BYTES>();
        assert!(rest.is_empty(), "part of a group of bitmap words");
        for group in groups {
            self.bits_set += group.iter().map(|byte| u64::from(byte.count_ones())).sum::<u64>();
            let uniform = uniform_word(group);
            match (&mut self.run, uniform) {
                (Some(run), Some(word)) if run.word == word => run.groups += 1,
                _ => {
                    self.flush_run()?;
                    match uniform {
                        Some(word) => self.run = Some(Run { word, first_group: self.groups, groups: 1 }),
                        None => self.write_group(self.groups, group)?,
                    }
                }
            }
            self.groups += 1;
        }
        Ok(())
    }

    /// Ends the text with the number of bits set; gives back the writer.
    ///
    /// # Errors
    /// Those of the writer.
    pub fn finish(mut self) -> io::Result<W> {
        self.flush_run()?;
        writeln!(self.out, "\n}}\n# bits-set {};", self.bits_set)?;
        Ok(self.out)
    }

    fn flush_run(&mut self) -> io::Result<()> {
        let Some(run) = self.run.take() else { return Ok(()) };
        if run.groups == 1 {
            let mut group = [0; GROUP_BYTES];
            for bytes in group.chunks_exact_mut(4) {
                bytes.copy_from_slice(&run.word.to_le_bytes());
            }
            return self.write_group(run.first_group, &group);
        }
        self.start_line(run.first_group)?;
        write!(self.out, " {} times 0x{:08X}{:08X};", run.groups * 4, run.word, run.word)
    }

    fn write_group(&mut self, number: u64, group: &[u8; GROUP_BYTES]) -> io::Result<()> {
        self.start_line(number)?;
        for bytes in group.as_chunks::<8>().0 {
            write!(self.out, " 0x{:016X};", u64::from_le_bytes(*bytes))?;
        }
        Ok(())
    }

    fn start_line(&mut self, group: u64) -> io::Result<()> {
        if group.is_multiple_of(MARK_GROUPS) {
            write!(self.out, "\n   # at {}kB", group * GROUP_DATA_KB)?;
        }
        self.out.write_all(b"\n   ")
    }
}

fn uniform_word(group: &[u8; GROUP_BYTES]) -> Option<u32> {
    let first = [group[0], group[1], group[2], group[3]];
    group.as_chunks::<4>().0.iter().all(|word| *word == first).then(|| u32::from_le_bytes(first))
}

/// Cuts the size to what can be used, as `drbdmeta` does when it opens metadata. Returns its message if it had to.
pub fn clip_size(superblock: &mut Superblock, usable: Sector) -> Option<String> {
    let found = superblock.la_size_sect;
    (found > usable).then(|| {
        superblock.la_size_sect = usable;
        format!("# la-size-sect was too big ({found}), truncated ({usable})!")
    })
}

/// Writes the activity log area as comments, as `dump-md` does when it is very verbose. Blocks of other formats show
/// as invalid.
///
/// # Errors
/// Those of the writer.
pub fn write_ring(out: &mut impl Write, area: &[u8], al_nr_extents: u32) -> io::Result<()> {
    let mut highest = 0;
    writeln!(out, "# al {{")?;
    for (number, block) in area.as_chunks::<BLOCK_BYTES>().0.iter().enumerate() {
        let transaction = match RingBlock::decode(block) {
            RingBlock::Corrupt => {
                writeln!(out, "#     block {number:2} {{ INVALID }}")?;
                continue;
            }
            RingBlock::Initialized => {
                writeln!(out, "#     block {number:2} {{ INITIALIZED }}")?;
                continue;
            }
            RingBlock::Update(transaction) => transaction,
        };
        writeln!(out, "#     block {number:2} {{\n# \tmagic: 0x{:08x}", activity_log::MAGIC)?;
        writeln!(out, "# \ttype: 0x{:04x}", transaction.transaction_type())?;
        writeln!(out, "# \ttr: {:10}", transaction.number())?;
        writeln!(out, "# \tactive set size: {}", transaction.slots())?;
        highest = highest.max(u32::from(transaction.slots().saturating_sub(1)));
        for (slot, extent) in transaction.context() {
            let index = slot - u32::from(transaction.context_start());
            writeln!(out, "# \t{index:2}: {slot:10} {:10}", extent.0)?;
            highest = highest.max(slot);
        }
        writeln!(out, "# \tupdates: {}", transaction.update_count())?;
        for (index, update) in transaction.updates().enumerate() {
            writeln!(out, "# \t{index:2}: {:10} {:10}", update.slot, update.extent.0)?;
            highest = highest.max(u32::from(update.slot));
        }
        writeln!(out, "# \tcrc32c: 0x{:08x}\n#     }}", transaction.checksum())?;
    }
    if highest >= al_nr_extents {
        writeln!(out, "### CAUTION: maximum slot number found in AL: {highest}")?;
        writeln!(out, "### CAUTION: but 'super-block' al-extents is: {al_nr_extents}")?;
    }
    writeln!(out, "# }}")
}
