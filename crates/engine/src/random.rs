//! Random numbers from a seed: the runtime gives one from the system, the simulator one of its own.

use udrbd_units::GenerationId;

/// SplitMix64 (Steele, Lea, Flood 2014). Not for secrets: challenges come from the runtime.
pub(crate) struct Random(u64);

impl Random {
    pub(crate) const fn new(seed: u64) -> Self {
        Self(seed)
    }

    pub(crate) const fn next(&mut self) -> u64 {
        self.0 = self.0.wrapping_add(0x9e37_79b9_7f4a_7c15);
        let mut mixed = self.0;
        mixed = (mixed ^ (mixed >> 30)).wrapping_mul(0xbf58_476d_1ce4_e5b9);
        mixed = (mixed ^ (mixed >> 27)).wrapping_mul(0x94d0_49bb_1331_11eb);
        mixed ^ (mixed >> 31)
    }

    pub(crate) const fn coin(&mut self) -> bool {
        self.next() & 1 == 1
    }

    /// A fresh identifier; never one of the special values.
    pub(crate) fn generation(&mut self) -> GenerationId {
        loop {
            let number = self.next();
            if number & !1 != 0 && number & !1 != GenerationId::JUST_CREATED.0 {
                return GenerationId(number);
            }
        }
    }
}
