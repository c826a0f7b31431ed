//! Several volumes in one resource: they share the connection, the order of writes, the epochs and the fate of both nodes. Drawn
//! apart from the rest, so that a seed without them stays what it was.

use crate::plan::{Settings, regions};
use crate::random::Random;

/// One of so many seeds has two volumes.
const OF_SEEDS: u64 = 8;

/// Some runs have a second volume, of another size.
pub(crate) fn plan(random: &mut Random, settings: &mut Settings) {
    if !random.one_in(OF_SEEDS) {
        return;
    }
    let data_sectors = random.between(1, 12) * 2048 + 8 * random.below(64);
    let metadata_sectors = 8 + 64 + 8;
    let own = data_sectors + metadata_sectors;
    let other = if settings.in_sync && random.one_in(3) { own + random.below(4096) } else { own };
    settings.backing_sectors.push([own, other]);
    settings.regions.push(regions(random, data_sectors / 8, false).0);
}
